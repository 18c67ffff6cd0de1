"""Image files in folders: the endings of images, and where an image that a file names lies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

COCO_2014_PREFIX = re.compile(r"^COCO_(?:train|val|test)\d{4}_")
"""COCO 2014 writes `COCO_train2014_000000581857.jpg` where COCO 2017 has `000000581857.jpg`."""


def list_images(folder: Path) -> list[Path]:
    """Returns every image in a folder and below it, sorted."""
    return sorted(found for found in folder.rglob("*") if found.suffix.lower() in IMAGE_ENDINGS)


def index_images(folder: Path) -> dict[int | str, Path]:
    """Returns every image of a folder, relative to it, by each of its names.

    These are its number, its name without and with ending, and its relative path; of several, the first in the order
    of their paths.
    """
    known: dict[int | str, Path] = {}
    for found in list_images(folder):
        relative = found.relative_to(folder)
        if found.stem.isdecimal():
            known.setdefault(int(found.stem), relative)
        for key in (found.stem, found.name, relative.as_posix()):
            known.setdefault(key, relative)
    return known


def find_image(folders: Path | Sequence[Path], name: str) -> Path:
    """Returns where an image lies: by its relative path, by its bare name, or by that in COCO's form of 2017.

    Args:
        folders: Searched in their order, for each form of the name.
        name: `file_name` as an annotation file has it.

    Returns:
        The path; where there is none, that of the bare name in the first folder.
    """
    folders = [folders] if isinstance(folders, Path) else list(folders)
    bare = PurePath(name).name
    for form in (name.lstrip("/"), bare, COCO_2014_PREFIX.sub("", bare)):
        found = next((folder / form for folder in folders if (folder / form).exists()), None)
        if found is not None:
            return found
    return folders[0] / bare


def find_image_by_stem(folder: Path, stem: str) -> Path | None:
    """Returns the image of a name without ending, endings in either case; None where there is none."""
    found = (folder / f"{stem}{ending}" for ending in (*IMAGE_ENDINGS, *map(str.upper, IMAGE_ENDINGS)))
    return next((path for path in found if path.is_file()), None)
