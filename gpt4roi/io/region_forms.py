"""Region forms: the ways in which JSON files state one region, as a box with its corners or its sides, or as a mask."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from gpt4roi.errors import InputError

MAX_COORDINATE = 1e7
"""No pixel of an image lies further out; larger numbers are faults, and would overflow later."""

_NUMBERS = frozenset((float, int))

LISTS = ("regions", "annotations", "boxes", "bboxes", "masks", "detections", "predictions")
"""Under which a file lists its regions."""

_CORNERS = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
)
_SIDES = ("left", "top", "width", "height")
FORMAT_KEYS = ("box_format", "bbox_format", "bbox_mode")
"""Where a file or an entry states the format of its boxes."""

_FORMATS = {
    **dict.fromkeys(("xyxy", "pascal_voc", "ltrb"), "xyxy"),
    **dict.fromkeys(("xywh", "coco", "ltwh", "tlwh"), "xywh"),
    "cxcywh": "cxcywh",
}
_MODES = {0: "xyxy", 1: "xywh"}
"""Detectron2's `bbox_mode`, as a number."""
_FORMAT_OF_KEY = {"bbox_2d": "xyxy", "box": "xyxy", "bbox": "xywh"}
_MASKS = ("segmentation", "mask", "rle", "polygon")
_SIZES = (("img_height", "img_width"), ("image_height", "image_width"))


class InvalidAnnotationError(InputError):
    """One image or region cannot be used.

    Attributes:
        reason: What it is counted under, the same words for the same kind of fault; the message by default.
        fault: Whether it is wrong in itself; else a rule of the data set leaves it out.
    """

    fault = True

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


def box_format(content: Any, where: str, default: str = "") -> str:
    """Returns the format of boxes that a file or an entry states: xyxy, xywh, cxcywh, or the default.

    Raises:
        InputError: It states another one.
    """
    stated = None
    if _is_object(content):
        stated = next((content[key] for key in FORMAT_KEYS if content.get(key) not in (None, "")), None)
    if stated is None:
        return default
    if type(stated) is int:
        known = _MODES.get(stated)
    else:
        known = _FORMATS.get(str(stated).strip().lower().rpartition(".")[2].removesuffix("_abs"))
    if known is None:
        raise InputError(f"{where}: box_format is {stated!r:.40}; expected one of {', '.join(_FORMATS)}")
    return known


def stated_size(content: Any) -> tuple[int, int] | None:
    """Returns the (height, width) that a file of one image states for it: `img_height` and `img_width`, or `image`."""
    if not _is_object(content):
        return None
    image = content.get("image")
    pairs = [(content.get(height), content.get(width)) for height, width in _SIZES]
    pairs += [(image.get("height"), image.get("width"))] if _is_object(image) else []
    return next(((int(h), int(w)) for h, w in pairs if _is_side(h) and _is_side(w)), None)


def regions_of(entry: Any, where: str, stated: str = "", masks: bool = False) -> list[Any]:
    """Returns the regions of an entry, none where it has none: boxes, xyxy in pixels, or masks.

    Args:
        entry: Four numbers, a mask, or an object with a box, several `bboxes`, corners by name, or a mask.
        where: Its place, which every message begins with.
        stated: The format of boxes that the file states.
        masks: Return a box that has a mask as `{"box": …, "mask": …}`, not as the box alone.

    Raises:
        InputError: A box is not four numbers, or its format is not known.
    """
    if not _is_object(entry):
        four = isinstance(entry, Sequence) and len(entry) == 4 and not any(isinstance(one, Sequence) for one in entry)
        return [corners(entry, stated, where)] if four and stated else [entry]
    if {"size", "counts"} <= entry.keys():
        return [entry]
    stated = box_format(entry, where, stated)
    if isinstance(entry.get("bboxes"), list) and entry["bboxes"]:
        return [corners(box, stated or "xyxy", where, "bboxes") for box in entry["bboxes"]]
    mask = mask_of(entry)
    for key, usual in _FORMAT_OF_KEY.items():
        if entry.get(key) and not (mask is not None and is_placeholder(entry[key])):
            box = corners(entry[key], stated or usual, where, key)
            return [{"box": box, "mask": mask} if masks and mask is not None else box]
    if _named(entry) is not None:
        return [corners(entry, stated, where)]
    if mask is None:
        return []
    flat = isinstance(mask, Sequence) and not any(isinstance(one, Sequence | Mapping) for one in mask)
    return [[mask] if flat and not isinstance(mask, str) else mask]


def is_placeholder(bbox: Any) -> bool:
    """Tells whether a bbox only fills its place beside a segmentation: empty, without numbers, or without area."""
    if not bbox or (isinstance(bbox, (list, tuple)) and all(value is None or value != value for value in bbox)):
        return True
    with contextlib.suppress(InvalidAnnotationError):
        return min(parse_floats(bbox, 4)[2:]) <= 0
    return False


def mask_of(entry: Any) -> Any:
    """Returns the mask of an entry, which may be one itself; None where it has none."""
    if not _is_object(entry) or {"size", "counts"} <= entry.keys():
        return entry
    return next((entry[name] for name in _MASKS if entry.get(name)), None)


def corners(box: Any, form: str, where: str, key: str = "a box") -> list[float]:
    """Returns a box of a format as xyxy; also one whose numbers are named. Raises InputError where it is none."""
    if _is_object(box):
        named = _named(box)
        if named is None:
            raise InputError(
                f"{where}: {key} has {', '.join(map(str, box))}; expected x1, y1, x2, y2, or left, top, width, height"
            )
        box, form = named
    try:
        x, y, width, height = values = parse_floats(box, 4)
    except InvalidAnnotationError:
        expected = {"xyxy": "x1, y1, x2, y2", "xywh": "x, y, width, height"}.get(
            form, "x, y, width, height of its centre"
        )
        raise InputError(f"{where}: expected {key} as {expected}, got {box!r:.60}") from None
    if form == "cxcywh":
        return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return [x, y, x + width, y + height] if form == "xywh" else values


def parse_floats(value: Any, count: int) -> list[float]:
    """Returns `count` finite numbers, which may be written as text; raises InvalidAnnotationError."""
    if isinstance(value, str):
        value = value.strip("[]() ").replace(",", " ").split()
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise InvalidAnnotationError(f"box that is not {count} numbers")
    # As nearly every file has it. Compared one by one: a sum of a fraction and an integer of any length overflows.
    if _NUMBERS.issuperset(map(type, value)) and all(-MAX_COORDINATE <= one <= MAX_COORDINATE for one in value):
        return list(map(float, value))
    return [parse_float(one, "box with a value that is not a number of an image's size") for one in value]


def parse_float(value: Any, reason: str) -> float:
    """Returns a finite number of at most MAX_COORDINATE; raises InvalidAnnotationError for the reason."""
    if type(value) is float and -MAX_COORDINATE <= value <= MAX_COORDINATE:
        return value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MAX_COORDINATE:
        raise InvalidAnnotationError(reason)
    return float(value)


def _named(entry: Mapping[str, Any]) -> tuple[list[Any], str] | None:
    """Returns four named numbers and their format; x, y, width, height are not read, for some mean the centre."""
    forms = [(names, "xyxy") for names in _CORNERS] + [(_SIDES, "xywh")]
    found = (([entry[name] for name in names], form) for names, form in forms if set(names) <= entry.keys())
    return next(found, None)


def _is_side(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 1


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)
