"""RegionDataset, the interface of every data set reader, and the records it returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from gpt4roi.structures import RegionSample


def exceeds_bad_fraction(lost: int, total: int, max_bad_fraction: float) -> bool:
    """Tells whether a training stops because `lost` of `total` samples or annotations cannot be used.

    A single one never stops it, however few there are.
    """
    return lost > max(1, max_bad_fraction * total)


def joint_loss(faults: int, annotations: int, lost: int, samples: int) -> tuple[int, int]:
    """Joins annotations that are left out for their faults and samples that cannot be used, one loss by the other.

    Returns:
        How much is lost, of how much, as `exceeds_bad_fraction` takes them.
    """
    annotations, samples = max(annotations, 1), max(samples, 1)
    return annotations * samples - (annotations - faults) * (samples - lost), annotations * samples


@dataclass(frozen=True)
class Drop:
    """One thing of an annotation file that was left out when the index was made.

    Attributes:
        reason: The same words for the same kind of fault, as counted in `dropped`.
        where: `file#annotations[17]`, `file#images[3]` or, in files of lines, `file#12`.
        detail: For an annotation that is wrong in itself, the whole message: place, what came, what was expected;
            empty where only a rule of the data set left it out (crowds, captions of one word).
    """

    reason: str
    where: str
    detail: str = ""


@dataclass(frozen=True)
class Item:
    """What the annotation files say about one item, before anything is drawn: for checks, statistics and converters.

    Attributes:
        image: Path of the image; None for text alone.
        boxes_px: float64[N, 4] xyxy, in pixels, or in fractions of the image where box_frame is "unit"; the numbers as
            the file has them, neither clipped nor rounded.
        image_size: (height, width) as the file tells it, None if it does not.
        region_texts: One text a box, what the data call it; "" where they do not; empty where no box is named.
        box_sources: One place a box, as `Drop.where`.
        caption: A text about the whole image or expression, or "".
        source: The item's own place, as `Drop.where`.
    """

    image: str | None
    boxes_px: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), dtype=np.float64))
    box_frame: Literal["pixels", "unit"] = "pixels"
    image_size: tuple[int, int] | None = None
    region_texts: tuple[str, ...] = ()
    box_sources: tuple[str, ...] = ()
    caption: str = ""
    source: str = ""


class RegionDataset:
    """A list of images with boxes and the dialogues drawn about them.

    A subclass makes its index in the constructor and drops there what cannot be used:

    - `dropped` counts it, reason -> number; `drops()` lists each with file and position.
    - `item(i)` is what the files say about item i; `sample(i, rng)` is a dialogue drawn about it, a pure function of
      its arguments that never hands out another item instead. Both raise InputError, with file and position, where
      something that is only opened then (an image's own annotation file) cannot be used.
    - `files` are the annotation files it was made of.
    """

    name: str = ""
    files: tuple[Path, ...] = ()

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()

    def __len__(self) -> int:
        raise NotImplementedError

    def sample(self, index: int, rng: np.random.Generator) -> RegionSample:
        """Draws the dialogue of item `index`; every random choice comes from `rng`."""
        raise NotImplementedError

    def unaugmented(self) -> RegionDataset:
        """Returns the same data set, whose samples are neither shifted nor mirrored and hold all their boxes."""
        return self

    def item(self, index: int) -> Item:
        """Returns what the annotation files say about item `index`."""
        raise NotImplementedError

    def drops(self) -> Iterator[Drop]:
        """Lists what was dropped, in the order of the files."""
        return iter(())

    def faults(self) -> tuple[int, int]:
        """Returns how many annotations were dropped because they are wrong in themselves, and how many there were."""
        wrong = sum(1 for drop in self.drops() if drop.detail)
        return wrong, len(self) + wrong

    def region_texts(self, index: int) -> dict[int, str]:
        """Returns the text that names each box of item `index` (box number from 0 -> text), where the data say so.

        Boxes are numbered as in `item`; a sample, whose boxes may stand in another order, carries its own.
        """
        return {box: text for box, text in enumerate(self.item(index).region_texts) if text}
