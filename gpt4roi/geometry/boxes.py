"""Box arithmetic: conversion, normalisation, clipping. Takes and returns numpy arrays or torch tensors of one kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gpt4roi.structures import Augmentation, ImagePipeline, as_image_pipeline

if TYPE_CHECKING:
    import torch

Boxes = TypeVar("Boxes", np.ndarray, "torch.Tensor")
"""[N, 4] of a floating type; numpy or torch."""

FAR = 2.0
"""Sides of the image up to a far corner that a careless annotation may have; one in pixels is far beyond it."""


def _stack(columns: list[Boxes], like: Boxes) -> Boxes:
    if isinstance(like, np.ndarray):
        return np.stack(columns, axis=-1)
    import torch

    return torch.stack(columns, dim=-1)


def xywh_to_xyxy(boxes: Boxes) -> Boxes:
    """Turns (left, top, width, height), as COCO writes boxes, into (x1, y1, x2, y2), in the same units."""
    x, y, w, h = (boxes[..., i] for i in range(4))
    return _stack([x, y, x + w, y + h], boxes)


def xyxy_to_xywh(boxes: Boxes) -> Boxes:
    """Turns (x1, y1, x2, y2) into (left, top, width, height), in the same units."""
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return _stack([x1, y1, x2 - x1, y2 - y1], boxes)


def _per_corner(image_size: tuple[int, int], like: Boxes) -> Boxes:
    height, width = image_size
    if isinstance(like, np.ndarray):
        return np.asarray([width, height, width, height], dtype=like.dtype)
    return like.new_tensor([width, height, width, height])


def normalize(boxes_px: Boxes, image_size: tuple[int, int]) -> Boxes:
    """Divides pixel boxes by the image's size; image_size: (height, width). Values outside [0, 1] are kept."""
    return boxes_px / _per_corner(image_size, boxes_px)


def denormalize(boxes: Boxes, image_size: tuple[int, int]) -> Boxes:
    """Multiplies boxes in [0, 1] by the image's size; image_size: (height, width)."""
    return boxes * _per_corner(image_size, boxes)


def clip(boxes_px: Boxes, image_size: tuple[int, int]) -> Boxes:
    """Moves corners outside the image to its border; image_size: (height, width)."""
    limits = _per_corner(image_size, boxes_px)
    if isinstance(boxes_px, np.ndarray):
        return np.minimum(np.maximum(boxes_px, 0), limits)
    return boxes_px.clamp(min=0).minimum(limits)


def keep_valid(boxes_px: Boxes, min_side: float = 0.0) -> Boxes:
    """Returns bool[N]: true where width and height are both greater than min_side (same units as the boxes)."""
    return ((boxes_px[..., 2] - boxes_px[..., 0]) > min_side) & ((boxes_px[..., 3] - boxes_px[..., 1]) > min_side)


def boxes_in_frame(
    boxes_px: np.ndarray,
    image_size: tuple[int, int],
    pipeline: ImagePipeline,
    size: int,
    augmentation: Augmentation | None = None,
) -> np.ndarray:
    """Moves boxes of the user's image into the square that the model sees.

    Args:
        boxes_px: float[N, 4], xyxy in pixels of the user's image.
        image_size: (height, width) of the image as its pipeline opens it.
        pipeline: As of processing.images.load_image.
        size: Side of the square.
        augmentation: As applied to the image.

    Returns:
        float64[N, 4] xyxy in pixels of the square (divide by size for the model): scaled per axis, shifted and flipped
        with the image, clipped if `detection`.
    """
    frame, pipeline = (size, size), as_image_pipeline(pipeline)
    moved = normalize(np.asarray(boxes_px, dtype=np.float64), image_size) * size
    if pipeline == "detection":
        moved = clip(moved, frame)
    if augmentation is None:
        return moved
    dx, dy = augmentation.shift
    moved = moved + np.asarray([dx, dy, dx, dy], dtype=np.float64)
    if pipeline == "detection":
        moved = clip(moved, frame)
    if augmentation.flip:
        moved = np.stack([size - moved[:, 2], moved[:, 1], size - moved[:, 0], moved[:, 3]], axis=1)
    return moved


def to_rois(boxes: list[torch.Tensor], image_size: tuple[int, int]) -> torch.Tensor:
    """Joins the boxes of a batch into RoI rows.

    Args:
        boxes: list of float[N_i, 4], xyxy in [0, 1]; N_i may be 0.
        image_size: (height, width) of the model's input.

    Returns:
        float[sum N_i, 5]: batch index, x1, y1, x2, y2 in input pixels, in batch order; float32 at least, as half
        precision has neither all pixels nor all batch indices.
    """
    import torch

    rows = []
    for index, of_image in enumerate(boxes):
        scaled = denormalize(of_image.to(torch.promote_types(of_image.dtype, torch.float32)), image_size)
        rows.append(torch.cat([scaled.new_full((len(scaled), 1), index), scaled], dim=1))
    return torch.cat(rows) if rows else torch.zeros(0, 5)


def center_size_features(boxes: torch.Tensor) -> torch.Tensor:
    """Returns float[M, 5]: center x and y, width, height, square root of the area; boxes: float[M, 4] in [0, 1]."""
    import torch

    x1, y1, x2, y2 = boxes.float().unbind(-1)
    width, height = x2 - x1, y2 - y1
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, width, height, (width * height).clamp(min=0).sqrt()], dim=-1)


def far_outside(boxes: Any) -> Any:
    """Tells of boxes, array or tensor [N, 4] xyxy in [0, 1], which have their far corner beyond FAR on both axes."""
    return (boxes[:, 2:] > FAR).all(-1)
