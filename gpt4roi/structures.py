"""The records that data sets, processor, evaluation and page share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gpt4roi.errors import InputError

Role = Literal["user", "assistant"]
PicturePipeline = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Turn:
    """One step of a dialogue.

    text: may hold `<image>` (the image), `<region1>` (a mention of box 1) or bare `<bbox>` (the next box in order).
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
    """What a reader drew for one visit; the processor applies it to the resized image and to the boxes.

    shift: (dx, dy) in input pixels, uncovered pixels are black; flip: mirror left and right, after the shift.
    """

    shift: tuple[int, int] = (0, 0)
    flip: bool = False


@dataclass(frozen=True)
class RegionSample:
    """An image, boxes on it and a dialogue about them.

    image: path, PIL image, uint8 array [H, W, 3] (RGB), or None for text alone.
    turns: alternate as the data has them; answers may be empty only where one is to be generated.
    boxes_px: float[N, 4], xyxy, in pixels of the user's own image (as shown: after EXIF rotation in the `bilinear`
        pipeline, before it in `bicubic`); in fractions of the image where `box_frame` is "unit".
    picture_pipeline: which of the two ways an image becomes a tensor: `bilinear` (detection data: straight resize,
        boxes clipped) or `bicubic` (dialogue data and inference: CLIP's resize, boxes as they are).
    independent_turns: every question-answer pair is a conversation of its own that shares only the image; pairs
        cannot see each other, and each introduces its regions anew.
    region_texts: what the data call each box, one text a box ("" for none), where they name any.
    source: where it comes from, as `file#index`; ends up in every error message.
    """

    image: Any
    turns: tuple[Turn, ...]
    boxes_px: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), dtype=np.float64))
    box_frame: Literal["pixels", "unit"] = "pixels"
    picture_pipeline: PicturePipeline = "bicubic"
    augmentation: Augmentation | None = None
    independent_turns: bool = False
    region_texts: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes_px, dtype=np.float64)
        if boxes.size == 0:
            boxes = boxes.reshape(0, 4)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise InputError(f"boxes must be [N, 4] (x1, y1, x2, y2), got shape {tuple(boxes.shape)}{self._where()}")
        if not np.isfinite(boxes).all():
            raise InputError(f"boxes must be finite numbers, got {boxes.tolist()}{self._where()}")
        object.__setattr__(self, "boxes_px", boxes)
        object.__setattr__(self, "turns", tuple(self.turns))
        if self.picture_pipeline not in ("bilinear", "bicubic"):
            raise InputError(f"picture_pipeline must be 'bilinear' or 'bicubic', got {self.picture_pipeline!r}")
        if self.box_frame not in ("pixels", "unit"):
            raise InputError(f"box_frame must be 'pixels' or 'unit', got {self.box_frame!r}")
        if isinstance(self.image, Path):
            object.__setattr__(self, "image", str(self.image))

    def _where(self) -> str:
        return f" in {self.source}" if self.source else ""
