"""Pictures, boxes and questions as people give them, checked: wrong ones raise InputError with the next step."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from gpt4roi.constants import REGION_TOKEN
from gpt4roi.errors import InputError
from gpt4roi.pictures import load_image

_MENTION = re.compile(r"<region(\d+)>")
_SHORT_MENTION = re.compile(r"<(\d+)>")

BORDER_SLACK_PX = 1.0
"""How far a box may reach over the picture's border: annotation files round."""


def open_picture(image: Any) -> Image.Image:
    """Opens a picture as RGB and upright, so that boxes are in pixels of what people see.

    image: path, PIL picture, encoded file as bytes, or uint8 array [H, W, 3] (RGB).
    Raises InputError where there is no such file or where it is not a picture.
    """
    if isinstance(image, (bytes, bytearray)):
        image = _decode(bytes(image))
    elif isinstance(image, (str, Path)) and Path(image).is_dir():
        raise InputError(f"{image}: is a folder; give one picture inside it")
    return load_image(image, pipeline="bilinear")  # the pipeline that turns pictures upright


def _decode(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise InputError(f"the {len(data)} bytes given are not a picture file that can be read: {error}") from None


def check_boxes(boxes_px: Any, image_size: tuple[int, int], first_number: int = 1) -> np.ndarray:
    """Returns the boxes as float64[N, 4], xyxy in pixels, after checking each.

    image_size: (height, width) of the picture; first_number: what the first box is called in messages.
    Raises InputError naming the box: not four finite numbers, corners exchanged, no area, outside the picture.
    """
    if boxes_px is None or len(boxes_px) == 0:
        return np.zeros((0, 4))
    rows = [_four_numbers(box, number) for number, box in enumerate(boxes_px, start=first_number)]
    for number, box in enumerate(rows, start=first_number):
        _check_box(box, number, image_size)
    return np.asarray(rows, dtype=np.float64)


def _four_numbers(box: Any, number: int) -> list[float]:
    try:
        values = [float(value) for value in box]
    except (TypeError, ValueError):
        raise InputError(f"box {number}: expected four numbers x1, y1, x2, y2, got {box!r:.80}") from None
    if len(values) != 4:
        raise InputError(f"box {number}: expected four numbers x1, y1, x2, y2, got {len(values)}: {values}")
    if not all(map(math.isfinite, values)):
        raise InputError(f"box {number}: expected finite numbers, got {_as_text(values)}")
    return values


def _check_box(box: list[float], number: int, image_size: tuple[int, int]) -> None:
    x1, y1, x2, y2 = box
    height, width = image_size
    what = f"box {number} ({_as_text(box)})"
    if x2 < x1 or y2 < y1:
        raise InputError(f"{what}: corners are exchanged; give x1,y1 (top left) before x2,y2 (bottom right), in pixels")
    if x1 == x2 or y1 == y2:
        raise InputError(f"{what}: has no area; x2 must be greater than x1, and y2 than y1")
    if max(box) <= 1 and min(height, width) > 1:
        raise InputError(f"{what}: looks like fractions; give pixels of the picture, which is {width}x{height}")
    slack = BORDER_SLACK_PX
    if min(x1, y1) < -slack or x2 > width + slack or y2 > height + slack:
        raise InputError(f"{what}: reaches outside the picture, which is {width}x{height} pixels (width x height)")


def _as_text(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def mentioned_regions(question: str) -> list[int]:
    """Returns the numbers of the regions a question mentions, each once, in order of first mention."""
    return list(dict.fromkeys(int(number) for number in _MENTION.findall(question)))


def clean_question(question: Any) -> str:
    """Returns a question without blanks around it, the short mentions `<3>` and `<>` as `<region3>` and `<bbox>`.

    Raises InputError where nothing is asked.
    """
    if not isinstance(question, str) or not question.strip():
        raise InputError('the question is empty; ask something, for example "What is <region1>?"')
    return _SHORT_MENTION.sub(r"<region\1>", question.strip()).replace("<>", REGION_TOKEN)


def one_region_question(question: Any) -> str:
    """Returns a clean question about one region, called `<region1>`.

    Raises InputError where it is about none, several, or one by another number.
    """
    asked = clean_question(question)
    regions = mentioned_regions(asked)
    if not regions:
        raise InputError(f"the question mentions no region: {asked!r}; write <region1> where the region is meant")
    if len(regions) > 1:
        names = ", ".join(f"<region{number}>" for number in regions)
        raise InputError(f"the question mentions {names}, expected one region; ask about several with RegionChat.ask")
    if regions != [1]:
        raise InputError(
            f"the question mentions <region{regions[0]}>, but each box is asked about by itself, as <region1>; "
            "ask about one of several boxes with RegionChat.ask"
        )
    return asked
