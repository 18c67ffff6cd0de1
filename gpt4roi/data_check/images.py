"""Image facts: whether a file opens, its size and EXIF rotation, a hash of its bytes and a perceptual one."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gpt4roi.errors import InputError
from gpt4roi.geometry.frames import ImageHeader
from gpt4roi.processing.images import load_image, read_header
from gpt4roi.structures import ImagePipeline

_HASH_SIDE = 32
_HASH_BITS = 8
_FLAT = 2.0
"""Images with less contrast than this many grey levels look like any other flat one and are not compared."""


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image file.

    Attributes:
        header: Its size and orientation.
        error: Why it cannot be used.
        content: A hash of its bytes.
        perceptual_hash: 64 bits of its coarse look, which survive another size or quality.
    """

    header: ImageHeader | None = None
    error: str = ""
    missing: bool = False
    content: str = ""
    perceptual_hash: int | None = None

    @property
    def aspect(self) -> float:
        """Width by height; 1 without a size."""
        height, width = self.header.size if self.header else (1, 1)
        return width / height


def read_facts(path: str) -> ImageFacts:
    """Reads the size and the rotation without decoding; without a size where even that fails."""
    try:
        return ImageFacts(read_header(path))
    except InputError:  # examine() says what is wrong with it
        return ImageFacts()


def examine(path: str, pipeline: ImagePipeline = "dialogue") -> ImageFacts:
    """Reads and decodes an image as training does in this pipeline, and hashes it."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return ImageFacts(missing=True, error=f"image {path!r} not found")
    except (OSError, ValueError) as error:
        return ImageFacts(error=f"image {path!r} cannot be read: {getattr(error, 'strerror', None) or error}")
    if not data:
        return ImageFacts(error=f"image {path!r} is an empty file")
    header = read_facts(path).header
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = load_image(path, pipeline)
    except InputError as error:
        return ImageFacts(header, error=str(error))
    content = hashlib.blake2b(data, digest_size=16).hexdigest()
    return ImageFacts(header, content=content, perceptual_hash=_perceptual_hash(image))


def _perceptual_hash(image: Image.Image) -> int | None:
    """Hashes the signs of the lowest frequencies of the grey image (a perceptual hash by cosine transform)."""
    grey = image.convert("L").resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.float64)
    if values.std() < _FLAT:
        return None
    low = (_COSINES @ values @ _COSINES.T).reshape(-1)
    bits = low > np.median(low[1:])
    return int("".join("1" if bit else "0" for bit in bits), 2)


_COSINES = np.cos(np.pi * np.outer(np.arange(_HASH_BITS), np.arange(_HASH_SIDE) + 0.5) / _HASH_SIDE)
