"""RoIAlign: the mean of bilinear samples in each cell of a box, by one of several implementations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torchvision.ops import roi_align as torchvision_roi_align

from gpt4roi.errors import InputError
from gpt4roi.models.kernels.sparse_roi_align import sparse_roi_align

BACKENDS = ("torchvision", "sparse", "mmcv", "auto")
"""Values of `roi_align_backend`; `auto` takes `sparse` where it is faster, on the CPU only, and else `torchvision`."""

SPARSE_FROM = 512
"""Channels times boxes from which `sparse` is faster on the CPU: its entries are the same for all channels."""
CELLS_FOR_A_BOX = 1024
"""How many cells of a map that is not channels-last, and has to be rearranged for it, a box makes up for."""

MAX_ABS_COORDINATE = 1e4
"""How many sides of the image a corner may lie outside: coordinates far beyond overflow, and RoIAlign then crashes."""


def validate_unit_boxes(boxes: list[torch.Tensor]) -> None:
    """Raises InputError where a box is not four numbers, not finite, or has its corners exchanged.

    boxes: list of float[N_i, 4], xyxy in [0, 1]; boxes without area, and corners outside the image, are allowed.
    """
    for image, rows in enumerate(boxes):
        if rows.ndim != 2 or rows.shape[1] != 4:
            raise InputError(f"image {image} of the batch: boxes must be [N, 4], got {tuple(rows.shape)}")
        bad = ~(rows.abs() <= MAX_ABS_COORDINATE).all(1) | (rows[:, 2] < rows[:, 0]) | (rows[:, 3] < rows[:, 1])
        if bad.any():
            row = int(bad.nonzero()[0])
            raise InputError(
                f"image {image} of the batch: box {row + 1} is {[round(x, 4) for x in rows[row].tolist()]}, "
                "expected finite x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, "
                f"none beyond {MAX_ABS_COORDINATE:.0f} images"
            )


def validate_masks(masks: list[torch.Tensor], boxes: list[torch.Tensor]) -> None:
    """Raises InputError unless each box, of list of float[N_i, 4], has a mask float[r, r] in [0, 1], not all 0."""
    if list(map(len, masks)) != list(map(len, boxes)):
        raise InputError(f"{list(map(len, masks))} masks for {list(map(len, boxes))} boxes of the images of the batch")
    for image, rows in enumerate(masks):
        if rows.ndim != 3 or rows.shape[1] != rows.shape[2]:
            raise InputError(f"image {image} of the batch: masks must be [N, r, r], got {tuple(rows.shape)}")
        bad = ~((rows >= 0) & (rows <= 1)).flatten(1).all(1) | ~rows.flatten(1).any(1)
        if bad.any():
            number = int(bad.nonzero()[0]) + 1
            raise InputError(f"image {image} of the batch: mask {number} is empty, or has values outside [0, 1]")


def pool_masks(masks: torch.Tensor, output_size: int) -> torch.Tensor:
    """Pools masks float[M, r, r] of boxes as the boxes are: float32[M, 1, P, P], the share of each cell that counts.

    RoIAlign with a sample for each of the mask's cells, so that a pooled cell which is covered by half counts by half.
    """
    masks, side = masks.float(), float(masks.shape[-1])
    rois = torch.tensor([[0, 0, 0, side, side]], device=masks.device).repeat(len(masks), 1)
    rois[:, 0] = torch.arange(len(masks), device=masks.device)
    return torchvision_roi_align(masks[:, None], rois, output_size, 1.0, 0, aligned=True)


def roi_align(
    feature_map: torch.Tensor,
    rois: torch.Tensor,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int,
    backend: str = "torchvision",
) -> torch.Tensor:
    """Pools boxes from a map with the half-pixel shift; samples more than one cell outside count as 0.

    feature_map: float[K, C, H, W]; rois: float[M, 5], (image, x1, y1, x2, y2) in input pixels;
    spatial_scale: cells of the map to an input pixel. Computed in float32 (float64 for float64 maps).
    Returns float[M, C, output_size, output_size] in the map's dtype.
    """
    pool = _implementation(choose_backend(backend, feature_map, len(rois), sampling_ratio))
    exact = torch.float64 if feature_map.dtype == torch.float64 else torch.float32
    with torch.autocast(feature_map.device.type, enabled=False):
        pooled = pool(feature_map.to(exact), rois.to(exact), output_size, spatial_scale, sampling_ratio)
    return pooled.to(feature_map.dtype)


def choose_backend(backend: str, feature_map: torch.Tensor, num_boxes: int, sampling_ratio: int) -> str:
    """Returns which implementation serves a map, float[K, C, H, W]; raises InputError on a name that is none."""
    if backend not in BACKENDS:
        raise InputError(f"roi_align_backend is {backend!r}, expected one of {', '.join(BACKENDS)}")
    if backend == "auto":
        # An adaptive number of samples (0) differs from box to box, which the matrix does not do.
        able = feature_map.device.type == "cpu" and sampling_ratio > 0
        return "sparse" if able and _is_sparse_faster(feature_map, num_boxes) else "torchvision"
    return backend


def _is_sparse_faster(feature_map: torch.Tensor, num_boxes: int) -> bool:
    images, channels, height, width = feature_map.shape
    if channels * num_boxes < SPARSE_FROM:
        return False
    ordered = feature_map.is_contiguous(memory_format=torch.channels_last)
    return ordered or images * height * width <= CELLS_FOR_A_BOX * num_boxes


def _implementation(backend: str) -> Callable[..., torch.Tensor]:
    """Returns a function of (feature_map, rois, output_size, spatial_scale, sampling_ratio)."""
    if backend == "sparse":
        return sparse_roi_align
    if backend == "mmcv":
        return _mmcv_roi_align
    return partial(torchvision_roi_align, aligned=True)


def _mmcv_roi_align(
    feature_map: torch.Tensor, rois: torch.Tensor, output_size: int, spatial_scale: float, sampling_ratio: int
) -> torch.Tensor:
    """Calls the RoIAlign of the mmcv that is installed."""
    try:
        from mmcv.ops import roi_align as mmcv_roi_align
    except ImportError as error:
        raise InputError(
            f"roi_align_backend='mmcv' needs an mmcv with operators ({error}); run `MMCV_WITH_OPS=1 pip install "
            "--no-build-isolation -e .` in mmcv-1.4.7/, or choose roi_align_backend='auto'"
        ) from None
    # mmcv takes these by position only.
    return mmcv_roi_align(feature_map, rois, output_size, spatial_scale, sampling_ratio, "avg", True)
