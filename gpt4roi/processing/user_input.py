"""User input: validates images, boxes, masks and questions; errors name the next step."""

from __future__ import annotations

import base64
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gpt4roi.constants import REGION_TOKEN
from gpt4roi.errors import InputError
from gpt4roi.geometry.frames import ImageHeader
from gpt4roi.geometry.masks import size_of, stroke_polygons, to_box, to_raster
from gpt4roi.processing.images import load_image, read_header
from gpt4roi.processing.mentions import region_numbers
from gpt4roi.processing.region_files import MAX_LOGGED_REGIONS, read_regions  # noqa: F401 - read_regions was here
from gpt4roi.structures import Regions

logger = logging.getLogger(__name__)

_SHORT_MENTION = re.compile(r"<(\d+)>")
_TYPED_BOX = re.compile(r"[\[({>]\s*" + r"[\s,;()\[\]]+".join([r"(\d+(?:\.\d+)?)"] * 4) + r"\s*[\])}<]")
_URL_SAFE = str.maketrans("-_", "+/")
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[^;,]*)*)(;base64)?,", re.IGNORECASE)

BORDER_SLACK_PX = 1.0
"""How far a box may reach over the image's border: annotation files round."""

MAX_BOXES = 1000
"""Boxes that one call takes; more are a mistake, such as a mask given as boxes, more often than a wish."""

STROKE_RADIUS = 0.02
"""Of points and strokes that state none, as a share of the image's longer side."""


def open_image(image: Any) -> Image.Image:
    """Opens an image as RGB and upright, so that boxes are in pixels of the image as it is displayed.

    Args:
        image: Path, data URL, PIL image, encoded file as bytes, or uint8 array [H, W, 3] (RGB) or [H, W, 4] (RGBA).

    Raises:
        InputError: There is no such file, or it is not an image.
    """
    if isinstance(image, str) and image[:5].lower() == "data:":
        image = _bytes_of_data_url(image)
    elif isinstance(image, (str, Path)):
        _check_path(image)
    return load_image(image, pipeline="detection")  # the pipeline that turns images upright


def open_mask(path: str | Path) -> np.ndarray:
    """Opens an image file as a mask, bool[H, W] upright: true where a pixel is not black. Raises as open_image does."""
    return np.asarray(open_image(path)).max(axis=2) > 0


def image_header(image: str | bytes) -> ImageHeader:
    """Returns the header of an image that `open_image` opens: a path, a data URL or an encoded file as bytes."""
    if isinstance(image, str) and image[:5].lower() == "data:":
        image = _bytes_of_data_url(image)
    return read_header(image)


def _check_path(path: str | Path) -> None:
    text = str(path)
    if not text.strip():
        raise InputError("the image's path is empty; give an image file")
    if text.startswith(("http://", "https://")):
        raise InputError(f"{text:.80}: addresses are not fetched; download the image and give its path")
    if "\0" in text:
        raise InputError(f"{text!r:.80} is no path")
    if os.path.isdir(path):  # pathlib's raises on a name that is too long
        raise InputError(f"{path}: is a folder; give one image inside it")


def _bytes_of_data_url(url: str) -> bytes:
    head = _DATA_URL.match(url)
    if head is None or head[3] is None:
        raise InputError(f"{url[:40]!r}: expected an image as data:image/png;base64,…")
    try:
        return decode_base64(url[head.end() :])
    except ValueError as error:
        raise InputError(f"{url[:40]!r}: what follows the comma is not base64: {error}") from None


def decode_base64(text: str) -> bytes:
    """Decodes base64 with line breaks, without padding, or of URLs (`-` and `_`); raises ValueError on other text."""
    compact = re.sub(r"\s|%0[AD]", "", text, flags=re.IGNORECASE).rstrip("=").translate(_URL_SAFE)
    return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)


