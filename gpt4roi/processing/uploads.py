"""Uploaded images: base64 bytes only, in a few formats, within limits of bytes and pixels."""

from __future__ import annotations

import re
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from gpt4roi.errors import InputError
from gpt4roi.processing.images import open_file, quiet_pillow, unreadable_kind
from gpt4roi.processing.user_input import decode_base64, open_image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What PIL is allowed to try; its other decoders never see a stranger's bytes."""

MAX_STORED_SIDE = 2048
"""Larger images are scaled down to this side once they are opened; the model sees a few hundred pixels."""

MAX_ASPECT = 20
"""How many times longer than the other a side may be: the model's resize keeps the aspect ratio at first."""

DAMAGED = "the image is damaged and cannot be decoded; save it again"

_DATA_URL = re.compile(r"data:(?:(?:image|application)/[a-z0-9.+-]{1,20})?;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What one upload may weigh: bytes of the file, pixels of the image."""

    max_bytes: int = 12 * 2**20
    max_pixels: int = 40_000_000

    @property
    def max_megabytes(self) -> int:
        """The limit of bytes in MB, for messages."""
        return self.max_bytes // 2**20


@dataclass(frozen=True)
class Upload:
    """An opened image, RGB and upright.

    Attributes:
        own_size: The size (width, height) that it had before it was scaled down.
        file_name: What its file is called, without folders and extension.
    """

    image: Image.Image
    own_size: tuple[int, int]
    file_name: str = ""


def file_stem(name: object) -> str:
    """Returns the name of a user's file without folders, extension and control characters; empty where it has none."""
    if not isinstance(name, str):
        return ""
    stem = re.split(r"[/\\]", name)[-1].rpartition(".")
    return "".join(letter for letter in stem[0] or stem[2] if letter.isprintable())[:120].strip()


def open_upload(data: object, limits: Limits = Limits(), name: object = "") -> Upload:
    """Opens an image that came as base64, with or without `data:image/…;base64,` before it.

    Nothing else is accepted: a path or a URL is text that is not base64, and is never opened. name: of the user's file.

    Raises:
        InputError: It is no image within the limits.
    """
    raw = _decode(data, limits)
    try:
        with quiet_pillow(), open_file(raw, FORMATS) as image:
            _check_size(image.size, limits)
            upright = _decoded(image)
    except UnidentifiedImageError:
        kind = unreadable_kind(raw)[0]
        fault = f"{kind}, which cannot be read here" if kind else "no image that can be read"
        raise InputError(f"this is {fault}; send {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise InputError(f"the image has too many pixels; at most {limits.max_pixels:,} are taken") from None
    except InputError:
        raise
    except Exception:  # PIL plugins may raise anything on corrupt files
        raise InputError(DAMAGED) from None
    return scaled(upright, file_stem(name))


def scaled(image: Image.Image, file_name: str = "") -> Upload:
    """Scales an image down to MAX_STORED_SIDE, and keeps its own size, in whose pixels boxes are given."""
    own_size = image.size
    if max(own_size) > MAX_STORED_SIDE:
        image = image.copy()
        image.thumbnail((MAX_STORED_SIDE, MAX_STORED_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return Upload(image, own_size, file_name)


def _decode(data: object, limits: Limits) -> bytes:
    if not isinstance(data, str) or not data:
        raise InputError("there is no image in the request; send its bytes as base64 text")
    start = _DATA_URL.match(data)
    text = data[start.end() :] if start else data
    if len(text) * 3 // 4 > limits.max_bytes + 2:
        raise InputError(f"the image has {len(text) * 3 // 4:,} bytes; at most {limits.max_megabytes} MB are taken")
    try:
        return decode_base64(text)
    except ValueError:
        raise InputError("the image is not base64 text; send its bytes, not a path or an address") from None


def _decoded(image: Image.Image) -> Image.Image:
    try:
        return open_image(image)
    except InputError:  # its message is for files and arrays
        raise InputError(DAMAGED) from None


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise InputError(
            f"the image has {width} x {height} pixels; at most {limits.max_pixels:,} are taken: make it smaller"
        )
    if max(size) > MAX_ASPECT * min(size):
        raise InputError(f"the image has {width} x {height} pixels; its sides may differ {MAX_ASPECT} times at most")
