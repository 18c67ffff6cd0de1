"""Conversion of conversations that the demo page saved as JSON to the unified format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt4roi.data.convert.objects import Conversion, caption_fields, with_masks
from gpt4roi.errors import InputError
from gpt4roi.geometry.frames import BoxFrame
from gpt4roi.io.coco import InvalidAnnotationError, parse_floats
from gpt4roi.io.images_on_disk import find_image_by_stem
from gpt4roi.io.json_files import kind_of, read_json
from gpt4roi.processing.images import read_header


def objects_of_page(path: Path, img_prefix: str | Path, target: Conversion) -> Iterator[dict[str, Any]]:
    """Yields the objects of each saved conversation: `NAME.json` belongs to the image of that name in img_prefix.

    One object holds the rounds of the conversation, another one the names that boxes were given, each by itself.

    path: one such file, or a folder of them. Raises InputError for a folder without such a file.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: no .json file; save conversations there, each under the name of its image")
    for file in files:
        try:
            yield from _objects(file, Path(img_prefix), target)
        except InputError as error:
            reason = error.reason if isinstance(error, InvalidAnnotationError) else "file that cannot be used"
            target.leave_out(reason, f"{file}: {error}")


def _objects(file: Path, folder: Path, target: Conversion) -> list[dict[str, Any]]:
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
    turns = _turns(record.get("rounds"))
    names = _names(record, turns)
    if not turns and not names:
        raise InvalidAnnotationError("conversation in which no box was named and nothing was asked yet")
    target.frames.add(placed.remarks(), placed.image)
    made: dict[str, Any] = {"id": file.stem, "image": target.image_name(str(image)), **shown}
    made["image_pipeline"] = placed.pipeline
    masks = [region.get("mask") for region in record["regions"]]
    drawn = with_masks({"boxes": boxes}, masks, placed, target)
    objects = [made | drawn | {"conversations": turns}] if turns else []
    if names:
        question = str(record["name_question"]).replace("<region1>", "{region}")
        of_names = {"boxes": [boxes[index] for index in names]}
        named = with_masks(of_names, [masks[index] for index in names], placed, target)
        named |= caption_fields(list(names.values()), question)
        objects.append(made | named)
        uncorrected = sum(not record["regions"][index].get("corrected") for index in names)
        target.noted.update({"names as the model gave them": uncorrected} if uncorrected else {})
    return objects


def _turns(rounds: Any) -> list[dict[str, str]]:
    turns = []
    for one in rounds if isinstance(rounds, list) else ():
        if not isinstance(one, dict) or not all(isinstance(one.get(key), str) for key in ("question", "answer")):
            raise InvalidAnnotationError("round without question and answer")
        turns += [{"from": "human", "value": one["question"]}, {"from": "gpt", "value": one["answer"]}]
    return turns


def _names(record: dict[str, Any], turns: list[dict[str, str]]) -> dict[int, str]:
    """Returns the names of boxes by their index; none for a box that was asked just that, where the answer counts."""
    names = {index: region["name"] for index, region in enumerate(record["regions"]) if "name" in region}
    question = record.get("name_question")
    if not names:
        return {}
    if not isinstance(question, str) or "<region1>" not in question:
        raise InvalidAnnotationError("names without a name_question that mentions <region1>")
    if not all(isinstance(name, str) for name in names.values()):
        raise InvalidAnnotationError("name that is no text")
    asked = {turn["value"] for turn in turns}
    return {
        index: name
        for index, name in names.items()
        if question.replace("<region1>", f"<region{index + 1}>") not in asked
    }