def validate_boxes_px(boxes_px: Any, image_size: tuple[int, int], first_number: int = 1) -> np.ndarray:
    """Returns regions, as validate_regions takes them, as boxes alone: float64[N, 4], xyxy in pixels."""
    return validate_regions(boxes_px, image_size, first_number, region_shape="box").boxes_px


def validate_regions(
    boxes_px: Any, image_size: tuple[int, int], first_number: int = 1, region_shape: str = "mask"
) -> Regions:
    """Returns regions of an image, after checking each.

    Args:
        boxes_px: N boxes of four numbers xyxy, or masks: arrays [H, W], COCO's run lengths, polygons (see
            gpt4roi.geometry.masks); points `{"point": [x, y]}` and strokes `{"stroke": [[x, y], …]}`, which are drawn
            with a round brush of `radius` pixels (STROKE_RADIUS without one); or `{"box": …, "mask": …}`, a mask
            inside of a box. Or Regions. All in pixels.
        image_size: (height, width) of the image.
        first_number: Number of the first one in messages.
        region_shape: What the model reads. With `box` each mask becomes the box around it, which is logged.

    Raises:
        InputError: A box is not four finite numbers, has its corners exchanged, no area, or lies outside the image; a
            mask is empty or of another image's size; there are too many.
    """
    if boxes_px is None:
        return Regions()
    given = boxes_px if isinstance(boxes_px, Regions) else None
    boxes_px = boxes_px if given is None else given.boxes_px
    if isinstance(boxes_px, (str, bytes, Mapping)) or not hasattr(boxes_px, "__len__"):
        raise InputError(f"expected a list of boxes [x1, y1, x2, y2], got {boxes_px!r:.80}")
    if len(boxes_px) > MAX_BOXES:
        raise InputError(f"{len(boxes_px)} boxes for one image, expected {MAX_BOXES} at most; give them in portions")
    if len(boxes_px) == 4 and all(isinstance(value, Real) for value in boxes_px):
        raise InputError(f"expected a list of boxes, got one box {_as_text(boxes_px)}; write [[x1, y1, x2, y2]]")
    regions = [_without_strokes(one, number, image_size) for number, one in enumerate(boxes_px, start=first_number)]
    rows = [_as_box(region, number, image_size) for number, region in enumerate(regions, start=first_number)]
    for number, box in enumerate(rows, start=first_number):
        _validate_box(box, number, image_size)
    shapes: Sequence[Any] = list(map(_mask_of, regions)) if given is None else given.masks
    boxes = np.asarray(rows, dtype=np.float64).reshape(-1, 4)
    if all(shape is None for shape in shapes):
        return Regions(boxes)
    if region_shape == "box":
        _log_mask_conversion(shapes, rows, first_number)
        return Regions(boxes)
    if given is not None:
        return Regions(boxes, given.masks)
    return Regions(boxes, tuple(_as_raster(*one) for one in zip(shapes, rows, strict=True)))


def _without_strokes(region: Any, number: int, image_size: tuple[int, int]) -> Any:
    """Returns a point or a stroke as polygons, and other regions as they are."""
    key = next((key for key in ("point", "stroke") if isinstance(region, Mapping) and key in region), None)
    if key is None:
        return region
    points = [region[key]] if key == "point" else region[key]
    radius = region.get("radius", STROKE_RADIUS * max(image_size))
    try:
        centres = np.asarray(points, dtype=np.float64)
        height, width = image_size
        is_inside = ((centres >= 0) & (centres <= (width, height))).all()
        if centres.ndim == 2 and len(centres) and is_inside and 0 < float(radius) <= max(image_size):
            return stroke_polygons(centres, float(radius), image_size)
    except (TypeError, ValueError, OverflowError):
        pass
    expected = "[x, y] inside the image, or [[x, y], …] of a stroke, and a radius in pixels"
    raise InputError(f"region {number}: expected {expected}; got {region!r:.80}")


def _as_raster(mask: Any, box: list[float]) -> np.ndarray | None:
    if mask is None:
        return None
    return to_raster(_as_array(mask) if hasattr(mask, "shape") else mask, box)


