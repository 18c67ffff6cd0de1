"""Image files opened by Pillow: without its warnings or the texts of PNGs; what it cannot read is named by its kind."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any

from PIL import Image

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
