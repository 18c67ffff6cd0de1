"""Conversations that the demo page saved as JSON become objects of the unified format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt4roi.data.annotations import UnusableError, kind_of, numbers, parse_json, read_bytes
from gpt4roi.data.convert.objects import Conversion
from gpt4roi.errors import InputError
from gpt4roi.processing.images import read_header

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def objects_of_page(path: Path, img_prefix: str | Path, target: Conversion) -> Iterator[dict[str, Any]]:
    """Yields one object for each saved conversation: `NAME.json` belongs to the image of that name in img_prefix.

    path: one such file, or a folder of them. Raises InputError for a folder without such a file.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: no .json file; save conversations there, each under the name of its image")
    for file in files:
        try:
            yield _object(file, Path(img_prefix), target)
        except (UnusableError, InputError) as error:
            reason = "file that cannot be used" if isinstance(error, InputError) else str(error)
            target.leave_out(reason, f"{file}: {error}")


def _object(file: Path, folder: Path, target: Conversion) -> dict[str, Any]:
    record = parse_json(file, read_bytes(file))
    if not isinstance(record, dict) or not isinstance(record.get("regions"), list):
        raise InputError(f"{file}: expected a conversation as the page saves it, got {kind_of(record)}")
    image = _image_of(file, folder)
    (height, width), sideways = read_header(str(image))
    shown = {"width": height, "height": width} if sideways else {"width": width, "height": height}
    if record.get("picture") not in (None, shown):
        raise UnusableError("image of another size than the boxes were drawn on")
    boxes = [numbers(region.get("box") if isinstance(region, dict) else None, 4) for region in record["regions"]]
    made: dict[str, Any] = {"id": file.stem, "image": target.image_name(str(image)), **shown, "boxes": boxes}
    if sideways:  # the page shows images upright
        made["image_pipeline"] = "detection"
    return made | {"conversations": _turns(record.get("rounds"))}


def _image_of(file: Path, folder: Path) -> Path:
    found = [folder / f"{file.stem}{end}" for end in (*IMAGE_ENDINGS, *map(str.upper, IMAGE_ENDINGS))]
    image = next((place for place in found if place.is_file()), None)
    if image is None:
        raise UnusableError(f"no image of the file's name in {folder}")
    return image


def _turns(rounds: Any) -> list[dict[str, str]]:
    turns = []
    for one in rounds if isinstance(rounds, list) else ():
        if not isinstance(one, dict) or not all(isinstance(one.get(key), str) for key in ("question", "answer")):
            raise UnusableError("round without question and answer")
        turns += [{"from": "human", "value": one["question"]}, {"from": "gpt", "value": one["answer"]}]
    if not turns:
        raise UnusableError("conversation in which nothing was asked yet")
    return turns