def _mask_of(region: Any) -> Any:
    """Returns the mask of a region, None of one that is a box."""
    if isinstance(region, Mapping) and "mask" in region:
        return region["mask"]
    return region if is_mask(region) else None


def _as_box(region: Any, number: int, image_size: tuple[int, int]) -> list[float]:
    """Returns the four numbers of a region: its own, or those of the box around a mask."""
    mask = _mask_of(region)
    if mask is None:
        return _four_numbers(region, number)
    mask = _as_array(mask) if hasattr(mask, "shape") else mask
    box = [float(value) for value in to_box(mask, f" of region {number}")]
    size = size_of(mask)
    if size is not None and size != tuple(image_size):
        raise InputError(
            f"the mask of region {number} is {size[1]}x{size[0]} but the image is {image_size[1]}x{image_size[0]} "
            "pixels (width x height)"
        )
    own = region.get("box") if isinstance(region, Mapping) else None
    return box if own is None else _four_numbers(own, number)


def _as_array(mask: Any) -> np.ndarray:
    """Returns an array, or a tensor of any type on any device, as an array."""
    if hasattr(mask, "detach"):
        mask = mask.detach().cpu()
        mask = mask.float() if mask.is_floating_point() else mask  # NumPy has not every type that tensors have
    return np.asarray(mask)


def _log_mask_conversion(masks: Sequence, boxes: list[list[float]], first_number: int) -> None:
    """Warns in one line, which users without a log configuration see too, that masks are used as boxes only."""
    pairs = enumerate(zip(masks, boxes, strict=True), start=first_number)
    converted = [f"region {number}: {_as_text(box)}" for number, (mask, box) in pairs if mask is not None]
    more = f"; and {len(converted) - MAX_LOGGED_REGIONS} more" if len(converted) > MAX_LOGGED_REGIONS else ""
    logger.warning("masks became their bounding boxes: %s%s", "; ".join(converted[:MAX_LOGGED_REGIONS]), more)


def is_mask(region: Any) -> bool:
    """Tells whether a region is a mask (array, run lengths, polygons) rather than a box of four numbers."""
    if isinstance(region, Mapping):
        return True
    shape = getattr(region, "shape", None)
    if shape is not None:
        return len(shape) >= 2
    if hasattr(region, "__array_interface__"):  # a PIL image
        return True
    if not isinstance(region, Sequence) or isinstance(region, (str, bytes)):
        return False
    nested = any(isinstance(part, Sequence | Mapping) and not isinstance(part, (str, bytes)) for part in region)
    return nested or (len(region) >= 8 and len(region) % 2 == 0)  # six may be a detector's row: box, score and class


def _four_numbers(box: Any, number: int) -> list[float]:
    try:
        values = [float(value) for value in box]
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"box {number}: expected four numbers x1, y1, x2, y2, got {box!r:.80}") from None
    if len(values) != 4 or isinstance(box, (str, bytes)):
        more = "; a polygon is nested: [[x1, y1, x2, y2, x3, y3]]" if len(values) == 6 else ""
        raise InputError(f"box {number}: expected four numbers x1, y1, x2, y2, got {len(values)}: {values!r:.80}{more}")
    if not all(map(math.isfinite, values)):
        raise InputError(f"box {number}: expected finite numbers, got {_as_text(values)}")
    return values


def _validate_box(box: list[float], number: int, image_size: tuple[int, int]) -> None:
    x1, y1, x2, y2 = box
    height, width = image_size
    what = f"box {number} ({_as_text(box)})"
    if x2 < x1 or y2 < y1:
        raise InputError(
            f"{what}: corners are exchanged; give x1,y1 (top left) before x2,y2 (bottom right), in pixels",
            code="box_inverted",
        )
    if x1 == x2 or y1 == y2:
        raise InputError(f"{what}: has no area; x2 must be greater than x1, and y2 than y1")
    if max(box) <= 1 and min(height, width) > 1:
        raise InputError(f"{what}: looks like fractions; give pixels of the image, which is {width}x{height}")
    slack = BORDER_SLACK_PX
    if min(x1, y1) < -slack or x2 > width + slack or y2 > height + slack:
        raise InputError(f"{what}: reaches outside the image, which is {width}x{height} pixels (width x height)")


