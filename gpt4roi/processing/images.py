"""Image preprocessing: loading, resizing and normalising, with boxes, in the two pipelines of the released models.

detection: the image as shown, after its EXIF rotation, is resized straight to the square (bilinear); boxes are clipped
    to it.
dialogue (also inference): the stored pixels, not rotated; CLIP's resize (bicubic) of the shorter side, then a resize
    of the float image to the square; boxes stay as they are.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn import functional as F

from gpt4roi.errors import InputError
from gpt4roi.geometry import boxes as box_ops
from gpt4roi.structures import Augmentation, ImagePipeline, as_image_pipeline

MAX_PIXELS = 178_956_970
"""Images with more pixels are refused before they are decoded (PIL's own limit for decompression bombs)."""

MAX_ASPECT = 200

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


def load_image(image: Any, pipeline: ImagePipeline = "dialogue", where: str = "") -> Image.Image:
    """Opens a path, PIL image or uint8 array [H, W, 3] and returns it as RGB, rotated by EXIF for `detection`.

    Raises:
        InputError: It is missing, damaged, no image, or too large to decode; `where` is part of the message.
    """
    if isinstance(image, np.ndarray):
        return Image.fromarray(_check_array(image, where))
    name = repr(str(image)) if not isinstance(image, Image.Image) else "the given image"
    if not isinstance(image, (str, bytes, Image.Image)) and not hasattr(image, "__fspath__"):
        kind = type(image).__name__
        raise InputError(f"an image must be a path, a PIL image or a uint8 array, got {kind}{where}")
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        if opened.width * opened.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{opened.width} x {opened.height} pixels")
        if max(opened.size) > MAX_ASPECT * min(opened.size):
            raise InputError(
                f"image {name} is {opened.width} x {opened.height} pixels{where}; "
                f"its sides may differ {MAX_ASPECT} times at most"
            )
        if as_image_pipeline(pipeline) == "detection":
            opened = ImageOps.exif_transpose(opened)
        return _to_rgb(opened)
    except FileNotFoundError as error:
        raise InputError(f"image {name} not found{where}; check the path or --img_prefix") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"image {name} is too large to open{where}: {error}; make it smaller first") from error
    except UnidentifiedImageError as error:
        raise InputError(f"image {name} is not an image file that can be read{where}") from error
    except InputError:
        raise
    except Exception as error:  # PIL plugins may raise anything on corrupt files
        raise InputError(f"image {name} cannot be decoded{where}: {error}; fetch or save it again") from error


def read_header(path: str, where: str = "") -> tuple[tuple[int, int], bool]:
    """Returns the (height, width) of an image as stored, and whether its EXIF data turn it by a quarter.

    Decodes nothing.

    Raises:
        InputError: Not even its header can be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return (image.height, image.width), image.getexif().get(_ORIENTATION) in _SIDEWAYS
    except Exception as error:  # PIL plugins may raise anything on corrupt headers
        raise InputError(f"image {path!r} cannot be opened{where}: {error}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # PIL would cut these greys off at 255
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    return image.convert("RGB")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Returns greys of 16 bits, of 32 that hold 8 or 16, or of floats in [0, 1] or [0, 255], as uint8."""
    if grey.dtype.kind == "f":
        grey = np.nan_to_num(grey)
        return (grey * (255 if grey.max() <= 1 else 1)).round().clip(0, 255).astype(np.uint8)
    if grey.dtype.itemsize == 2 or grey.max() > 255:
        grey = grey.astype(np.int64) >> 8
    return grey.clip(0, 255).astype(np.uint8)


def _check_array(image: np.ndarray, where: str) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0:
        raise InputError(f"an image array must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}{where}")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.shape[2] not in (3, 4):
        raise InputError(f"an image array must have 3 channels (RGB), got {image.shape[2]}{where}")
    return np.ascontiguousarray(image[:, :, :3])


