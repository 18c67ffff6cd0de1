"""Reads boxes to be captioned: COCO, LVIS, a detector's results in COCO form, and the unified format."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.geometry.boxes import xyxy_to_xywh
from gpt4roi.geometry.frames import FRAMES, Frame, FrameClues
from gpt4roi.io.coco import (
    FilteredOutError,
    Id,
    InvalidAnnotationError,
    as_id,
    image_file_name,
    is_of_one_image,
    read_tables,
    refuse_ignored,
    tables_of_single_images,
    with_unique_ids,
)
from gpt4roi.io.images_on_disk import ImageFinder
from gpt4roi.io.json_files import read_json, read_jsonl
from gpt4roi.io.labelling_tools import as_coco
from gpt4roi.io.region_forms import FORMAT_KEYS
from gpt4roi.structures import as_image_pipeline

logger = logging.getLogger(__name__)

_EXPECTED = "COCO or LVIS annotations, a detector's results in COCO form, or the unified format"


@dataclass(frozen=True)
class SourceImage:
    """An image and the boxes on it.

    Attributes:
        path: Where it should lie.
        index: Of its row in the `images` table.
        regions: Indices of rows of the `annotations` table.
        size: (height, width) in the file, or None.
    """

    path: Path
    index: int
    regions: tuple[int, ...]
    clues: FrameClues

    @property
    def size(self) -> tuple[int, int] | None:
        """Returns the (height, width) in the file, or None."""
        return self.clues.size


@dataclass(frozen=True)
class Source:
    """A file of boxes as a COCO table, and its images with boxes in the order of the table.

    content: `images`, `annotations` and all else that the file holds; others: its images without boxes.
    failed: what cannot be used, and why; left_out: what a rule leaves out, reason -> number.
    """

    content: dict[str, Any]
    images: list[SourceImage] = field(default_factory=list)
    others: list[SourceImage] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def num_regions(self) -> int:
        """How many boxes there are."""
        return sum(len(image.regions) for image in self.images)


def read_source(path: str | Path, images: str | Path, crowds: bool = False) -> Source:
    """Reads a file of boxes, or a folder of files of one image each.

    Args:
        path: The file or the folder.
        images: The folder of the images.
        crowds: Takes boxes marked `iscrowd` too.

    Raises:
        InputError: It is none of the known forms, or names images or annotations that do not fit.
    """
    folder = Path(images)
    if not folder.is_dir():
        raise InputError(f"--images {images}: no such folder; give the folder of the images")
    files = annotation_files(path)
    contents = [read_jsonl(file) if file.suffix == ".jsonl" else as_coco(read_json(file)) for file in files]
    singles = [is_of_one_image(content) for content in contents]
    if Path(path).is_dir() and not all(singles):
        raise InputError(
            f"{files[singles.index(False)]}: expected one `image` with its annotations, as of SA-1B or labelme"
        )
    content = tables_of_single_images(contents, files) if all(singles) else contents[0]
    if isinstance(content, dict) and "image" in content and "annotations" not in content:
        content = [content]  # the unified format with one image
    default = FRAMES[0]
    if isinstance(content, dict):
        content = _checked_tables(content, path)
    elif isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
        if all("image_id" in entry for entry in content):
            content = _tables_of_results(content, folder, path)
        elif all("image" in entry or "conversations" in entry for entry in content):
            content, default = _tables_of_unified(content, path), FRAMES[1]  # as training reads it
        else:
            raise InputError(f"{path}: expected {_EXPECTED}; an entry has {', '.join(content[0]) or 'nothing'}")
    else:
        raise InputError(f"{path}: expected {_EXPECTED}; got {'an empty list' if content == [] else 'other JSON'}")
    source = _source(content, folder, path, default, crowds)
    if not source.num_regions:
        first = f" that can be used; the first: {source.failed[0]}" if source.failed else ""
        first = first or "".join(f" but {reason}: {count}" for reason, count in source.left_out.items())
        raise InputError(f"{path}: holds no box{first}")
    return source


def annotation_files(path: str | Path) -> list[Path]:
    """Returns the file of boxes, or those of a folder. Raises InputError where there is none."""
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path] * path.is_file()
    if not files:
        raise InputError(f"{path}: no such file; give a file of boxes, or a folder of .json files of one image each")
    return files


def _checked_tables(content: dict[str, Any], path: str | Path) -> dict[str, Any]:
    for name in ("images", "annotations"):
        table = content.get(name)
        if not isinstance(table, list) or not all(isinstance(row, dict) for row in table):
            got = ", ".join(content) or "nothing"
            raise InputError(f"{path}: expected {_EXPECTED}; no list of objects as {name!r}, it has {got:.100}")
    return content


def _tables_of_results(results: list[dict[str, Any]], folder: Path, path: str | Path) -> dict[str, Any]:
    """Makes tables of a detector's results; an image_id is a file's name, its name without ending, or its number."""
    find = ImageFinder(folder)
    for result in results:
        if isinstance(result["image_id"], float):
            result["image_id"] = as_id(result["image_id"])
    identities = {str(result["image_id"]): result["image_id"] for result in results}
    wanted = list(identities)
    found = {key: find.find(key) for key in wanted}
    lacking = [key for key, image in found.items() if image is None]
    if len(lacking) == len(wanted):
        raise InputError(
            f"{path}: none of its {len(wanted)} image_id fits an image in {folder}, such as {lacking[0]!r}; an "
            "image_id is a file's name, with or without ending, or its number"
        )
    numeric = all(isinstance(identity, int) for identity in identities.values())
    ids = {key: identities[key] if numeric else number for number, key in enumerate(wanted, start=1)}
    names = {key: os.path.relpath(image or folder / key, folder) for key, image in found.items()}
    return {
        "images": [{"id": ids[key], "file_name": names[key]} for key in wanted],
        "annotations": [{**result, "image_id": ids[str(result["image_id"])]} for result in results],
    }


def _tables_of_unified(objects: list[dict[str, Any]], path: str | Path) -> dict[str, Any]:
    images: dict[tuple, dict[str, Any]] = {}  # one row for an image: tools look images up by their name
    annotations = []
    for number, entry in enumerate(objects, start=1):
        boxes = entry.get("boxes") or []
        masks = entry.get("masks") or []
        if not entry.get("image"):
            if boxes or masks:
                raise InputError(f"{path}#{number}: has boxes or masks but no image")
            continue  # text alone
        sizes: dict[str, Any] = {side: entry[side] for side in ("height", "width") if isinstance(entry.get(side), int)}
        pipeline = entry.get("image_pipeline") or entry.get("picture_pipeline")
        if pipeline is not None:
            sizes["image_pipeline"] = as_image_pipeline(pipeline, f"{path}#{number}: ")
        key = (str(entry["image"]), *sizes.items())
        image = images.setdefault(key, {"id": number, "file_name": entry["image"], **sizes})["id"]
        if not isinstance(boxes, list) or not isinstance(masks, list):
            raise InputError(f"{path}#{number}: boxes must be a list of [x1, y1, x2, y2], got {boxes!r:.60}")
        for region, box in enumerate(boxes, start=1):
            bbox = _xywh(box, f"{path}#{number}: box {region}")
            annotations.append({"image_id": image, "bbox": bbox, "region": region})
        for region, mask in enumerate(masks if not boxes else [], start=1):
            annotations.append({"image_id": image, "segmentation": mask, "region": region})
    return {"images": list(images.values()), "annotations": annotations}


def _xywh(box: Any, where: str) -> list[float]:
    import numpy as np

    try:
        values = np.asarray([float(value) for value in box])
    except (TypeError, ValueError, OverflowError):
        values = np.zeros(0)
    if len(values) != 4:
        raise InputError(f"{where}: expected four numbers x1, y1, x2, y2, got {box!r:.60}")
    return xyxy_to_xywh(values).tolist()


def _source(content: dict[str, Any], folder: Path, path: str | Path, default: Frame, crowds: bool) -> Source:
    """Joins the tables' annotations to their images, which are looked up in the folder."""
    tables, find = read_tables(content, path), ImageFinder(folder)
    content = {key: value for key, value in content.items() if key not in FORMAT_KEYS}  # boxes are COCO's from here on
    failed, left_out = [], Counter[str]()
    repeated = with_unique_ids(tables.annotations)
    if repeated:
        logger.warning("%s: %d annotations have the id of an earlier one; they get a free number", path, repeated)
    rows: dict[Id, list[int]] = {}
    for index, annotation in enumerate(tables.annotations):
        try:
            key = tables.annotation_image(annotation)
            refuse_ignored(annotation, crowds)
            rows.setdefault(key, []).append(index)
        except FilteredOutError as error:
            left_out[error.reason] += 1
        except InvalidAnnotationError as error:
            failed.append(f"{path}: annotations[{index}]: {error}")
    found = []
    for index, image in enumerate(tables.images):
        try:
            regions = tuple(rows.get(tables.image_id(index), ()))
            if not image_file_name(image):
                raise InvalidAnnotationError("no file_name")
        except FilteredOutError:
            continue  # its boxes are on the first entry of it
        except InvalidAnnotationError as error:
            lost = len(rows.get(image.get("id"), ()))
            failed.append(f"{path}: images[{index}]: {error}" + (f"; {lost} boxes on it" if lost else ""))
            continue
        clues = tables.clues(image, [tables.annotations[row] for row in regions], default)
        found.append(SourceImage(find(image_file_name(image)), index, regions, clues))
    empty = [one for one in found if not one.regions]
    return Source(content, [one for one in found if one.regions], empty, failed, left_out)
