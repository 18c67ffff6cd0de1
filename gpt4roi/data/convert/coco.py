"""Conversion from COCO and LVIS to the unified format, with a question for each box, and back to COCO."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.data.annotations import require_text
from gpt4roi.data.convert.objects import Conversion, caption_fields, frame_fields, with_masks
from gpt4roi.data.unified import texts_of
from gpt4roi.data.unified_object import BadObjectError, check_object
from gpt4roi.errors import InputError
from gpt4roi.io.atomic import atomic_path
from gpt4roi.io.coco import (
    CUT,
    CocoTables,
    Id,
    InvalidAnnotationError,
    annotation_box_inside,
    image_file_name,
    is_id,
    read_tables,
    refuse_ignored,
    stated_category,
)
from gpt4roi.io.images_on_disk import ImageFinder
from gpt4roi.io.json_files import read_json
from gpt4roi.processing.images import read_header
from gpt4roi.structures import as_image_pipeline

QUESTION = "What is {region}?"
NO_BOX = "image without a box that can be used"


def objects_of_coco(
    path: Path, img_prefix: str | Path, target: Conversion, question: str = QUESTION, crowds: bool = False
) -> Iterator[dict[str, Any]]:
    """Yields one object an image, with one question for each of its boxes.

    The answer is the annotation's `caption`, or else its category's name, with blanks for `_` and PACO's `:`. Images
    without `file_name`, as in LVIS, are named by `coco_url`. The question has {region} for the box. Boxes of crowds are
    left out unless `crowds`.

    Raises:
        InputError: The file is not of this form.
    """
    if "{region}" not in question:
        raise InputError(f"the question must hold {{region}}, got {question!r}")
    tables = read_tables(read_json(path, "a file in COCO's form"), path)
    names = {key: name.replace("_", " ").replace(":", " ") for key, name in (tables.categories or {}).items()}
    of_image: dict[Id, list[int]] = {}
    for position, annotation in enumerate(tables.annotations):
        try:
            key = tables.annotation_image(annotation)
            refuse_ignored(annotation, crowds)
            of_image.setdefault(key, []).append(position)
        except InvalidAnnotationError as error:
            target.leave_out_annotation(error, f"{path}#annotations[{position}]")
    find = ImageFinder(Path(img_prefix))
    for position in range(len(tables.images)):
        where = f"{path}#images[{position}]"
        try:
            key, image = tables.image_id(position), tables.images[position]
            name = require_text(image_file_name(image), "file_name of the image")
            rows = of_image.pop(key, [])
            clues = tables.clues(image, [tables.annotations[row] for row in rows])
            file = target.found(find, name, where) if rows else ""
            placed = target.place(file, clues) if rows else None
        except InvalidAnnotationError as error:
            target.leave_out_annotation(error, where)
            continue
        size = placed.box_size if placed else clues.size if clues.frame is None else None
        regions = _regions(tables, rows, size, names, path, target)
        if not regions:
            target.leave_out(NO_BOX, f"{where}: {NO_BOX}", fault=False)
            continue
        framed = frame_fields(placed, clues, np.asarray([box for box, _, _ in regions]))
        try:
            framed = with_masks(framed, [mask for _, _, mask in regions], placed, target)
        except InvalidAnnotationError as error:
            target.leave_out_annotation(error, where)
            continue
        yield {
            "id": where.rpartition("/")[2],
            "image": target.image_name(file),
            **framed,
            **caption_fields([called for _, called, _ in regions], question),
        }
    lost = sum(map(len, of_image.values()))
    if lost:
        target.leave_out("box without its image", f"{path}: {lost} boxes in images that are left out", lost)


def _regions(
    tables: CocoTables,
    positions: Iterable[int],
    size: tuple[int, int] | None,
    names: Mapping[Id, str],
    path: Path,
    target: Conversion,
) -> list[tuple[list[float], str, Any]]:
    """Returns the boxes xyxy of an image, what they are called, and their masks; size: (height, width) of the image."""
    regions = []
    for position in positions:
        annotation, where = tables.annotations[position], f"{path}#annotations[{position}]"
        try:
            box, is_cut = annotation_box_inside(annotation, size)
            regions.append((box, _called(annotation, names), annotation.get("segmentation") or None))
            if is_cut:
                target.note(CUT, where)
        except InvalidAnnotationError as error:
            target.leave_out_annotation(error, where)
    return regions


def _called(annotation: Mapping[str, Any], names: Mapping[Id, str]) -> str:
    """Returns the caption or the category of a box; raises InvalidAnnotationError where it has neither."""
    category: Any = annotation.get("category_id")
    called = annotation.get("caption") or (names.get(category) if is_id(category) else None)
    if not called and not names:  # no table of categories
        called = stated_category(annotation)
    if not called:
        raise InvalidAnnotationError("box with neither a caption nor a known category")
    return require_text(called, "caption of the box")


def write_coco(objects: Iterable[dict[str, Any]], path: Path, target: Conversion, labels: bool = False) -> int:
    """Writes objects of the unified format as one COCO file, with the text of each box as its `caption`.

    Images must open, because COCO tells their size. With `labels` every different text becomes a category; else all
    boxes are of the category `region`. Returns the number of boxes.
    """
    made = _CocoFile(path.parent, labels)
    for entry in objects:
        try:
            made.add(check_object(entry, str(entry.get("id", "object"))))
            target.kept += 1 + len(entry.get("boxes") or ())
        except BadObjectError as error:
            target.leave_out(error.kind, str(error), fault=error.fault)
        except InputError as error:
            target.leave_out("image that cannot be opened", str(error))
    if not made.annotations:
        first = f"; the first: {target.examples[0]}" if target.examples else ""
        raise InputError(f"{path}: not written, because there is no box{first}")
    with atomic_path(path) as beside, beside.open("w", encoding="utf-8") as file:
        json.dump(made.content(), file, ensure_ascii=False)
    return len(made.annotations)


class _CocoFile:
    """Collects images, boxes and categories."""

    def __init__(self, folder: Path, labels: bool) -> None:
        self.folder, self.labels = folder, labels
        self.images: dict[tuple[str, str], dict[str, Any]] = {}
        self.annotations: list[dict[str, Any]] = []
        self.categories: dict[str, int] = {} if labels else {"region": 1}

    def add(self, entry: dict[str, Any]) -> None:
        """Adds one checked object; one without an image has nothing to add."""
        if entry["image"] is None:
            return
        image = self._image(entry)
        for called, (x1, y1, x2, y2) in zip(texts_of(entry), entry["boxes"].tolist(), strict=True):
            category = called if self.labels and called else "region"
            annotation = {
                "id": len(self.annotations) + 1,
                "image_id": image["id"],
                "category_id": self.categories.setdefault(category, len(self.categories) + 1),
                "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                "area": round((x2 - x1) * (y2 - y1), 2),
                "iscrowd": 0,
                "segmentation": [],
            }
            self.annotations.append(annotation | ({"caption": called} if called else {}))

    def _image(self, entry: dict[str, Any]) -> dict[str, Any]:
        name, pipeline = key = entry["image"], as_image_pipeline(entry["image_pipeline"] or "dialogue")
        if key not in self.images:
            header = read_header(str(self.folder / name))
            height, width = header.size_read_by(pipeline)
            row = {"id": len(self.images) + 1, "file_name": name, "height": height, "width": width}
            self.images[key] = row if header.orientation == 1 else {**row, "image_pipeline": pipeline}
        return self.images[key]

    def content(self) -> dict[str, Any]:
        return {
            "info": {"description": "written by gpt4roi data convert"},
            "images": list(self.images.values()),
            "annotations": self.annotations,
            "categories": [{"id": number, "name": name} for name, number in self.categories.items()],
        }