def to_pixel_values(
    image: Image.Image,
    pipeline: ImagePipeline,
    size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    augmentation: Augmentation | None = None,
) -> torch.Tensor:
    """Resizes an RGB image and normalises it; float32[3, size, size]. mean, std: of values in [0, 1]."""
    offset = np.asarray(mean, dtype=np.float32)[:, None, None]
    scale = np.asarray(std, dtype=np.float32)[:, None, None]
    pipeline = as_image_pipeline(pipeline)
    resize = _resize_bilinear if pipeline == "detection" else _resize_shorter_side
    resized = resize(image, size)
    values = (np.ascontiguousarray(resized.transpose(2, 0, 1)).astype(np.float32) / 255 - offset) / scale
    if pipeline == "dialogue" and values.shape[1:] != (size, size):
        stretched = F.interpolate(
            torch.from_numpy(values)[None], size=(size, size), mode="bilinear", align_corners=False
        )
        values = stretched[0].numpy()
    if augmentation is not None:
        values = _augment(values, augmentation, black=-offset / scale)
    return torch.from_numpy(np.ascontiguousarray(values))


def _resize_bilinear(image: Image.Image, size: int) -> np.ndarray:
    """Resizes without antialias, half-pixel centres, in OpenCV's 11-bit fixed point: the same grey levels as its."""
    pixels = np.asarray(image)
    (top, bottom, down), (left, right, across) = (_neighbours(length, size) for length in pixels.shape[:2])
    columns = [
        side[:, left] * across[0][:, None] + side[:, right] * across[1][:, None]
        for side in (pixels[top].astype(np.int32), pixels[bottom].astype(np.int32))
    ]
    terms = [(weight[:, None, None] * (column >> 4)) >> 16 for weight, column in zip(down, columns, strict=True)]
    return (terms[0] + terms[1] + 2) >> 2


def _neighbours(length: int, size: int) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Returns, per output position, the two input positions it lies between and their weights in units of 1/2048."""
    position = ((np.arange(size) + 0.5) * (length / size) - 0.5).astype(np.float32)
    first = np.floor(position)
    part = position - first
    low, high = (np.rint(weight * 2048).astype(np.int32) for weight in (1 - part, part))
    index = first.astype(np.int64)
    return index.clip(0, length - 1), (index + 1).clip(0, length - 1), (low, high)


def _resize_shorter_side(image: Image.Image, size: int) -> np.ndarray:
    """Resizes with PIL's bicubic filter so that the shorter side has the size; the longer one is rounded down."""
    width, height = image.size
    shorter = min(width, height)
    new = (int(size * width / shorter), int(size * height / shorter))
    return np.asarray(image.resize(new, Image.Resampling.BICUBIC))


def _augment(values: np.ndarray, augmentation: Augmentation, black: np.ndarray) -> np.ndarray:
    dx, dy = augmentation.shift
    height, width = values.shape[1:]
    if dx or dy:
        moved = np.broadcast_to(black, values.shape).copy()
        if abs(dx) < width and abs(dy) < height:
            moved[:, max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = values[
                :, max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)
            ]
        values = moved
    return values[:, :, ::-1] if augmentation.flip else values


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
        pipeline: As of load_image.
        size: Side of the square.
        augmentation: As applied to the image.

    Returns:
        float64[N, 4] xyxy in pixels of the square (divide by size for the model): scaled per axis, shifted and flipped
        with the image, clipped if `detection`.
    """
    frame, pipeline = (size, size), as_image_pipeline(pipeline)
    moved = box_ops.denormalize(box_ops.normalize(np.asarray(boxes_px, dtype=np.float64), image_size), frame)
    if pipeline == "detection":
        moved = box_ops.clip(moved, frame)
    if augmentation is None:
        return moved
    dx, dy = augmentation.shift
    moved = moved + np.asarray([dx, dy, dx, dy], dtype=np.float64)
    if pipeline == "detection":
        moved = box_ops.clip(moved, frame)
    if augmentation.flip:
        moved = np.stack([size - moved[:, 2], moved[:, 1], size - moved[:, 0], moved[:, 3]], axis=1)
    return moved
