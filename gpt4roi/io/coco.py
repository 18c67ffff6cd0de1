"""COCO and LVIS tables: one reading of their images, categories and annotations, and errors that name the fault."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any, TypeGuard

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.geometry import masks
from gpt4roi.geometry.frames import Frame, FrameClues, frame_of_exporter, frame_of_pipeline
from gpt4roi.io.json_files import require_list
from gpt4roi.io.labelling_tools import as_coco
from gpt4roi.io.region_forms import (
    FORMAT_KEYS,
    InvalidAnnotationError,
    box_format,
    corners,
    is_placeholder,
    parse_float,
    parse_floats,
    stated_size,
)

Id = int | float | str
"""What identifies an image, an annotation or a category."""

BORDER_SLACK_PX = 1.0
"""How far a box may reach over the image's border without a word: annotation files round."""

NO_AREA, OUTSIDE, CUT = "box without area", "box outside the image", "box cut at the image's border"
FRACTIONS = "box in fractions instead of pixels"
CROWD, IGNORED = "box of a crowd", "box marked ignore"

_KIND = "a file in COCO's form"
_WHOLE = re.compile(r"\s*(-?\d{1,18})(?:\.0*)?\s*$", re.ASCII)
_NO = ("", "0", "0.0", "false", "f", "no", "n", "none", "null")
_FORMAT_KEYS = frozenset(FORMAT_KEYS)
_CATEGORY_NAMES = ("category_name", "category", "label", "class_name")


class FilteredOutError(InvalidAnnotationError):
    """A rule of the data set leaves out one image or region."""

    fault = False


class CocoTables:
    """The tables of a file, whose ids, categories and boxes (x, y, width, height) are written in one way.

    Attributes:
        images: Rows, not checked yet; see `image_id`.
        annotations: Rows, not checked yet; see `annotation_image`, `annotation_box`, `is_crowd`.
        categories: Names by id, in the order of the ids; None where the file has no such table.
        exporter: The frame of all boxes, where the program that wrote the file is known for it.
    """

    def __init__(self, content: Mapping[str, Any], path: Any) -> None:
        self.images, self.annotations = (require_list(path, content, key, _KIND) for key in ("images", "annotations"))
        self.categories, self.exporter = category_names(content, path), frame_of_exporter(content)
        form = box_format(content, str(path))
        numbers = {name: key for key, name in reversed((self.categories or {}).items())}
        for image in filter(_is_row, self.images):
            image["id"] = as_id(image.get("id"))
        for position, annotation in enumerate(self.annotations):
            if _is_row(annotation):
                _write_ids(annotation, self.categories, numbers)
                bbox = annotation.get("bbox")
                if form or isinstance(bbox, dict) or not _FORMAT_KEYS.isdisjoint(annotation):  # hardly any file's
                    _write_box(annotation, form, f"{path}#annotations[{position}]")
        self._first: dict[Id, int] = {}
        self._unclear: set[Id] = set()
        for position, image in enumerate(self.images):
            if _is_row(image) and is_id(image["id"]):
                first = self.images[self._first.setdefault(image["id"], position)]
                if image_file_name(first) != image_file_name(image):
                    self._unclear.add(image["id"])

    def image_id(self, position: int) -> Id:
        """Returns the id of an image; raises InvalidAnnotationError where it has none, or not for itself."""
        image = self.images[position]
        if not _is_row(image):
            raise InvalidAnnotationError("image that is not an object")
        key = parse_id(image["id"], "image without an id")
        if key in self._unclear:
            raise InvalidAnnotationError(
                f"images of several names have the id {key!r}; which one its boxes are on cannot be told",
                "image whose id another one has",
            )
        if self._first[key] != position:
            raise FilteredOutError("image that is listed twice")
        return key

    def annotation_image(self, annotation: Any) -> Id:
        """Returns the id of the image that an annotation is on; raises InvalidAnnotationError where it is on none."""
        if not _is_row(annotation):
            raise InvalidAnnotationError("box that is not an object")
        key = annotation.get("image_id")
        if type(key) is not int:
            key = parse_id(key, "box without an image_id")
        if key not in self._first:
            raise InvalidAnnotationError(
                f"box on image {key!r}, which is not among the file's images",
                "box in an image that the file does not list",
            )
        return key

    def clues(self, image: Mapping[str, Any], annotations: Iterable[Any], default: Frame = "upright") -> FrameClues:
        """Returns what the file says about the frame of the boxes on an image: in its row, or in their run lengths."""
        said = frame_clues(image, self.exporter)
        runs = (one.get("segmentation") for one in annotations if _is_row(one))
        return FrameClues(said.size or masks.size_of_runs(runs), said.frame, default)


