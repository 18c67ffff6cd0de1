"""Regions of one image from a JSON file, in the forms in which people have them."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.geometry.boxes import xywh_to_xyxy

_LISTS = ("regions", "annotations", "boxes")
_CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"))
_MASKS = ("segmentation", "mask", "rle", "polygon")
_EXPECTED = "a list of [x1, y1, x2, y2], of masks, or of objects with box, bbox or segmentation"


def read_json(path: str | Path) -> Any:
    """Reads a JSON file. Raises InputError naming the file, and the line where it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give a JSON file inside it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text at byte {error.start}; expected JSON") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None


def read_regions(path: str | Path, image: str | Path = "") -> list[Any]:
    """Returns the boxes (xyxy in pixels) and masks of a file, in its order, as inputs.check_boxes takes them.

    The file holds a list, or an object with `regions`, `annotations` or `boxes`. An entry is four numbers, a mask, or
    an object with one of: `box` (xyxy), `bbox` (x, y, width, height, as COCO writes it), corners by name, a mask as
    `segmentation`, `mask`, `rle` or `polygon`. Of a COCO file of several images those of `image`, by file name.
    Raises InputError naming file and entry where there are none or one is of another form.
    """
    content = read_json(path)
    if isinstance(content, dict):
        name = next((name for name in _LISTS if isinstance(content.get(name), list)), None)
        if name is None:
            raise InputError(f"{path}: expected {_EXPECTED}; got an object with {', '.join(content) or 'nothing'}")
        entries = _of_image(content, image, path) if content.get("images") else content[name]
    else:
        entries = content
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
    return [_region(entry, f"{path}#{number}") for number, entry in enumerate(entries)]


def _of_image(content: dict[str, Any], image_file: str | Path, path: str | Path) -> list[Any]:
    """Returns the annotations of one image of a COCO file."""
    images = [image for image in content["images"] if isinstance(image, dict)]
    wanted = PurePath(image_file).name
    found = [image for image in images if PurePath(file_name(image)).name == wanted]
    if len(images) == 1 and not found:
        found = images
    if len(found) != 1:
        raise InputError(f"{path}: {len(found)} of its {len(images)} images are called {wanted!r}, expected one")
    identity = found[0].get("id")
    entries = content.get("annotations") or []
    return [entry for entry in entries if isinstance(entry, dict) and entry.get("image_id") == identity]


def file_name(image: dict[str, Any]) -> str:
    """Returns the relative path of a COCO or LVIS image; LVIS writes it at the end of an address."""
    name = image.get("file_name")
    if isinstance(name, str) and name:
        return name
    return "/".join(str(image.get("coco_url", "")).split("/")[-2:])


def _region(entry: Any, where: str) -> Any:
    if not isinstance(entry, dict) or {"size", "counts"} <= entry.keys():
        return entry
    if entry.get("box"):
        return entry["box"]
    if entry.get("bbox"):
        return coco_box(entry["bbox"], where)
    for names in _CORNERS:
        if set(names) <= entry.keys():
            return [entry[name] for name in names]
    for name in _MASKS:
        if entry.get(name):
            return entry[name]
    raise InputError(f"{where}: expected an object with box, bbox or segmentation; got {', '.join(map(str, entry))}")


def coco_box(bbox: Any, where: str) -> list[float]:
    """Turns COCO's x, y, width, height into xyxy. Raises InputError where it is not four numbers."""
    import numpy as np

    try:
        values = np.asarray([float(value) for value in bbox])
    except (TypeError, ValueError, OverflowError):
        values = np.zeros(0)
    if len(values) != 4 or isinstance(bbox, str):
        raise InputError(f"{where}: expected bbox as x, y, width, height, got {bbox!r:.60}")
    return xywh_to_xyxy(values).tolist()