def _as_text(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def mentioned_regions(question: str) -> list[int]:
    """Returns the numbers of the regions a question mentions, each once, in order of first mention.

    Raises InputError on a number of absurdly many digits.
    """
    return list(dict.fromkeys(region_numbers(question)))


def typed_box(question: str) -> str:
    """Returns four numbers in brackets that a question without a region holds, as x1,y1,x2,y2; else an empty text."""
    found = None if region_numbers(question) or REGION_TOKEN in question else _TYPED_BOX.search(question)
    return ",".join(found.groups()) if found else ""


def clean_question(question: Any) -> str:
    """Returns a question without blanks around it, the short mentions `<3>` and `<>` as `<region3>` and `<bbox>`.

    Raises InputError where nothing is asked, or where it holds bytes that are no text.
    """
    if not isinstance(question, str) or not question.strip():
        raise InputError('the question is empty; ask something, for example "What is <region1>?"')
    if any("\ud800" <= character <= "\udfff" for character in question):  # bytes that Python could not decode
        raise InputError(f"the question is not UTF-8 text: {question.strip()!a:.80}; set the terminal or file to UTF-8")
    return _SHORT_MENTION.sub(r"<region\1>", question.strip()).replace("<>", REGION_TOKEN)


def one_region_question(question: Any) -> str:
    """Returns a clean question about one region, called `<region1>`.

    Raises InputError where it is about none, several, or one by another number.
    """
    asked = clean_question(question)
    regions = mentioned_regions(asked)
    if not regions:
        raise InputError(f"the question mentions no region: {asked!r:.80}; write <region1> where the region is meant")
    if len(regions) > 1:
        names = ", ".join(f"<region{number}>" for number in regions)
        raise InputError(f"the question mentions {names}, expected one region; ask about several with RegionChat.ask")
    if regions != [1]:
        raise InputError(
            f"the question mentions <region{regions[0]}>, but each box is asked about by itself, as <region1>; "
            "ask about one of several boxes with RegionChat.ask"
        )
    return asked


def pair_question(question: Any) -> str:
    """Returns a clean question about a pair, its regions called `<region1>` and `<region2>`; raises InputError."""
    asked = clean_question(question)
    if sorted(mentioned_regions(asked)) != [1, 2]:
        raise InputError(
            f"a question about pairs mentions <region1> and <region2>, the first and the second of each pair, and no "
            f"other region; got {asked!r:.80}"
        )
    return asked


def groups_of_regions(num_regions: int, pairs: Any = None) -> list[list[int]]:
    """Returns which regions, by index, a question is asked about together: each by itself, or each pair.

    pairs: numbers of two different regions each, counted from 1. Raises InputError where they are none.
    """
    if pairs is None:
        return [[row] for row in range(num_regions)]
    if isinstance(pairs, (str, bytes)) or not isinstance(pairs, Sequence) or len(pairs) > MAX_BOXES:
        raise InputError(f"pairs are a list of at most {MAX_BOXES} pairs of numbers, got {pairs!r:.60}")
    known = range(1, num_regions + 1)
    for number, pair in enumerate(pairs, start=1):
        whole = isinstance(pair, (list, tuple)) and all(type(one) is int and one in known for one in pair)
        if not whole or len(pair) != 2 or pair[0] == pair[1]:
            expected = f"expected the numbers of two different regions, from 1 to {num_regions}"
            raise InputError(f"pair {number}: {expected}, got {pair!r:.40}")
    return [[one - 1 for one in pair] for pair in pairs]


open_picture, check_boxes = open_image, validate_boxes_px  # names of version 0.1
