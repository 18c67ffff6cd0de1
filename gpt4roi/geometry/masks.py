"""Masks as boxes and as rasters inside them: arrays, run lengths and polygons as COCO, LVIS and Osprey write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.structures import MASK_SIZE

_FORMS = "an array [H, W], run lengths {size, counts} or polygons [[x1, y1, x2, y2, …], …]"
_MAX_SIDE = 1_000_000
_POLYGON_GRID = 8 * MASK_SIZE
"""Cells a side of a box in which polygons are drawn, to be counted."""


def to_boxes(masks: Sequence[Any], where: str = "") -> np.ndarray:
    """Turns N masks (each as of to_box) into float64[N, 4], xyxy in pixels; a message names the mask, from 1."""
    boxes = [to_box(mask, f" of mask {number}{where}") for number, mask in enumerate(masks, start=1)]
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def to_box(mask: Any, where: str = "") -> np.ndarray:
    """Turns one mask into the box around it, float64[4], xyxy in pixels of the image.

    mask: an array, PIL image or nested list [H, W], not 0 inside (axes of length 1 are dropped; of floats, above 0.5
        inside, and above 0 where some are negative, as of logits);
        COCO's run lengths, `{"size": [H, W], "counts": …}`, with counts a list of numbers or the compressed text, or
        a list of such, which together are the mask;
        or polygons: one or several, as [x1, y1, x2, y2, …] or [[x1, y1], …].
    The box of a mask of pixels ends after its last pixel; that of polygons at their outermost corners.
    where: the end of every message, such as " in train.jsonl#3".
    Raises InputError for another form, for counts that do not fill the size, and for a mask without a pixel.
    """
    runs = _runs(mask)
    if runs:
        boxes = np.stack([_box_of_runs(one, where) for one in runs])
        return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
    pixels = _pixels(mask)
    return _box_of_polygons(mask, where) if pixels is None else _box_of_array(pixels, where)


def to_raster(mask: Any, box: Any, where: str = "") -> np.ndarray:
    """Turns a mask into the share of each cell of a box that it covers, float32[r, r], row by row; r is MASK_SIZE.

    mask: as of to_box. box: four numbers, xyxy in pixels of the mask's image; usually the one around it.
    Raises InputError where nothing of the box is covered, besides what to_box raises.
    """
    runs, pixels = _runs(mask), _pixels(mask)
    if runs:
        pixels = np.maximum.reduce([_decoded(one, where) for one in runs])
    elif pixels is not None:
        pixels = _inside(pixels, where)
    else:
        (x1, y1, x2, y2), side = (float(value) for value in box), _POLYGON_GRID
        scale = side / np.maximum([x2 - x1, y2 - y1], 1e-9)
        drawn = [((corners - (x1, y1)) * scale).ravel().tolist() for corners in _polygons(mask, where)]
        pixels, box = _decoded_polygons(drawn, side, side), (0, 0, side, side)
    raster = _covered(pixels, box)
    if not raster.any():
        raise _empty(where)
    return raster


def cut_raster(raster: np.ndarray, box: Any, inside: Any, where: str = "") -> np.ndarray:
    """Returns the raster of a box, float32[r, r], as that of another box, as one that was cut at the image's border."""
    (x1, y1, x2, y2), inside = (float(value) for value in box), np.asarray(inside, dtype=np.float64)
    if (inside == [x1, y1, x2, y2]).all() or not (inside[:2] < inside[2:]).all():
        return raster
    cut = _covered(raster, (inside - [x1, y1, x1, y1]) * MASK_SIZE / [x2 - x1, y2 - y1, x2 - x1, y2 - y1])
    if not cut.any():
        raise _empty(where)
    return cut


def stroke_polygons(points: Any, radius: float, size: tuple[int, int]) -> list[list[list[float]]]:
    """Returns what a round brush covers that is drawn through points (x, y), as polygons inside an image.

    radius: of the brush, in pixels. size: (height, width) of the image, at whose border it is cut.
    """
    centres = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    turns = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    circle = radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    shapes = [centre + circle for centre in centres]
    for start, end in pairwise(centres):
        along = (end - start) / max(float(np.hypot(*(end - start))), 1e-9)
        across = radius * np.asarray([-along[1], along[0]])
        shapes.append(np.stack([start + across, end + across, end - across, start - across]))
    return [np.clip(shape, 0, (size[1], size[0])).tolist() for shape in shapes]


def _covered(pixels: np.ndarray, box: Any) -> np.ndarray:
    """Returns the mean of pixels [H, W] over each of r x r cells of a box, exactly; 0 outside the pixels."""
    x1, y1, x2, y2 = (float(value) for value in box)
    left, top = max(int(x1), 0), max(int(y1), 0)
    inside = pixels[top : max(int(y2) + 1, 0), left : max(int(x2) + 1, 0)].astype(np.float64)
    rows, columns = _shares(y1 - top, y2 - top, len(inside)), _shares(x1 - left, x2 - left, inside.shape[1])
    # Digits beyond these are rounding: a full mask shall be 1.
    return (rows @ inside @ columns.T).round(6).clip(0, 1).astype(np.float32)


