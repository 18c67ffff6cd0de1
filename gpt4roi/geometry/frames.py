"""Frames of images: whether boxes are of the image as it is seen upright or as it is stored, and the way between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.structures import ImagePipeline

Frame = Literal["upright", "stored"]
FRAMES: tuple[Frame, ...] = get_args(Frame)
_LARGEST = 10_000_000
"""No image has a longer side; larger numbers are damage."""
FRAME_OPTIONS = ("auto", *FRAMES)


def oriented_size(size: tuple[int, int], exif_rotated: bool) -> tuple[int, int]:
    """Returns the (height, width) of an image of a stored size once it was turned by a quarter, or was not."""
    return size[::-1] if exif_rotated else size


@dataclass(frozen=True)
class ImageHeader:
    """What the head of an image file says.

    Attributes:
        size: (height, width) of the pixels as they are stored.
        orientation: EXIF orientation, 1 to 8; 1 where the file is read upright whatever is done.
    """

    size: tuple[int, int]
    orientation: int = 1

    def size_in(self, frame: Frame) -> tuple[int, int]:
        """Returns the (height, width) in a frame; orientations 5 to 8 exchange the sides."""
        return oriented_size(self.size, frame == "upright" and self.orientation >= 5)

    def size_read_by(self, pipeline: ImagePipeline) -> tuple[int, int]:
        """Returns the (height, width) in which an image pipeline opens it."""
        return self.size_in("upright" if pipeline == "detection" else "stored")


@dataclass(frozen=True)
class FrameClues:
    """What an annotation file says about the frame of the boxes of one image.

    Attributes:
        size: (height, width) of the image that the boxes were made for.
        frame: The frame, where the entry or the file's exporter says it.
        default: The frame where nothing tells it.
    """

    size: tuple[int, int] | None = None
    frame: Frame | None = None
    default: Frame = "upright"


@dataclass(frozen=True)
class BoxFrame:
    """The frame of the boxes of one image.

    Attributes:
        header: Of the image.
        frame: Of the boxes.
        scale: What they are multiplied by to be pixels of the image.
        assumed: Nothing told the frame of an image that its EXIF data turn or mirror.
        image: The image's name.
    """

    header: ImageHeader
    frame: Frame
    scale: float = 1.0
    assumed: bool = False
    image: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Returns the (height, width) of the image in the frame of the boxes."""
        return self.header.size_in(self.frame)

    @property
    def box_size(self) -> tuple[int, int]:
        """Returns the (height, width) of the image in the unit of the boxes."""
        height, width = self.size
        return (height, width) if self.scale == 1 else (round(height / self.scale), round(width / self.scale))

    @property
    def pipeline(self) -> ImagePipeline:
        """Returns the image pipeline that opens the image in the frame of the boxes."""
        return "detection" if self.frame == "upright" and self.header.orientation != 1 else "dialogue"

    def scaled(self, boxes: np.ndarray) -> np.ndarray:
        """Returns boxes, float[N, 4] xyxy, in pixels of the image in their frame."""
        return boxes if self.scale == 1 else boxes * self.scale

    def upright(self, boxes: np.ndarray) -> np.ndarray:
        """Returns boxes, float[N, 4] xyxy, in pixels of the image as it is seen upright."""
        boxes, orientation = self.scaled(boxes), self.header.orientation
        if self.frame == "upright" or orientation == 1:
            return boxes
        height, width = self.header.size
        x, y = boxes[:, 0::2], boxes[:, 1::2]
        x = width - x if orientation in (2, 3, 7, 8) else x
        y = height - y if orientation in (3, 4, 6, 7) else y
        x, y = (y, x) if orientation >= 5 else (x, y)
        return np.stack([x.min(axis=1), y.min(axis=1), x.max(axis=1), y.max(axis=1)], axis=1)

    def upright_mask(self, mask: np.ndarray | None) -> np.ndarray | None:
        """Returns a mask inside a box, as of structures.Regions, as `upright` turns the box."""
        orientation = self.header.orientation
        if mask is None or self.frame == "upright" or orientation == 1:
            return mask
        mask = mask[:, ::-1] if orientation in (2, 3, 7, 8) else mask
        mask = mask[::-1] if orientation in (3, 4, 6, 7) else mask
        return mask.T if orientation >= 5 else mask

    def remarks(self) -> Iterable[str]:
        """Yields under what a summary counts the image; nothing where there was nothing to decide."""
        if self.header.orientation != 1:
            yield self.frame
        if self.scale != 1:
            yield "scaled"
        if self.assumed:
            yield "assumed"


