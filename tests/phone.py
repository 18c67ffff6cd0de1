"""Photographs as phones store them: a red square on a pale ground, with an EXIF flag that turns or mirrors it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

WIDTH, HEIGHT = 200, 150
STORED = (10, 10, 60, 50)
"""The red square in pixels of the image as it is stored, xyxy."""
RED = (220, 20, 20)
ORIENTATIONS = range(1, 9)


def save_photo(path: Path, orientation: int = 1, square: tuple[int, int, int, int] = STORED) -> Path:
    """Writes the photograph: stored 200 x 150, with the square, a blue disc, and an EXIF orientation."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (200, 220, 240))
    draw = ImageDraw.Draw(image)
    draw.rectangle((square[0], square[1], square[2] - 1, square[3] - 1), fill=RED)
    draw.ellipse((125, 75, 190, 140), fill=(20, 60, 220))
    image.save(path, exif=_exif(orientation), quality=95)
    return path


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    return exif


def seen(orientation: int, square: tuple[int, int, int, int] = STORED) -> tuple[tuple[int, int], list[int]]:
    """Returns the (height, width) of the photograph as viewers show it, and the square's box there, as Pillow says."""
    mask = Image.new("L", (WIDTH, HEIGHT))
    mask.paste(255, square)
    mask.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(mask)
    box = upright.getbbox()
    assert box is not None
    return (upright.height, upright.width), list(box)


def xywh(box: Any) -> list[float]:
    """Returns a box as COCO writes it."""
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def coco(name: str, size: tuple[int, int] | None, box: Any, **more: Any) -> dict[str, Any]:
    """Returns a COCO file of one image, of (height, width), with one box xyxy called red square."""
    sides = {} if size is None else {"height": size[0], "width": size[1]}
    return {
        "images": [{"id": 1, "file_name": name, **sides}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": xywh(box), "iscrowd": 0}],
        "categories": [{"id": 1, "name": "red square"}],
        **more,
    }


def colour(image: Any, box: Any) -> list[int]:
    """Returns the mean colour of a box xyxy of an image or of its file as viewers show it."""
    if not isinstance(image, Image.Image):
        with Image.open(image) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    crop = image.crop([round(value) for value in box])
    return np.asarray(crop).reshape(-1, 3).mean(axis=0).round().astype(int).tolist()


def is_red(found: Any) -> bool:
    """Tells whether a mean colour is the square's, up to JPEG's noise at its edges."""
    return bool(np.abs(np.asarray(found) - RED).max() <= 12)