def _shares(low: float, high: float, length: int) -> np.ndarray:
    """Returns the share of each of `length` pixels in each of r cells between low and high, float64[r, length]."""
    edges = np.linspace(low, high, MASK_SIZE + 1)
    first = np.arange(length)
    overlap = np.minimum(edges[1:, None], first + 1) - np.maximum(edges[:-1, None], first)
    return overlap.clip(min=0) / max(high - low, 1e-9) * MASK_SIZE


def to_pixels(mask: Any, size: tuple[int, int], drawn_on: tuple[int, int] | None = None) -> np.ndarray:
    """Returns run lengths of any size, or polygons, as pixels of an image, uint8[height, width].

    size: (height, width) of the image. drawn_on: the same of the one that polygons are pixels of, where it is another.
    """
    if not _runs(mask):
        scale = np.divide(size, drawn_on or size)[::-1]
        return _decoded_polygons([(one * scale).ravel().tolist() for one in _polygons(mask, "")], *size)
    pixels = np.maximum.reduce([_decoded(one, "") for one in _runs(mask)])
    rows, columns = (np.arange(side) * own // side for side, own in zip(size, pixels.shape, strict=True))
    return pixels[rows][:, columns]


def to_runs(pixels: np.ndarray) -> dict[str, Any]:
    """Returns pixels [H, W], not 0 inside, as COCO's compressed run lengths."""
    from pycocotools import mask as coco

    runs = coco.encode(np.asfortranarray(pixels != 0).astype(np.uint8))
    return {"size": list(pixels.shape), "counts": runs["counts"].decode()}


def size_of(mask: Any) -> tuple[int, int] | None:
    """Returns the (height, width) that a mask was made for; None for polygons, which do not say."""
    runs = _runs(mask)
    if runs:
        height, width = runs[0]["size"]
        return int(height), int(width)
    pixels = _pixels(mask)
    return (pixels.shape[0], pixels.shape[1]) if pixels is not None else None


def _runs(mask: Any) -> Sequence[Mapping[str, Any]]:
    """Returns the run lengths that a mask consists of; none for one of another form."""
    parts = [mask] if isinstance(mask, Mapping) else mask
    is_runs = isinstance(parts, list | tuple) and all(isinstance(one, Mapping) and "counts" in one for one in parts)
    return parts if is_runs or isinstance(mask, Mapping) else ()


def _pixels(mask: Any) -> np.ndarray | None:
    """Returns a mask of pixels as an array without superfluous axes of length 1; None for one of another form."""
    if not isinstance(mask, np.ndarray) and not hasattr(mask, "__array_interface__"):
        wrapped = isinstance(mask, Sequence) and len(mask) == 1
        if not _is_grid(mask[0] if wrapped else mask):
            return None
    pixels = np.asarray(mask)
    while pixels.ndim > 2 and 1 in (pixels.shape[0], pixels.shape[-1]):
        pixels = pixels[0] if pixels.shape[0] == 1 else pixels[..., 0]
    return pixels


def _is_grid(value: Any) -> bool:
    """Tells whether rows of 0 and 1 are a mask: two or more, each of as many pixels; polygons reach further."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) < 2:
        return False
    if not all(isinstance(row, Sequence) and len(row) == len(value[0]) > 2 for row in value):
        return False
    return all(isinstance(pixel, int) and 0 <= pixel <= 1 for row in value for pixel in row)


def size_of_runs(masks: Iterable[Any]) -> tuple[int, int] | None:
    """Returns the (height, width) that the first of some run lengths says it was made for; None where none does."""
    for runs in filter(None, map(_runs, masks)):
        size = runs[0].get("size")
        if isinstance(size, list | tuple) and len(size) == 2 and all(_is_whole(side) for side in size):
            return int(size[0]), int(size[1])
    return None


def _box_of_array(mask: np.ndarray, where: str) -> np.ndarray:
    if mask.ndim != 2:
        raise InputError(f"a mask must be an array [H, W], got shape {list(mask.shape)}{where}")
    inside = _inside(mask, where)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        raise _empty(where)
    return np.asarray([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def _inside(mask: np.ndarray, where: str) -> np.ndarray:
    """Returns which pixels lie inside: those not 0 of a mask of two values, or those of a soft one by its threshold."""
    if mask.dtype.kind == "b" or not mask.size:
        return mask
    lowest, highest = np.nanmin(mask), np.nanmax(mask)
    value = highest or lowest
    if mask.dtype.kind == "f" and (lowest < 0 < highest or 0 < highest <= 1):
        return mask > (0 if lowest < 0 else 0.5)
    if ((mask == 0) | (mask == value)).all():
        return mask != 0
    raise InputError(
        f"a mask must be true or false for each pixel, got values from {lowest:g} to {highest:g}{where}; give one of "
        f"them, for example mask > {(lowest + highest) / 2:g} or mask == {highest:g}"
    )


def _box_of_runs(mask: Mapping[str, Any], where: str) -> np.ndarray:
    from pycocotools import mask as coco

    runs = _coco_runs(mask, where)
    if not coco.area(runs):
        raise _empty(where)
    x, y, w, h = coco.toBbox(runs)
    return np.asarray([x, y, x + w, y + h], dtype=np.float64)


def _decoded(mask: Mapping[str, Any], where: str) -> np.ndarray:
    """Returns run lengths as pixels, uint8[H, W]."""
    from pycocotools import mask as coco

    return coco.decode(_coco_runs(mask, where))


def _decoded_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """Returns the pixels inside any of some polygons, uint8[height, width]."""
    from pycocotools import mask as coco

    return coco.decode(coco.merge(coco.frPyObjects(list(polygons), height, width)))


def _coco_runs(mask: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns run lengths as pycocotools takes them, after checking that they fill their size."""
    from pycocotools import mask as coco

    height, width = _checked_size(mask.get("size"), where)
    counts = mask.get("counts")
    if isinstance(counts, str | bytes):
        text = counts.encode(errors="replace") if isinstance(counts, str) else counts
        lengths = _run_lengths(text, where)
        runs = {"size": [height, width], "counts": text}
    elif isinstance(counts, Sequence) and all(_is_whole(count) and count >= 0 for count in counts):
        lengths = [int(count) for count in counts]
        runs = None
    else:
        raise InputError(f"counts must be text or a list of whole numbers, got {counts!r:.60}{where}")
    if sum(lengths) != height * width:
        expected = f"height x width is {height} x {width} = {height * width}"
        raise InputError(f"counts sum to {sum(lengths)} but {expected}{where}")
    if runs is None:
        runs = coco.frPyObjects({"size": [height, width], "counts": lengths}, height, width)
    return runs


def _checked_size(size: Any, where: str) -> tuple[int, int]:
    whole = isinstance(size, Sequence) and len(size) == 2 and all(_is_whole(side) for side in size)
    if not whole or not all(0 < side <= _MAX_SIDE for side in size):
        raise InputError(f"run lengths need size [height, width] in pixels, got {size!r:.60}{where}")
    return int(size[0]), int(size[1])


def _run_lengths(text: bytes, where: str) -> list[int]:
    """Reads COCO's compressed counts: five bits a character; from the fourth on, the difference to the last but one.

    The library reads any text without a complaint, so this is where a damaged one is noticed.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 30:
            raise InputError(f"counts are not COCO's compressed run lengths: {text!r:.60}{where}")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    if shift or any(length < 0 for length in lengths):
        raise InputError(f"counts are not COCO's compressed run lengths: {text!r:.60}{where}")
    return lengths


def _box_of_polygons(polygons: Sequence[Any], where: str) -> np.ndarray:
    points = np.concatenate(_polygons(polygons, where))
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _polygons(polygons: Any, where: str) -> list[np.ndarray]:
    """Returns the corners of each polygon of a mask, one at least, float64[K, 2]."""
    if not isinstance(polygons, Sequence) or isinstance(polygons, str | bytes):
        raise InputError(f"a mask must be {_FORMS}; got {polygons!r:.60}{where}")
    numbers = bool(polygons) and all(_is_number(value) for value in polygons)
    single = numbers or (len(polygons) > 2 and all(_is_point(value) for value in polygons))
    corners = [_corners(polygon, where) for polygon in ([polygons] if single else polygons)]
    if not corners:
        raise _empty(where)
    return corners


def _corners(polygon: Any, where: str) -> np.ndarray:
    """Returns the corners of one polygon, float64[K, 2]."""
    try:
        values = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        values = np.zeros(0)
    flat = values.ndim == 1 and len(values) % 2 == 0
    pairs = values.ndim == 2 and values.shape[1] == 2
    if isinstance(polygon, str) or not (flat or pairs) or values.size < 6 or not (np.abs(values) <= _MAX_SIDE).all():
        raise InputError(f"a polygon needs three corners or more, as numbers, got {polygon!r:.60}{where}")
    return values.reshape(-1, 2)


def _is_point(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and len(value) == 2 and all(_is_number(one) for one in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return (isinstance(value, Integral) and not isinstance(value, bool)) or (
        isinstance(value, float) and value.is_integer()
    )


def _empty(where: str) -> InputError:
    return InputError(f"the mask is empty: no pixel lies inside{where}")