@dataclass(frozen=True)
class FrameRule:
    """How the frame of boxes is found: `--frame` and `--scale-boxes`.

    Attributes:
        frame: What the user says of all boxes; with auto, what the entry or its exporter says, or else what the stated
            size fits. Where it fits both (orientations 2 to 4, squares, no size), the default of the clues.
        scale_boxes: Boxes of an image whose sides both differ by one factor are scaled instead of refused.
    """

    frame: str = "auto"
    scale_boxes: bool = False

    def __post_init__(self) -> None:
        if self.frame not in FRAME_OPTIONS:
            raise InputError(f"frame must be one of {', '.join(FRAME_OPTIONS)}, got {self.frame!r:.60}")

    def place(self, header: ImageHeader, clues: FrameClues, image: str, where: str = "") -> BoxFrame:
        """Returns the frame of the boxes of an image.

        Args:
            header: Of the image.
            clues: What the file says.
            image: The image's name.
            where: Begins the message of an error.

        Raises:
            InputError: The stated size is that of no frame of the image (code size_mismatch).
        """
        said = clues.frame if self.frame == "auto" else next(one for one in FRAMES if one == self.frame)
        fits = [one for one in FRAMES if clues.size in (None, header.size_in(one))]
        scaled = not fits
        if scaled and self.scale_boxes:
            fits = [one for one in FRAMES if _factor(clues.size, header.size_in(one))]
        if not fits or (clues.frame == said == "stored" and said not in fits):  # no tool stores boxes so
            raise InputError(where + _mismatch(header, clues, image), code="size_mismatch")
        frame = said or (clues.default if clues.default in fits else fits[0])
        scale = _factor(clues.size, header.size_in(frame if frame in fits else fits[0])) if scaled else None
        assumed = said is None and len(fits) > 1 and header.orientation != 1
        return BoxFrame(header, frame, scale or 1.0, assumed, image)


def _factor(stated: tuple[int, int] | None, size: tuple[int, int]) -> float | None:
    """Returns what a stated size is multiplied by to be another, up to rounding; None where the sides disagree."""
    if stated is None or max(stated) > _LARGEST:
        return None
    low = max((told - 1) / side for told, side in zip(stated, size, strict=True))
    high = min((told + 1) / side for told, side in zip(stated, size, strict=True))
    return max(size) / max(stated) if low <= high else None


def _mismatch(header: ImageHeader, clues: FrameClues, image: str) -> str:
    upright, stored = (header.size_in(frame) for frame in FRAMES)
    size = _text(stored) if upright == stored else f"{_text(stored)} as stored and {_text(upright)} as seen upright"
    advice = "the boxes belong to another image"
    factor = _factor(clues.size, upright) or _factor(clues.size, stored)
    if factor not in (None, 1.0):
        switch = "--scale-boxes of caption, describe, evaluate and data convert"
        advice = f"both sides differ by the factor {factor:.4g}; {switch} scales the boxes"
    return f"the file says {_text(clues.size or (0, 0))}, image {image!r} is {size} (width x height); {advice}"


def _text(size: tuple[int, int]) -> str:
    return " x ".join(str(side) if side <= _LARGEST else "too many" for side in size[::-1])


def frame_of_exporter(content: Any) -> Frame | None:
    """Returns the frame of a file's boxes where its exporter is known to write sizes that do not tell it.

    Label Studio writes boxes of the upright image beside the size of the stored one; Grounded-SAM-2 reads images
    without their EXIF data.
    """
    if not isinstance(content, Mapping):
        return None
    info = content.get("info")
    contributor = info.get("contributor") if isinstance(info, Mapping) else None
    if isinstance(contributor, str) and "label studio" in contributor.lower():
        return "upright"
    return "stored" if "box_format" in content and "img_width" in content else None


def frame_of_pipeline(pipeline: str | None) -> Frame | None:
    """Returns the frame in which an image pipeline, also by its name of version 0.1, opens images; None for none."""
    return None if pipeline is None else "upright" if pipeline in ("detection", "bilinear") else "stored"


@dataclass
class FrameCounts:
    """Counts images by what was decided about their boxes, and names the first of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, remarks: Iterable[str], image: str) -> None:
        """Counts an image under the remarks of its BoxFrame."""
        for remark in remarks:
            self.counts[remark] += 1
            self.first.setdefault(remark, image)

    def as_dict(self) -> dict[str, int]:
        """Returns the numbers of all kinds."""
        return {kind: self.counts[kind] for kind in _SAID}

    def text(self) -> str:
        """Returns what a summary says, "" where there was nothing to decide."""
        said = [
            f"{self.counts[kind]} {words} (such as {self.first[kind]})"
            for kind, words in _SAID.items()
            if self.counts[kind]
        ]
        return f"images: {', '.join(said)}" if said else ""


_SAID = {
    "upright": "turned upright by their EXIF data",
    "stored": "taken as stored",
    "scaled": "with scaled boxes",
    "assumed": "whose file does not tell which (--frame upright|stored)",
}
