"""Conversion of conversations that the demo page saved as JSON to the unified format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt4roi.data.convert.objects import Conversion
from gpt4roi.errors import InputError
from gpt4roi.geometry.frames import BoxFrame
from gpt4roi.io.coco import InvalidAnnotationError, parse_floats
from gpt4roi.io.images_on_disk import find_image_by_stem
from gpt4roi.io.json_files import kind_of, read_json
from gpt4roi.processing.images import read_header


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
        except InputError as error:
            reason = error.reason if isinstance(error, InvalidAnnotationError) else "file that cannot be used"
            target.leave_out(reason, f"{file}: {error}")


def _object(file: Path, folder: Path, target: Conversion) -> dict[str, Any]:
    record = read_json(file, "a conversation that the page saved")
    if not isinstance(record, dict) or not isinstance(record.get("regions"), list):
        raise InputError(f"{file}: expected a conversation as the page saves it, got {kind_of(record)}")
    image = find_image_by_stem(folder, file.stem)
    if image is None:
        raise InvalidAnnotationError(f"no image of the file's name in {folder}")
    placed = BoxFrame(read_header(str(image)), "upright", image=str(image))  # as the page shows images
    height, width = placed.size
    shown = {"width": width, "height": height}
    if record.get("picture") not in (None, shown):
        raise InvalidAnnotationError("image of another size than the boxes were drawn on")
    boxes = [parse_floats(region.get("box") if isinstance(region, dict) else None, 4) for region in record["regions"]]
    made: dict[str, Any] = {"id": file.stem, "image": target.image_name(str(image)), **shown, "boxes": boxes}
    target.frames.add(placed.remarks(), placed.image)
    return made | {"image_pipeline": placed.pipeline, "conversations": _turns(record.get("rounds"))}


def _turns(rounds: Any) -> list[dict[str, str]]:
    turns = []
    for one in rounds if isinstance(rounds, list) else ():
        if not isinstance(one, dict) or not all(isinstance(one.get(key), str) for key in ("question", "answer")):
            raise InvalidAnnotationError("round without question and answer")
        turns += [{"from": "human", "value": one["question"]}, {"from": "gpt", "value": one["answer"]}]
    if not turns:
        raise InvalidAnnotationError("conversation in which nothing was asked yet")
    return turns
