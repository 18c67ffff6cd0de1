"""Image files in folders: the endings of images, and where an image that a file names lies."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

COCO_2014_PREFIX = re.compile(r"^COCO_(?:train|val|test)\d{4}_")
"""COCO 2014 writes `COCO_train2014_000000581857.jpg` where COCO 2017 has `000000581857.jpg`."""


def list_images(folder: Path) -> list[Path]:
    """Returns every image in a folder and below it, sorted."""
    return sorted(found for found in folder.rglob("*") if found.suffix.lower() in IMAGE_ENDINGS)


class ImageFinder:
    r"""Finds the images that annotation files name, whatever machine, program or year the names are of.

    In this order: the path itself; with `\` as `/`, `%20` as a blank, and without drive or address; ever fewer of its
    folders, down to the bare name, and that in COCO's form of 2017; in any subfolder the file of that name (whatever
    the case of its letters), or of that number, which has most of the folders named and is the only one that does.

    Args:
        folders: Searched in their order, for each form of the name.
    """

    def __init__(self, folders: Path | Sequence[Path]) -> None:
        self.folders = [folders] if isinstance(folders, Path) else list(folders)

    def __call__(self, name: str) -> Path:
        """Returns where an image lies; where there is none, where its bare name would lie in the first folder."""
        return self.find(name) or self.folders[0] / (_parts(name) or ("unnamed",))[-1]

    def find(self, name: str) -> Path | None:
        """Returns where an image lies; None where there is none, or where several fit equally well."""
        for form in _forms(name):
            found = next((folder / form for folder in self.folders if _is_file(folder / form)), None)
            if found is not None:
                return found
        return self._find_below(_parts(name))

    def _find_below(self, parts: Sequence[str]) -> Path | None:
        for key in _keys(parts[-1]) if parts else ():
            found = self._index.get(key, [])
            shared = [_common_end(_parts(str(path)), parts) for path in found]
            if shared and shared.count(max(shared)) == 1:
                return found[shared.index(max(shared))]
            if found:
                return None
        return None

    @cached_property
    def _index(self) -> dict[str | int, list[Path]]:
        """Every image in the folders and below, by its names."""
        index: dict[str | int, list[Path]] = {}
        for path in dict.fromkeys(path for folder in self.folders for path in list_images(folder)):
            for key in _keys(path.name) + _keys(path.stem):
                if path not in index.setdefault(key, []):
                    index[key].append(path)
        return index


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return False


def _parts(name: str) -> tuple[str, ...]:
    """Returns the folders and the name, without drive, address and what follows a question mark."""
    path = name.strip().replace("\\", "/")
    if re.match(r"[a-zA-Z][\w+.-]+://", path):
        path = path.partition("://")[2].partition("/")[2]
    asked = re.search(r"local-files/?\?(?:.*&)?d=([^&]+)", path)  # Label Studio's local files
    path = unquote(asked[1] if asked else path.partition("?")[0])
    return tuple(part for part in PurePosixPath(re.sub(r"^[a-zA-Z]:", "", path)).parts if part not in ("/", ".", ".."))


def _forms(name: str) -> Iterator[str]:
    """Yields the paths by which an image may be called in its folder, the likeliest first."""
    yield name.lstrip("/")
    if name.startswith("/"):
        yield name
    parts = _parts(name)
    for first in range(len(parts)):
        yield "/".join(parts[first:])
    if parts:
        yield COCO_2014_PREFIX.sub("", parts[-1])


def _keys(name: str) -> list[str | int]:
    """Returns what an image is found by in subfolders: its name, and its number, which COCO's names hold."""
    plain = unicodedata.normalize("NFC", unquote(name)).casefold()
    stem, dot, ending = plain.rpartition(".")
    if not dot or dot + ending not in IMAGE_ENDINGS:
        stem, dot, ending = plain, "", ""
    number = COCO_2014_PREFIX.sub("", stem.replace("coco_", "COCO_"))
    same = {"jpeg": "jpg", "tiff": "tif"}.get(ending, ending)
    return [plain, f"{int(number)}#{same}"] if number.isdecimal() and number.isascii() else [plain]


def _common_end(first: Sequence[str], second: Sequence[str]) -> int:
    """Returns how many parts two paths have in common at their ends, without the names themselves."""
    pairs = zip(reversed(first[:-1]), reversed(second[:-1]), strict=False)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)) - 1)


def find_image_by_stem(folder: Path, stem: str) -> Path | None:
    """Returns the image of a name without ending, endings in either case; None where there is none."""
    found = (folder / f"{stem}{ending}" for ending in (*IMAGE_ENDINGS, *map(str.upper, IMAGE_ENDINGS)))
    return next((path for path in found if path.is_file()), None)