def read_tables(content: Any, path: Any) -> CocoTables:
    """Returns the tables of a parsed file, also of one that is of a single image, or of labelme or VIA.

    Raises:
        InputError: A table is missing or is not a list, or boxes are of a format that is not known.
    """
    content = as_coco(content)
    return CocoTables(tables_of_single_images([content], [path]) if is_of_one_image(content) else content, path)


def is_of_one_image(content: Any) -> bool:
    """Tells whether a file is of one image, with its annotations: SA-1B's, Grounded-SAM-2's or, as read, labelme's."""
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list) or "images" in content:
        return False
    image = content.get("image")
    return isinstance(content.get("image_path"), str) or (isinstance(image, dict) and bool(image.get("file_name")))


def tables_of_single_images(contents: Sequence[Any], paths: Sequence[Any]) -> dict[str, Any]:
    """Makes COCO's tables of files of one image each; the box format that a file states goes to its annotations."""
    rows = [content["image"] if isinstance(content.get("image"), dict) else {} for content in contents]
    ids = [row.get("image_id") for row in rows]
    if None in ids or len(set(map(str, ids))) < len(ids):
        ids = list(range(1, len(rows) + 1))
    images, annotations = [], []
    for identity, row, content, path in zip(ids, rows, contents, paths, strict=True):
        height, width = stated_size(content) or (None, None)
        name = row.get("file_name") or content["image_path"]
        frame = {"image_pipeline": "dialogue"} if frame_of_exporter(content) == "stored" else {}
        form = box_format(content, str(path))
        stated = {FORMAT_KEYS[0]: form} if form else {}
        images.append({**row, **frame, "id": identity, "file_name": name, "height": height, "width": width})
        annotations += [{**stated, **one, "image_id": identity} for one in content["annotations"] if _is_row(one)]
    return {"images": images, "annotations": annotations}


