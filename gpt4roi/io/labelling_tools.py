"""Labelling tools' own files, labelme's and those of VIA (VGG Image Annotator), in COCO's form."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from math import cos, hypot, sin
from typing import Any

_AREAS = ("rectangle", "polygon", "mask", "oriented_rectangle")
"""Shapes of labelme whose points are their corners."""


def as_coco(content: Any) -> Any:
    """Returns a file of labelme (one image, with its size) or VIA (several, without) in COCO's form; others as given.

    What has no area, such as a point or a line, has a label alone.
    """
    if not isinstance(content, dict):
        return content
    if isinstance(content.get("shapes"), list) and isinstance(content.get("imagePath"), str):
        size = {"height": content.get("imageHeight"), "width": content.get("imageWidth")}
        shapes = [_of_labelme(shape) for shape in content["shapes"] if isinstance(shape, dict)]
        return {"image": {"file_name": content["imagePath"], **size}, "annotations": shapes}
    entries = content.get("_via_img_metadata", content)
    entries = list(entries.values()) if isinstance(entries, dict) else []
    if not entries or not all(isinstance(one, dict) and {"filename", "regions"} <= one.keys() for one in entries):
        return content
    images = [{"id": number, "file_name": entry["filename"]} for number, entry in enumerate(entries, start=1)]
    regions = [
        {"image_id": number, **_of_via(region)}
        for number, entry in enumerate(entries, start=1)
        for region in _listed(entry["regions"])
    ]
    return {"images": images, "annotations": regions}


def _of_labelme(shape: Mapping[str, Any]) -> dict[str, Any]:
    region, kind = {"label": shape.get("label")}, shape.get("shape_type") or "polygon"
    with contextlib.suppress(TypeError, ValueError, IndexError):  # damaged points are counted as a region without a box
        xs, ys = zip(*shape["points"], strict=True) if shape.get("points") else ((), ())
        if kind == "circle":
            radius = hypot(xs[1] - xs[0], ys[1] - ys[0])
            region["bbox"] = _around_centre(xs[0], ys[0], radius, radius)
        elif kind in _AREAS:
            region["bbox"] = _around(xs, ys)
    return region


def _of_via(region: Any) -> dict[str, Any]:
    region = region if isinstance(region, dict) else {}
    given = region.get("region_attributes")
    labels = (
        [" ".join(one) if isinstance(one, dict) else one for one in given.values() if one]
        if isinstance(given, dict)
        else []
    )
    found: dict[str, Any] = {"label": str(labels[0]) if labels else None}
    shape: dict[str, Any] = region.get("shape_attributes") or {}
    with contextlib.suppress(KeyError, TypeError, ValueError):
        if shape["name"] == "rect":
            found["bbox"] = [shape[key] for key in ("x", "y", "width", "height")]
        elif shape["name"] == "polygon":
            found["bbox"] = _around(shape["all_points_x"], shape["all_points_y"])
        elif shape["name"] == "circle":
            found["bbox"] = _around_centre(shape["cx"], shape["cy"], shape["r"], shape["r"])
        elif shape["name"] == "ellipse":
            a, b, turn = shape["rx"], shape["ry"], shape.get("theta") or 0.0
            across, down = hypot(a * cos(turn), b * sin(turn)), hypot(a * sin(turn), b * cos(turn))
            found["bbox"] = _around_centre(shape["cx"], shape["cy"], across, down)
    return found


def _listed(regions: Any) -> Sequence[Any]:
    """Returns the regions of an image: VIA 2 lists them, VIA 1 numbers them."""
    return list(regions.values()) if isinstance(regions, dict) else regions if isinstance(regions, list) else []


def _around(xs: Sequence[float], ys: Sequence[float]) -> list[float]:
    """Returns the box x, y, width, height around points."""
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _around_centre(x: float, y: float, across: float, down: float) -> list[float]:
    return [x - across, y - down, 2 * across, 2 * down]
