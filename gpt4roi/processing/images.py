"""Image preprocessing: loading, resizing and normalising in the two pipelines of the released models.

detection: the image as shown, after its EXIF rotation, is resized straight to the square (bilinear); boxes are clipped
    to it.
dialogue (also inference): the stored pixels, not rotated; CLIP's resize (bicubic) of the shorter side, then a resize
    of the float image to the square; boxes stay as they are.

Boxes go the same way by geometry.boxes.boxes_in_frame.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from torch.nn import functional as F

from gpt4roi.errors import InputError
from gpt4roi.geometry.frames import ImageHeader
from gpt4roi.structures import Augmentation, ImagePipeline, as_image_pipeline

MAX_PIXELS = 178_956_970
"""Images with more pixels are refused before they are decoded (PIL's own limit for decompression bombs)."""

MAX_ASPECT = 200

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_PNG = b"\x89PNG\r\n\x1a\n"
_HOLDS_ORIENTATION = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0\0")
_MAX_TEXT = 2**16

_HEAD = 256
_SAVE_AS = "save it as JPEG or PNG first"
_KINDS = (
    (rb".{4}ftyp.{0,40}avi[fs]", "AVIF", f"{_SAVE_AS}, or install Pillow 11.3 or later"),
    (rb".{4}ftyp.{0,40}(hei[cxms]|hev[cxms]|mif1|msf1)", "HEIC", _SAVE_AS),
    (rb".{4}ftyp", "a video", "save a frame of it as JPEG or PNG first"),
    (rb"\xff\n|.{4}JXL ", "JPEG XL", _SAVE_AS),
    (rb"\s*(<\?xml.*)?<svg", "SVG", _SAVE_AS),
    (rb"%PDF", "a PDF", _SAVE_AS),
    (rb"version https://git-lfs", "a pointer of Git LFS", "fetch the image with `git lfs pull`"),
    (rb"\s*<(!doctype html|html)", "a web page", "download the image itself"),
)
"""Files that people give as images and Pillow does not read: their first bytes, name and what to do."""


def load_image(
    image: Any, pipeline: ImagePipeline = "dialogue", where: str = "", ignore_alpha: bool = False
) -> Image.Image:
    """Opens an image as RGB: turned upright by EXIF for `detection`, and on white where it is transparent.

    Args:
        image: Path, encoded file as bytes, PIL image, or uint8 array [H, W, 3] or [H, W, 4].
        pipeline: As of RegionSample.
        where: Part of every message.
        ignore_alpha: Takes the colours that transparent pixels hold, as the original does.

    Raises:
        InputError: It is missing, damaged, no image, or too large to decode.
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(_check_array(image, where))
    encoded = isinstance(image, (bytes, bytearray, memoryview))
    name = f"of {len(image)} bytes" if encoded else "given" if isinstance(image, Image.Image) else repr(str(image))
    if not encoded and not isinstance(image, (str, Image.Image)) and not hasattr(image, "__fspath__"):
        kind = type(image).__name__
        raise InputError(f"an image must be a path, a PIL image or a uint8 array, got {kind}{where}")
    try:
        with quiet_pillow():
            opened = image if isinstance(image, Image.Image) else open_file(image)
            _check_size(opened, f"image {name}", where)
            if as_image_pipeline(pipeline) == "detection":
                opened = _upright(opened)
            return _to_rgb(opened, ignore_alpha)
    except FileNotFoundError as error:
        raise InputError(f"image {name} not found{where}; check the path and the folder of the images") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"image {name} is too large to open{where}: {error}; make it smaller first") from error
    except UnidentifiedImageError as error:
        kind, remedy = unreadable_kind(image)
        if kind:
            raise InputError(f"image {name} is {kind}, which cannot be read{where}; {remedy}") from error
        raise InputError(f"image {name} is not an image file that can be read{where}") from error
    except InputError:
        raise
    except Exception as error:  # PIL plugins may raise anything on corrupt files
        raise InputError(f"image {name} cannot be decoded{where}: {error}; fetch or save it again") from error


def _check_size(image: Image.Image, what: str, where: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise InputError(
            f"{what} is {image.width} x {image.height} pixels{where}; its sides may differ {MAX_ASPECT} times at most"
        )


def read_header(path: str | bytes, where: str = "") -> ImageHeader:
    """Returns the size and the EXIF orientation of an image file, a path or bytes; decodes nothing.

    Pillow turns TIFFs upright as it decodes them, so they have no orientation left.

    Raises:
        InputError: Not even its header can be read.
    """
    try:
        with quiet_pillow(), open_file(path) as image:
            orientation = next((one for one in _TURNS if one == _orientation(image)), 1)
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                stored = ImageHeader((image.tag_v2[257], image.tag_v2[256]), orientation)
                return ImageHeader(stored.size_in("upright"))
            return ImageHeader((image.height, image.width), orientation)
    except Exception as error:  # PIL plugins may raise anything on corrupt headers
        raise InputError(f"image {path!r} cannot be opened{where}: {error}") from None


def _upright(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF data say; they are not written back, for damaged ones cannot be."""
    image.load()  # which turns a TIFF by itself
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow raises anything on damaged EXIF data, without which the image is as stored
        return None


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keeps Pillow's warnings, which name no file, from the user's terminal; errors of ours say what matters."""
    _quiet_libtiff()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.cache
def _quiet_libtiff() -> None:
    """Keeps the messages of libtiff, which it writes past Python, from the terminal, where Pillow's can be reached."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(Image.core.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def open_file(file: Any, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Opens an image file, a path or bytes, without decoding it; formats: those that are tried, all by default.

    PNGs are opened without the texts and the colour profile that Pillow would unpack first, and refuse when long.
    """
    if isinstance(file, (bytes, bytearray, memoryview)):
        data = bytes(file)
    else:
        with open(file, "rb") as stream:
            head = stream.read(len(_PNG))
            if head != _PNG and stream.seekable():
                return Image.open(file, formats=formats)
            data = head + stream.read()
    if not data.startswith(_PNG):
        return Image.open(io.BytesIO(data), formats=formats)
    image = Image.open(io.BytesIO(_without_texts(data)), formats=formats)
    depth, key = data[24], image.info.get("transparency")
    if depth in (2, 4) and isinstance(key, int):  # Pillow scales the greys to 8 bits, but not the transparent one
        image.info["transparency"] = key * 255 // (2**depth - 1)
    elif depth == 16 and isinstance(key, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in key)
    return image


def _without_texts(png: bytes) -> bytes:
    kept, start = [_PNG], len(_PNG)
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4], "big")
        is_text, body = png[start + 4 : start + 8] in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"), png[start + 8 : end]
        if not is_text or (body.startswith(_HOLDS_ORIENTATION) and len(body) <= _MAX_TEXT):
            kept.append(png[start:end])
        start = end
    return b"".join(kept)


def unreadable_kind(file: Any) -> tuple[str, str]:
    """Returns what a file that is no readable image is by its first bytes, and what to do; empty where unknown."""
    head = file
    if not isinstance(file, (bytes, bytearray, memoryview)):
        try:
            with open(file, "rb") as stream:
                head = stream.read(_HEAD)
        except (OSError, TypeError):
            return "", ""
    known = (one for one in _KINDS if re.match(one[0], bytes(head[:_HEAD]), re.DOTALL | re.IGNORECASE))
    return next(known, (b"", "", ""))[1:]


def _to_rgb(image: Image.Image, ignore_alpha: bool) -> Image.Image:
    transparent = image.has_transparency_data and not ignore_alpha
    if image.mode.startswith("I") or image.mode == "F":  # PIL would cut these greys off at 255
        grey = np.asarray(image)
        levels = _eight_bits(grey)
        if transparent:
            levels[grey == image.info["transparency"]] = 255
        return Image.fromarray(levels).convert("RGB")
    if transparent:
        pixels = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels)
    return image.convert("RGB")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Returns greys as uint8: of 8, 16 or more bits, or 10 to 14, as the largest tells; or floats in [0, 1]."""
    if grey.dtype.kind == "f":
        grey = np.nan_to_num(grey).clip(0, 2**31)
        if grey.max() <= 255:
            return (grey * (255 if grey.max() <= 1 else 1)).round().astype(np.uint8)
    bits = int(grey.max()).bit_length()
    if bits > 16:
        shift = bits - 8
    elif 10 <= bits <= 14:  # cameras have 10, 12 or 14; as 16 bits, these would be nearly black
        shift = bits + bits % 2 - 8
    else:
        shift = 8 if bits > 8 else 0
    return (grey.astype(np.int64) >> shift).clip(0, 255).astype(np.uint8)


def _check_array(image: np.ndarray, where: str) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0:
        raise InputError(f"an image array must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}{where}")
    if image.ndim == 3 and image.shape[2] not in (3, 4):
        raise InputError(f"an image array must have 3 channels (RGB), got {image.shape[2]}{where}")
    return np.ascontiguousarray(image)


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
    if pipeline == "detection":
        resized = _resize_bilinear(image, size)
    else:  # CLIP's way: the shorter side gets the size, and the longer one is rounded down
        width, height = (int(size * side / min(image.size)) for side in image.size)
        resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
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