def _is_row(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _write_ids(annotation: dict[str, Any], categories: Mapping[Id, str] | None, numbers: Mapping[str, Id]) -> None:
    """Writes an annotation's ids in one way; a category that is told by its name gets the number of that."""
    for key in ("id", "image_id", "category_id"):
        if type(annotation.get(key, 0)) is not int:
            annotation[key] = as_id(annotation[key])
    if annotation.get("category_id") is None:
        name = stated_category(annotation)
        if name in numbers:
            annotation["category_id"] = numbers[name]
    elif isinstance(annotation["category_id"], str) and annotation["category_id"] not in (categories or {}):
        annotation["category_id"] = numbers.get(annotation["category_id"], annotation["category_id"])


def stated_category(annotation: Mapping[str, Any]) -> str:
    """Returns the name of a category that an annotation states itself, "" where it states none."""
    keys = ("category_id", *_CATEGORY_NAMES)
    return next((annotation[key] for key in keys if annotation.get(key) and isinstance(annotation[key], str)), "")


def _write_box(annotation: dict[str, Any], form: str, where: str) -> None:
    """Writes the box of an annotation as x, y, width, height, whatever format it or its file states; or by names."""
    bbox, form = annotation.get("bbox"), box_format(annotation, where, form or "xywh")
    if bbox and (form != "xywh" or isinstance(bbox, dict)):
        with contextlib.suppress(InputError):  # what is no box stays, and is counted with the others
            x1, y1, x2, y2 = corners(bbox, form, where)
            annotation["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    for key in FORMAT_KEYS:
        annotation.pop(key, None)


def with_unique_ids(annotations: Sequence[Any]) -> int:
    """Gives annotations without an id, and those whose id an earlier one has, a free number.

    Returns how many had the id of an earlier one.
    """
    rows = [annotation for annotation in annotations if _is_row(annotation)]
    taken = {row["id"] for row in rows if is_id(row.get("id"))}
    free = (number for number in count(1) if number not in taken)
    seen: set[Id] = set()
    repeated = 0
    for row in rows:
        key = row.get("id")
        repeated += is_id(key) and key in seen
        if not is_id(key) or key in seen:
            row["id"] = next(free)
        seen.add(row["id"])
    return repeated


def category_names(content: Mapping[str, Any], path: Any) -> dict[Id, str] | None:
    """Returns the names of the categories that a file lists, by id and in their order; None where it lists none."""
    if content.get("categories") is None:
        return None
    names: dict[Id, str] = {}
    for category in require_list(path, content, "categories", _KIND):
        if isinstance(category, str):  # a list of names, by which annotations then name them
            names[as_id(category)] = category
        elif isinstance(category, dict) and isinstance(category.get("name"), str):
            key = as_id(category.get("id"))
            if is_id(key):
                names[key] = category["name"]
    return dict(sorted(names.items(), key=lambda entry: (isinstance(entry[0], str), entry[0])))


def as_id(value: Any) -> Any:
    """Returns an id as it is compared: 7, 7.0, "7", "7.0" and "007" are one; what is no number stays."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    whole = _WHOLE.match(value) if isinstance(value, str) else None
    return int(whole[1]) if whole else value


def is_id(value: Any) -> bool:
    """Tells whether a value can be an id."""
    return isinstance(value, (int, float, str)) and not isinstance(value, bool) and value == value


def parse_id(value: Any, reason: str) -> Id:
    """Returns an id as it is compared; raises InvalidAnnotationError for the reason where it cannot be one."""
    if not is_id(value) or value == "":
        raise InvalidAnnotationError(reason)
    return as_id(value)


def image_file_name(image: Mapping[str, Any]) -> str:
    """Returns the relative path of an image, "" where there is none; a number is its name.

    LVIS writes it at the end of an address: http://images.cocodataset.org/train2017/000000391895.jpg is
    train2017/000000391895.jpg, which `ImageFinder` also finds as 000000391895.jpg.
    """
    name, url = image.get("file_name"), image.get("coco_url")
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    if isinstance(name, str) and name:
        return name
    return "/".join(url.split("/")[-2:]) if isinstance(url, str) else ""


def image_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns the (height, width) that a file tells of an image, None where it does not."""
    try:
        return parse_side(image.get("height")), parse_side(image.get("width"))
    except InvalidAnnotationError:
        return None


def frame_clues(image: Mapping[str, Any], exporter: Frame | None = None) -> FrameClues:
    """Returns what a file says about the frame of an image's boxes: its size, its pipeline, or else its exporter."""
    pipeline = image.get("image_pipeline") or image.get("picture_pipeline")
    return FrameClues(image_size(image), frame_of_pipeline(pipeline if isinstance(pipeline, str) else None) or exporter)


def annotation_box(annotation: Mapping[str, Any], size: tuple[int, int] | None = None) -> list[float]:
    """Returns the box of an annotation, xyxy in pixels: from `bbox`, or else around its `segmentation`.

    Args:
        annotation: A row of the table.
        size: (height, width) of the image; a mask that was made for another one is refused.

    Raises:
        InvalidAnnotationError: The box is not four numbers, or the mask cannot be used.
    """
    x, y, width, height = annotation_xywh(annotation, size)
    return [x, y, x + width, y + height]


def annotation_xywh(annotation: Mapping[str, Any], size: tuple[int, int] | None = None) -> list[float]:
    """Returns the box of an annotation as COCO writes it, x, y, width, height, to the digit; as `annotation_box`."""
    bbox, mask = annotation.get("bbox"), annotation.get("segmentation")
    if not mask or not is_placeholder(bbox):
        if not bbox:
            raise InvalidAnnotationError(
                "the annotation has neither bbox nor segmentation", "box that is not 4 numbers"
            )
        return parse_floats(bbox, 4)
    try:
        x1, y1, x2, y2 = masks.to_box(mask).tolist()
    except InputError as error:
        raise InvalidAnnotationError(str(error), "mask that cannot be used") from None
    _require_size(mask, size)
    return [x1, y1, x2 - x1, y2 - y1]


def annotation_raster(
    annotation: Mapping[str, Any], box: Sequence[float], size: tuple[int, int] | None
) -> np.ndarray | None:
    """Returns the mask of an annotation inside a box of it, as of structures.Regions; None where it has none.

    Raises:
        InputError: The mask cannot be used, or was made for another size, (height, width), than its image has.
    """
    mask = annotation.get("segmentation")
    if not mask:
        return None
    _require_size(mask, size)
    return masks.to_raster(mask, box)


def _require_size(mask: Any, size: tuple[int, int] | None) -> None:
    made_for = masks.size_of(mask)
    if size is not None and made_for is not None and made_for != size:
        given, expected = (f"{width}x{height}" for height, width in (made_for, size))
        message = f"the mask is {given} but the image is {expected} pixels (width x height)"
        raise InvalidAnnotationError(message, "mask of another size than its image")


def annotation_box_inside(annotation: Mapping[str, Any], size: tuple[int, int] | None) -> tuple[list[float], bool]:
    """Returns the box of an annotation as `annotation_box`, cut at the border of its image as `cut_box`."""
    return cut_box(annotation_box(annotation, size), size)


def cut_box(box: Sequence[float], size: tuple[int, int] | None) -> tuple[list[float], bool]:
    """Cuts a box at the border of its image.

    Args:
        box: xyxy in pixels.
        size: (height, width) of the image; None where it is not known, so that nothing is cut.

    Returns:
        The box, and whether it reached out by more than a pixel, as which annotations are rounded.

    Raises:
        InvalidAnnotationError: The box has no area, none inside the image, or is in fractions of it.
    """
    if size is not None and min(size) > 1 and 0 < max(box[2:]) <= 1 and min(box) >= 0:
        what = f"the box {','.join(f'{value:.3g}' for value in box)} looks like fractions"
        raise InvalidAnnotationError(f"{what}; give pixels of the image, which is {size[1]}x{size[0]}", FRACTIONS)
    limits = (math.inf,) * 4 if size is None else (size[1], size[0], size[1], size[0])
    low = -math.inf if size is None else 0.0
    inside = [min(max(value, low), limit) for value, limit in zip(box, limits, strict=True)]
    if not inside[0] < inside[2] or not inside[1] < inside[3]:
        written = ",".join(f"{round(value, 2):g}" for value in box)
        where = "" if size is None else f" inside the image, which is {size[1]}x{size[0]}"
        reason = OUTSIDE if box[0] < box[2] and box[1] < box[3] else NO_AREA
        raise InvalidAnnotationError(f"the box {written} has no area{where}", reason)
    return inside, max(abs(a - b) for a, b in zip(box, inside, strict=True)) > BORDER_SLACK_PX


def is_crowd(annotation: Mapping[str, Any]) -> bool:
    """Tells whether an annotation marks a crowd."""
    return is_marked(annotation, "iscrowd")


def refuse_ignored(annotation: Mapping[str, Any], crowds: bool = False) -> None:
    """Raises FilteredOutError for a box of no single object: marked `ignore`, or `iscrowd` unless crowds are taken."""
    if is_marked(annotation, "ignore"):
        raise FilteredOutError(IGNORED)
    if is_crowd(annotation) and not crowds:
        raise FilteredOutError(CROWD)


def is_marked(annotation: Mapping[str, Any], key: str) -> bool:
    """Tells whether a flag is set, which some files write as text: "0" is not."""
    value = annotation.get(key, 0)
    if type(value) is int:
        return value != 0
    return value.strip().lower() not in _NO if isinstance(value, str) else bool(value) and value == value


def parse_side(value: Any) -> int:
    """Returns an image's width or height, which some files write as text; raises InvalidAnnotationError."""
    reason = "image whose width or height is not a number above 0"
    pixels = math.floor(parse_float(value, reason))
    if pixels < 1:
        raise InvalidAnnotationError(reason)
    return pixels
