"""What there is to know about an image file: whether it opens, its size, and what it looks like."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gpt4roi.errors import InputError
from gpt4roi.processing.images import load_image, read_header

_LOOK_SIDE = 32
_LOOK_BITS = 8
_FLAT = 2.0
"""Images with less contrast than this many grey levels look like any other flat one and are not compared."""


@dataclass(frozen=True)
class ImageFacts:
    """What a look at an image file gives.

    size: (height, width) as stored; sideways: whether EXIF data turn it by a quarter; error: why it cannot be used.
    content: a hash of its bytes; look: a 64-bit hash of its coarse look, which survives another size or quality.
    """

    size: tuple[int, int] | None = None
    sideways: bool = False
    error: str = ""
    missing: bool = False
    content: str = ""
    look: int | None = None

    def shown_size(self, pipeline: str) -> tuple[int, int] | None:
        """Returns the (height, width) in which a pipeline opens it."""
        if self.size is None or pipeline != "detection" or not self.sideways:
            return self.size
        return self.size[::-1]


def read_facts(path: str) -> ImageFacts:
    """Reads the size and the rotation without decoding; without a size where even that fails."""
    try:
        size, sideways = read_header(path)
    except InputError:  # examine() says what is wrong with it
        return ImageFacts()
    return ImageFacts(size, sideways)


def examine(path: str) -> ImageFacts:
    """Reads and decodes an image as training does, and hashes it."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return ImageFacts(missing=True, error=f"image {path!r} not found")
    except (OSError, ValueError) as error:
        return ImageFacts(error=f"image {path!r} cannot be read: {getattr(error, 'strerror', None) or error}")
    if not data:
        return ImageFacts(error=f"image {path!r} is an empty file")
    header = read_facts(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = load_image(path)
    except InputError as error:
        return ImageFacts(header.size, header.sideways, error=str(error))
    content = hashlib.blake2b(data, digest_size=16).hexdigest()
    return ImageFacts((image.height, image.width), header.sideways, content=content, look=_look(image))


def _look(image: Image.Image) -> int | None:
    """Hashes the signs of the lowest frequencies of the grey image (a perceptual hash by cosine transform)."""
    grey = image.convert("L").resize((_LOOK_SIDE, _LOOK_SIDE), Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.float64)
    if values.std() < _FLAT:
        return None
    low = (_COSINES @ values @ _COSINES.T).reshape(-1)
    bits = low > np.median(low[1:])
    return int("".join("1" if bit else "0" for bit in bits), 2)


_COSINES = np.cos(np.pi * np.outer(np.arange(_LOOK_BITS), np.arange(_LOOK_SIDE) + 0.5) / _LOOK_SIDE)
