"""Duplicate images: twice in a set, or in training and evaluation both (leakage)."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from gpt4roi.data_check.findings import Finding
from gpt4roi.data_check.images import ImageFacts

_COCO_NAME = re.compile(r"(?:^|[/_])(\d{12})\.\w+$")
_BANDS = 4
_BAND_BITS = 16
_NEAR_BITS = _BANDS - 1
"""Two hashes that differ in no more bits agree in one of the bands at least, so that only those need comparing."""


def duplicates(images: Mapping[str, ImageFacts]) -> Iterator[Finding]:
    """Finds files of one set that are equal byte by byte, or look the same; links to one file are one image."""
    first: dict[str, str] = {}
    single: dict[str, ImageFacts] = {}
    for path, facts in images.items():
        before = first.setdefault(facts.content, path) if facts.content else path
        if before == path:
            single[path] = facts
        elif os.path.realpath(before) != os.path.realpath(path):
            message = f"{path} and {before} are the same, byte by byte"
            yield Finding("picture_duplicate", path, message, image=path)
    bands = _Bands()
    for path, facts in single.items():
        for other in bands.near(facts):
            yield Finding("picture_alike", path, f"{path} looks the same as {other}", image=path)
            break
        bands.add(path, facts)


def leaks(training: Mapping[str, ImageFacts], evaluation: Mapping[str, ImageFacts]) -> Iterator[Finding]:
    """Finds evaluation images that are training images too: the same file, COCO number, bytes, or look.

    COCO's releases name one image in several ways (`COCO_train2014_000000000009.jpg`, `000000000009.jpg`).
    """
    by_key: dict[str, str] = {}
    bands = _Bands()
    for path, facts in training.items():
        for key in _keys(path, facts):
            by_key.setdefault(key, path)
        bands.add(path, facts)
    for path, facts in evaluation.items():
        same = next(((key, by_key[key]) for key in _keys(path, facts) if key in by_key), None)
        if same is not None:
            same = same[0].partition(" ")[0].replace("-", " "), same[1]
        else:
            same = next((("look", other) for other in bands.near(facts)), None)
        if same is not None:
            message = f"evaluation image {path} is the training image {same[1]} (same {same[0]})"
            yield Finding("leakage", path, message, image=path)


def _keys(path: str, facts: ImageFacts) -> Iterator[str]:
    """What an image is known by; the word in front says how."""
    yield f"file {os.path.realpath(path)}"
    if facts.content:
        yield f"bytes {facts.content}"
    number = _COCO_NAME.search(path)
    if number:
        yield f"COCO-number {number[1]}"


class _Bands:
    """Finds perceptual hashes that differ in a few bits, without comparing every pair."""

    def __init__(self) -> None:
        self._of_band: dict[tuple[int, int], list[tuple[int, float, str]]] = defaultdict(list)

    def add(self, path: str, facts: ImageFacts) -> None:
        """Adds an image; one without a hash is near no other."""
        if facts.perceptual_hash is not None:
            for band in self._split(facts.perceptual_hash):
                self._of_band[band].append((facts.perceptual_hash, facts.aspect, path))

    def near(self, facts: ImageFacts) -> Iterator[str]:
        """Yields the images of nearly this hash and this shape."""
        if facts.perceptual_hash is None:
            return
        for band in self._split(facts.perceptual_hash):
            for other, aspect, path in self._of_band[band]:
                close = (other ^ facts.perceptual_hash).bit_count() <= _NEAR_BITS
                if close and abs(aspect / facts.aspect - 1) < 0.03:
                    yield path

    @staticmethod
    def _split(bits: int) -> list[tuple[int, int]]:
        return [(band, bits >> (_BAND_BITS * band) & ((1 << _BAND_BITS) - 1)) for band in range(_BANDS)]
