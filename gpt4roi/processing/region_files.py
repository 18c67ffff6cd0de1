"""Region files: the boxes and masks of one image that a JSON file holds, in whichever of the usual forms."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.geometry.frames import Frame, FrameClues, FrameRule, frame_of_exporter
from gpt4roi.geometry.masks import size_of_runs
from gpt4roi.io.coco import (
    NO_AREA,
    OUTSIDE,
    InvalidAnnotationError,
    annotation_box_inside,
    annotation_xywh,
    frame_clues,
    image_file_name,
    image_size,
    is_placeholder,
    read_tables,
    refuse_ignored,
)
from gpt4roi.io.json_files import read_json
from gpt4roi.io.labelling_tools import as_coco
from gpt4roi.io.region_forms import LISTS, box_format, mask_of, regions_of, stated_size
from gpt4roi.processing.images import read_header

logger = logging.getLogger(__name__)

MAX_LOGGED_REGIONS = 5
"""Regions that one line of the log names."""

_EXPECTED = "a list of [x1, y1, x2, y2], of masks, or of objects with box, bbox or segmentation"


def read_regions(path: str | Path, image: str | Path = "") -> list[Any]:
    """Returns the regions of a file as `read_framed_regions`, without what it says about their frame.

    Raises InputError also where the file is for an image of another size than this one, if it is there.
    """
    regions, clues = read_framed_regions(path, image)
    if image and Path(image).is_file():
        FrameRule().place(read_header(str(image)), clues, str(image), f"{path}: ")
    return regions


def read_framed_regions(path: str | Path, image: str | Path = "", masks: bool = False) -> tuple[list[Any], FrameClues]:
    """Reads the boxes (xyxy in pixels) and masks of a JSON file, in its order, as `validate_regions` takes them.

    Of an entry that has a box and a mask the box is taken; with `masks`, the mask inside of the box.

    The file holds a list, or an object with one, such as `regions`, `annotations`, `boxes` or `bboxes`; it may state
    `box_format` (xyxy, xywh, cxcywh) and `img_width`, `img_height`. An entry is four numbers, a mask, or an object with
    one of: `box` or `bbox_2d` (xyxy), `bbox` (x, y, width, height, as COCO writes it, unless another format is stated),
    corners by name, a mask as `segmentation`, `mask`, `rle` or `polygon`. Entries without a region are left out, which
    is logged. Of a COCO file of several images, or one of VIA, those of `image`, by file name; also a file of labelme.

    Returns:
        The regions, and what the file says about the image that they are on.

    Raises:
        InputError: There are none, or one is of another form; it names file and entry.
    """
    content = as_coco(read_json(path))
    row: dict[str, Any] = {}
    entries, stated = content, ""
    if isinstance(content, dict):
        name = next((name for name in LISTS if isinstance(content.get(name), list)), None)
        if name is None:
            raise InputError(f"{path}: expected {_EXPECTED}; got an object with {', '.join(content) or 'nothing'}")
        if content.get("images"):
            row, entries = _of_image(content, image, path)
        else:
            row, entries, stated = content, content[name], box_format(content, str(path))
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected {_EXPECTED}; got {entries!r:.60}")
    if not entries:
        raise InputError(f"{path}: holds no region; expected {_EXPECTED}")
    images = {str(entry["image_id"]) for entry in entries if isinstance(entry, dict) and "image_id" in entry}
    if len(images) > 1:
        raise InputError(
            f"{path}: its regions are on {len(images)} images, by image_id; expected those of one, or the names of "
            "all under images, or use `gpt4roi caption`"
        )
    regions = _regions(entries, stated, path, masks)
    return regions, _clues(content, row, entries)


def _regions(entries: list[Any], stated: str, path: str | Path, masks: bool) -> list[Any]:
    regions, without = [], []
    for number, entry in enumerate(entries):
        found = regions_of(entry, f"{path}#{number}", stated, masks)
        regions += found
        without += [] if found else [number]
    if not regions:
        got = ", ".join(map(str, entries[0]))
        raise InputError(f"{path}#0: expected an object with box, bbox or segmentation; got {got}")
    if without:
        named = ", ".join(f"#{number}" for number in without[:MAX_LOGGED_REGIONS])
        more = f" and {len(without) - MAX_LOGGED_REGIONS} more" if len(without) > MAX_LOGGED_REGIONS else ""
        logger.warning("%s: %d entries have no region and are left out: %s%s", path, len(without), named, more)
    return regions


def _clues(content: Any, row: dict[str, Any], entries: list[Any]) -> FrameClues:
    """Returns what a file says about the frame of its regions: in the image's row, at the top, or in run lengths."""
    picture = row.get("picture")
    size = image_size(row) or stated_size(content) or (image_size(picture) if isinstance(picture, dict) else None)
    frame = frame_clues(row, frame_of_exporter(content)).frame
    default: Frame = "stored" if "conversations" in row else "upright"  # the unified format, as training reads it
    return FrameClues(size or size_of_runs(map(mask_of, entries)), frame, default)


def _of_image(content: dict[str, Any], image_file: str | Path, path: str | Path) -> tuple[dict[str, Any], list[Any]]:
    """Returns the row and the annotations of one image of a COCO file."""
    read_tables({**content, "annotations": content.get("annotations") or []}, path)  # writes ids and boxes in one way
    images = [image for image in content["images"] if isinstance(image, dict)]
    wanted = PurePath(image_file).name
    found = [image for image in images if PureWindowsPath(image_file_name(image)).name == wanted]
    if len(images) == 1 and not found:
        found = images
    if len(found) != 1:
        raise InputError(f"{path}: {len(found)} of its {len(images)} images are called {wanted!r}, expected one")
    identity = found[0].get("id")
    entries = content.get("annotations") or []
    entries = [entry for entry in entries if isinstance(entry, dict) and entry.get("image_id") == identity]
    size = None if frame_of_exporter(content) else image_size(found[0])  # may be of the other frame
    return found[0], list(_inside(entries, size, path))


def _inside(
    entries: Sequence[dict[str, Any]], size: tuple[int, int] | None, path: str | Path
) -> Iterator[dict[str, Any]]:
    """Yields COCO annotations whose boxes are cut at the border of an image of size (height, width).

    Says which were cut, and which are left out: without area inside, or of crowds.
    """
    for number, entry in enumerate(entries):
        if not entry.get("bbox") and not entry.get("segmentation"):
            yield entry  # of another form
            continue
        try:
            refuse_ignored(entry)
            (x1, y1, x2, y2), is_cut = annotation_box_inside(entry, size)
        except InvalidAnnotationError as error:
            if error.fault and error.reason not in (OUTSIDE, NO_AREA):
                raise InputError(f"{path}#{number}: {error}") from None
            logger.warning("%s#%d is left out: %s", path, number, error)
            continue
        if is_cut:
            logger.warning("%s#%d reaches out of the image and was cut at its border", path, number)
            yield {**entry, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        elif entry.get("segmentation") and is_placeholder(entry.get("bbox")):
            yield {key: value for key, value in entry.items() if key != "bbox"}
        else:
            yield {**entry, "bbox": annotation_xywh(entry)}
