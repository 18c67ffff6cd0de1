"""RegionSample, Turn and Augmentation: the records that data sets, processor, evaluation and demo share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np

from gpt4roi.errors import InputError

MASK_SIZE = 28
"""r: cells a side of a region's mask. A multiple of what encoders pool, each of whose cells is then a mean of some."""

Role = Literal["user", "assistant"]
ImagePipeline = Literal["detection", "dialogue"]
_PIPELINES: dict[str, ImagePipeline] = {
    "detection": "detection",
    "dialogue": "dialogue",
    "bilinear": "detection",
    "bicubic": "dialogue",
}
"""The last two are the names of version 0.1, which files and lists of data sets may still hold."""

Function = TypeVar("Function", bound=Callable[..., Any])


def as_image_pipeline(name: Any, where: str = "") -> ImagePipeline:
    """Returns the image pipeline of a name, also of its name in version 0.1 (bilinear, bicubic).

    Raises:
        InputError: There is no such pipeline; `where` begins the message.
    """
    pipeline = _PIPELINES.get(name) if isinstance(name, str) else None
    if pipeline is None:
        raise InputError(f"{where}image_pipeline must be 'detection' or 'dialogue', got {name!r:.60}")
    return pipeline


def accepts_old_names(**new_of_old: str) -> Callable[[Function], Function]:
    """Decorates a function so that it takes keyword arguments by their names of version 0.1 as well (old=new)."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **{new_of_old.get(name, name): value for name, value in kwargs.items()})

        return cast(Function, call)

    return decorate


@dataclass(frozen=True)
class Turn:
    """One message of a dialogue.

    Attributes:
        text: May hold `<image>` (the image), `<region1>` (a mention of box 1) or bare `<bbox>` (the next box in order).
    """

    role: Role
    text: str

    def __post_init__(self) -> None:
        if self.role not in ("user", "assistant"):
            raise InputError(f"a turn's role must be 'user' or 'assistant', got {self.role!r}")
        if not isinstance(self.text, str):
            raise InputError(f"a turn's text must be a string, got {type(self.text).__name__}")


@dataclass(frozen=True)
class Augmentation:
    """Augmentation parameters sampled by the data set for one epoch, applied to the resized image and to the boxes.

    Attributes:
        shift: (dx, dy) in input pixels; uncovered pixels are black.
        flip: Mirror left and right, after the shift.
    """

    shift: tuple[int, int] = (0, 0)
    flip: bool = False


@dataclass(frozen=True)
class Regions:
    """Regions of one image: boxes, and the masks inside them; slices, and joins by `+`.

    Attributes:
        boxes_px: float64[N, 4], xyxy in pixels.
        masks: For each box a mask, float32[r, r] in [0, 1]: the share of each cell of the box that lies inside the
            region, row by row; None where all of it does. Empty where there is no mask at all.
    """

    boxes_px: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), dtype=np.float64))
    masks: tuple[np.ndarray | None, ...] = ()

    def __len__(self) -> int:
        return len(self.boxes_px)

    def __getitem__(self, rows: slice) -> Regions:
        return Regions(self.boxes_px[rows], self.masks[rows])

    def take(self, rows: Sequence[int]) -> Regions:
        """Returns some regions, by their indices and in their order."""
        return Regions(self.boxes_px[list(rows)], tuple(self.masks[row] for row in rows) if self.masks else ())

    def __add__(self, other: Regions) -> Regions:
        masks = (one.masks or (None,) * len(one) for one in (self, other))
        joined = sum(masks, ()) if self.masks or other.masks else ()
        return Regions(np.concatenate([self.boxes_px, other.boxes_px]), joined)


@dataclass(frozen=True)
class RegionSample:
    """An image, boxes on it and a dialogue about them.

    Attributes:
        image: Path, PIL image, uint8 array [H, W, 3] (RGB), or None for text alone.
        turns: Alternate as the data has them; answers may be empty only where one is to be generated.
        boxes_px: float[N, 4], xyxy, in pixels of the user's own image (after EXIF rotation in the `detection`
            pipeline, before it in `dialogue`); in fractions of the image where `box_frame` is "unit". Or Regions, which
            bring their masks.
        image_pipeline: How the image becomes a tensor. `detection`: upright by EXIF, resized straight to the square
            (bilinear), boxes clipped. `dialogue`: the stored pixels, CLIP's resize (bicubic), boxes as they are.
        independent_turns: Every question-answer pair is a conversation of its own that shares only the image; pairs
            cannot see each other, and each introduces its regions anew.
        region_texts: What the data call each box, one text a box ("" for none), where they name any.
        source: Where it comes from, as `file#index`; part of every error message.
        ignore_alpha: Opens transparent pixels with the colours that they hold, as the original did, not as white.
        masks: As of Regions; for models whose region_shape is `mask`.
    """

    image: Any
    turns: tuple[Turn, ...]
    boxes_px: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), dtype=np.float64))
    box_frame: Literal["pixels", "unit"] = "pixels"
    image_pipeline: ImagePipeline = "dialogue"
    augmentation: Augmentation | None = None
    independent_turns: bool = False
    region_texts: tuple[str, ...] = ()
    source: str = ""
    ignore_alpha: bool = False
    masks: tuple[np.ndarray | None, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.boxes_px, Regions):
            object.__setattr__(self, "masks", self.boxes_px.masks)
            object.__setattr__(self, "boxes_px", self.boxes_px.boxes_px)
        boxes = np.asarray(self.boxes_px, dtype=np.float64)
        if boxes.size == 0:
            boxes = boxes.reshape(0, 4)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise InputError(f"boxes must be [N, 4] (x1, y1, x2, y2), got shape {tuple(boxes.shape)}{self.where}")
        if not np.isfinite(boxes).all():
            raise InputError(f"boxes must be finite numbers, got {boxes.tolist()}{self.where}")
        object.__setattr__(self, "boxes_px", boxes)
        object.__setattr__(self, "masks", self._checked_masks() if len(self.masks) else ())
        object.__setattr__(self, "turns", tuple(self.turns))
        object.__setattr__(self, "image_pipeline", as_image_pipeline(self.image_pipeline))
        if self.box_frame not in ("pixels", "unit"):
            raise InputError(f"box_frame must be 'pixels' or 'unit', got {self.box_frame!r}")
        if isinstance(self.image, Path):
            object.__setattr__(self, "image", str(self.image))

    def _checked_masks(self) -> tuple[np.ndarray | None, ...]:
        if len(self.masks) != len(self.boxes_px):
            raise InputError(f"{len(self.masks)} masks for {len(self.boxes_px)} boxes{self.where}; give None for a box")
        masks = tuple(None if mask is None else np.asarray(mask, dtype=np.float32) for mask in self.masks)
        for number, mask in enumerate(masks, start=1):
            if mask is not None and (mask.shape != (MASK_SIZE, MASK_SIZE) or not (mask >= 0).all() or mask.max() > 1):
                expected = f"[{MASK_SIZE}, {MASK_SIZE}] in [0, 1], as of geometry.masks.to_raster"
                raise InputError(f"mask {number} must be {expected}; got shape {list(mask.shape)}{self.where}")
            if mask is not None and not mask.any():
                raise InputError(f"the mask is empty: no pixel lies inside of region {number}{self.where}")
        return masks

    @property
    def where(self) -> str:
        """Where the sample comes from, as the end of a message."""
        return f" in {self.source}" if self.source else ""

    @property
    def picture_pipeline(self) -> str:
        """Returns image_pipeline by its name of version 0.1."""
        return {"detection": "bilinear", "dialogue": "bicubic"}[self.image_pipeline]


setattr(RegionSample, "__init__", accepts_old_names(picture_pipeline="image_pipeline")(RegionSample.__init__))  # noqa: B010
