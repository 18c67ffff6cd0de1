"""The material of the scenes: cut-out images that have a caption, and photographs to lay them on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gpt4roi.errors import InputError

MAX_CAPTION = 40
"""Characters."""
MIN_SIDE = 40
"""Smallest side of a stamp's opaque part, in pixels of its file."""
MAX_ASPECT = 5.0
MIN_OPACITY = 0.15
"""Mean alpha inside the tight box; fainter ones (lightning, fireworks) cannot be seen on a photograph."""
KEPT_SIDE = 192
"""Stamps are kept no larger than this (longest side, pixels), which is enough for scenes of 256."""
ALPHA_THRESHOLD = 32
"""A pixel belongs to a stamp when its alpha (of 255) is greater."""

TRAIN_PHOTOGRAPHS = ("astronaut", "coffee", "rocket", "hubble_deep_field", "camera", "brick", "grass", "ihc")
HELD_OUT_PHOTOGRAPHS = ("chelsea", "motorcycle_left", "gravel")

_FOLDERS_LEFT_OUT = re.compile(r"(^|/)(symbols|flags|cartoon)(/|$)")
_JOKES = ("plants/trees/rambutan", "seasonal/halloween/grave-h")
"""Captions that do not name what the image shows ("an alien tree", "another tombstone")."""
_SENTENCE = re.compile(r"\b(is|are|it's|we|you|your|this|lets|last|they|resembles|means)\b", re.IGNORECASE)
_ARTICLE = re.compile(r"^(a|an|the|two|some|our)\b")
_PROPER_NAMES = ("Edward", "George", "Santa", "Grandma's")


@dataclass(frozen=True)
class Stamp:
    """A cut-out image; image: RGBA, cropped to its opaque part. kind: the top folder it came from."""

    name: str
    kind: str
    caption: str
    image: Image.Image


@dataclass(frozen=True)
class Photograph:
    """A background; image: RGB."""

    name: str
    image: Image.Image


def clean_caption(line: str) -> str | None:
    """Returns the short noun phrase that a description line begins with, or None where it does not name a thing."""
    text = line.strip().replace("’", "'")
    text = re.sub(r"[“”\"]|(?<!\w)'|'(?!\w)", "", text)
    text = re.split(r"\s*\(|[.!?]\s|—|, (?:also|from|which|a|the)\s", text)[0]
    text = text.strip().rstrip(".!?,:").strip()
    if not text or len(text) > MAX_CAPTION or _SENTENCE.search(text):
        return None
    if text.split()[0] not in _PROPER_NAMES:
        text = text[0].lower() + text[1:]
    text = re.sub(r"^an (?=h(?!our|onest))", "a ", text)
    exclaims_or_tells = "!" in line or line.count(" ") > 3
    return None if exclaims_or_tells and not _ARTICLE.match(text) else text


def crop_to_opaque(image: Image.Image, kept_side: int = KEPT_SIDE) -> Image.Image | None:
    """Returns an RGBA image cropped to its opaque part and no larger than kept_side; None where nothing is opaque."""
    image = image.convert("RGBA")
    bounds = image.getchannel("A").point(lambda alpha: 255 * (alpha > ALPHA_THRESHOLD)).getbbox()
    if bounds is None:
        return None
    image = image.crop(bounds)
    scale = kept_side / max(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return image


def _usable(image: Image.Image, size: tuple[int, int]) -> bool:
    if min(size) < MIN_SIDE or max(size) / min(size) > MAX_ASPECT:
        return False
    return float(np.asarray(image.getchannel("A")).mean()) / 255 >= MIN_OPACITY


def load_stamps(folder: Path) -> list[Stamp]:
    """Reads the stamps under folder that name a thing and are large enough, in the order of their paths.

    Raises:
        InputError: one does not open, or fewer than 50 can be used: this is not the folder of stamps.
    """
    stamps = []
    for path in sorted(folder.rglob("*.png")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        described = path.with_suffix(".txt")
        if _FOLDERS_LEFT_OUT.search(name) or name in _JOKES or not described.exists():
            continue
        caption = clean_caption(described.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0])
        # Road signs are captioned with what they tell, in a word.
        if caption is None or ("roadsigns/" in name and not _ARTICLE.match(caption)):
            continue
        try:
            with Image.open(path) as opened:
                cropped = crop_to_opaque(opened, kept_side=1 << 16)
        except OSError as error:
            # Scenes without it would be others, and so would be the figures.
            raise InputError(f"{path}: the stamp does not open ({error}); delete {folder} and run again") from None
        if cropped is None or not _usable(cropped, cropped.size):
            continue
        reduced = crop_to_opaque(cropped)
        if reduced is not None:
            stamps.append(Stamp(name, name.split("/")[0], caption, reduced))
    if len(stamps) < 50:
        raise InputError(
            f"{len(stamps)} usable stamps under {folder}, expected some 340; delete the folder and run again"
        )
    return stamps


def load_photographs(folder: Path, names: Sequence[str]) -> list[Photograph]:
    """Opens the named photographs of folder, whatever their file type.

    Raises:
        InputError: one of them is missing.
    """
    photographs = []
    for name in names:
        path = next(iter(sorted(folder.glob(f"{name}.*"))), None)
        if path is None:
            raise InputError(f"the photograph {name} is missing in {folder}; delete the folder and run again")
        with Image.open(path) as opened:
            photographs.append(Photograph(name, opened.convert("RGB")))
    return photographs
