"""COCO and LVIS tables: one reading of their images, categories and annotations, and errors that name the fault."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.geometry import masks
from gpt4roi.io.json_files import require_list

MAX_COORDINATE = 1e7
"""No pixel of an image lies further out; larger numbers are faults, and would overflow later."""

Id = int | float | str
"""What identifies an image, an annotation or a category."""

_KIND = "a file in COCO's form"


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


class FilteredOutError(InvalidAnnotationError):
    """A rule of the data set leaves out one image or region."""

    fault = False


@dataclass(frozen=True)
class CocoTables:
    """The tables of a file, whose rows are not checked yet."""

    images: list[Any]
    annotations: list[Any]
    categories: dict[Id, str] | None
    """Names by id, in the order of the ids; None where the file has no such table."""


def read_tables(content: Any, path: Any) -> CocoTables:
    """Returns the tables of a parsed file. Raises InputError where one is missing or is not a list."""
    images, annotations = (require_list(path, content, key, _KIND) for key in ("images", "annotations"))
    return CocoTables(images, annotations, category_names(content, path))


def category_names(content: Mapping[str, Any], path: Any) -> dict[Id, str] | None:
    """Returns the names of the categories that a file lists, by id and in their order; None where it lists none."""
    if content.get("categories") is None:
        return None
    names: dict[Id, str] = {}
    for category in require_list(path, content, "categories", _KIND):
        if isinstance(category, dict) and is_id(category.get("id")) and isinstance(category.get("name"), str):
            names[category["id"]] = category["name"]
    return dict(sorted(names.items(), key=lambda entry: (isinstance(entry[0], str), entry[0])))


def is_id(value: Any) -> bool:
    """Tells whether a value can be an id; 7 and 7.0 are one, "7" is another."""
    return isinstance(value, (int, float, str)) and not isinstance(value, bool) and value == value


def parse_id(value: Any, reason: str) -> Id:
    """Returns an id; raises InvalidAnnotationError for the reason where it cannot be one."""
    if not is_id(value):
        raise InvalidAnnotationError(reason)
    return value


def image_file_name(image: Mapping[str, Any]) -> str:
    """Returns the relative path of an image, "" where there is none.

    LVIS writes it at the end of an address: http://images.cocodataset.org/train2017/000000391895.jpg is
    train2017/000000391895.jpg, which `images_on_disk.find_image` also finds as 000000391895.jpg.
    """
    name, url = image.get("file_name"), image.get("coco_url")
    if isinstance(name, str) and name:
        return name
    return "/".join(url.split("/")[-2:]) if isinstance(url, str) else ""


def image_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns the (height, width) that a file tells of an image, None where it does not."""
    height, width = image.get("height"), image.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) and height and width else None


def annotation_box(annotation: Mapping[str, Any], size: tuple[int, int] | None = None) -> list[float]:
    """Returns the box of an annotation, xyxy in pixels: from `bbox`, or else around its `segmentation`.

    Args:
        annotation: A row of the table.
        size: (height, width) of the image; a mask that was made for another one is refused.

    Raises:
        InvalidAnnotationError: The box is not four numbers, or the mask cannot be used.
    """
    mask = annotation.get("segmentation")
    if annotation.get("bbox") or not mask:
        x, y, width, height = parse_floats(annotation.get("bbox"), 4)
        return [x, y, x + width, y + height]
    try:
        box, made_for = masks.to_box(mask).tolist(), masks.size_of(mask)
    except InputError as error:
        raise InvalidAnnotationError(str(error), "mask that cannot be used") from None
    if size is not None and made_for is not None and made_for != size:
        given, expected = (f"{width}x{height}" for height, width in (made_for, size))
        message = f"the mask is {given} but the image is {expected} pixels (width x height)"
        raise InvalidAnnotationError(message, "mask of another size than its image")
    return box


def annotation_xywh(annotation: Mapping[str, Any]) -> list[float]:
    """Returns the box of an annotation as COCO writes it, x, y, width, height, to the digit; as `annotation_box`."""
    if annotation.get("bbox") or not annotation.get("segmentation"):
        return parse_floats(annotation.get("bbox"), 4)
    x1, y1, x2, y2 = annotation_box(annotation)
    return [x1, y1, x2 - x1, y2 - y1]


def is_crowd(annotation: Mapping[str, Any]) -> bool:
    """Tells whether an annotation marks a crowd."""
    return bool(annotation.get("iscrowd"))


def parse_floats(value: Any, count: int) -> list[float]:
    """Returns `count` finite numbers; raises InvalidAnnotationError."""
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise InvalidAnnotationError(f"box that is not {count} numbers")
    return [parse_float(one, "box with a value that is not a number of an image's size") for one in value]


def parse_float(value: Any, reason: str) -> float:
    """Returns a finite number of at most MAX_COORDINATE; raises InvalidAnnotationError for the reason."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MAX_COORDINATE:
        raise InvalidAnnotationError(reason)
    return float(value)


def parse_side(value: Any) -> int:
    """Returns an image's width or height, which some files write as text; raises InvalidAnnotationError."""
    reason = "image whose width or height is not a number above 0"
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise InvalidAnnotationError(reason) from None
    pixels = math.floor(parse_float(value, reason))
    if pixels < 1:
        raise InvalidAnnotationError(reason)
    return pixels
