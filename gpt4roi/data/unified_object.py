"""Validation of one object of the unified format: all that would otherwise fail in the middle of a training."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt4roi.constants import IMAGE_TOKEN, REGION_TOKEN
from gpt4roi.data.annotations import is_unicode
from gpt4roi.errors import InputError
from gpt4roi.geometry import masks
from gpt4roi.io.coco import InvalidAnnotationError
from gpt4roi.processing.mentions import MENTION, name_regions, number_boxes
from gpt4roi.structures import as_image_pipeline

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
FIELD, MASK, BOX = "wrong field", "mask that cannot be used", "box that is not four numbers"
TURN, REFERENCE = "turn that is not text", "mention that fits no box"
NO_CONVERSATION = "no conversation"
MAX_COORDINATE = 1_000_000
"""Boxes reach beyond their image now and then, but not this far."""


class BadObjectError(InvalidAnnotationError):
    """An object that cannot be used.

    Attributes:
        kind: What is wrong, in a few words; no fault where nothing is asked about the image.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message, kind)
        self.kind, self.fault = kind, kind != NO_CONVERSATION


def check_object(item: Any, source: str) -> dict[str, Any]:
    """Returns an object in one form.

    Args:
        item: The object as the file has it.
        source: Its place, which every message begins with.

    Returns:
        image: None for text alone. image_size: (height, width) as masks or the object say, else None.
        boxes: float64[N, 4], xyxy in pixels. conversations: list of (role, text), roles as of Turn. tasks, independent.
        texts: what each box is called, or None. image_pipeline. masks: as given, where the boxes are around some.

    Raises:
        BadObjectError: The object cannot be used.
    """
    if not isinstance(item, dict):
        got = type(item).__name__
        raise BadObjectError(
            "not an object", f"{source}: expected an object with image, boxes, conversations; got {got}"
        )
    if not item.get("conversations"):
        raise BadObjectError(NO_CONVERSATION, source)
    image = _image(item, source)
    boxes, given_masks = _boxes(item, source)
    independent = item.get("independent") or False
    if not isinstance(independent, bool):
        raise BadObjectError(FIELD, f"{source}: independent must be true or false, got {independent!r:.60}")
    turns = _turns(item["conversations"], source, independent)
    _check_mentions([text for _, text in turns], image, len(boxes), source)
    return {
        "image": image,
        "image_size": _image_size(item, given_masks),
        "boxes": boxes,
        "conversations": turns,
        "independent": independent,
        "tasks": _tasks(item, len(turns), source),
        "texts": _region_texts(item, len(boxes), source),
        "image_pipeline": _pipeline(item, source),
        "masks": given_masks,
    }


def _image(item: dict[str, Any], source: str) -> str | None:
    image = item.get("image")
    if image in (None, ""):
        return None
    if not isinstance(image, str) or not is_unicode(image) or "\x00" in image:
        raise BadObjectError(FIELD, f"{source}: image must be a path, got {image!r:.80}")
    return image


def _boxes(item: dict[str, Any], source: str) -> tuple[np.ndarray, list[Any]]:
    """Returns the boxes, and the masks that they are around where there are masks in their place."""
    given, given_masks = item.get("boxes") or [], item.get("masks") or []
    if given_masks:
        if not isinstance(given_masks, list):
            raise BadObjectError(MASK, f"{source}: masks must be a list, got {given_masks!r:.80}")
        if given:
            raise BadObjectError(MASK, f"{source}: boxes or masks, not both; masks become their bounding boxes")
        try:
            return masks.to_boxes(given_masks, f" in {source}"), given_masks
        except InputError as error:
            raise BadObjectError(MASK, f"{source}: {error}") from None
    if not isinstance(given, list):
        raise BadObjectError(BOX, f"{source}: boxes must be a list of [x1, y1, x2, y2], got {given!r:.80}")
    for number, box in enumerate(given, start=1):
        if not isinstance(box, list) or len(box) != 4 or not all(_is_coordinate(value) for value in box):
            raise BadObjectError(BOX, f"{source}: box {number} must be four finite numbers, got {box!r:.80}")
    return np.asarray(given, dtype=np.float64).reshape(-1, 4), []


def _image_size(item: dict[str, Any], given_masks: list[Any]) -> tuple[int, int] | None:
    """Returns the (height, width) that the boxes were made for, as far as the object says."""
    of_masks = map(masks.size_of, given_masks)
    height, width = next((size for size in of_masks if size), (item.get("height"), item.get("width")))
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        return height, width
    return None


def _is_coordinate(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -MAX_COORDINATE <= value <= MAX_COORDINATE  # NaN is in no interval


def _turns(turns: Any, source: str, independent: bool) -> list[tuple[str, str]]:
    """Returns (role, text) of each turn; of an answer with `answer_regions`, the text that names them."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadObjectError(TURN, f"{source}: conversations must be a list of {{from, value}}, got {turns!r:.80}")
    checked: list[tuple[str, str]] = []
    for number, turn in enumerate(turns, start=1):
        speaker, text = turn.get("from"), turn.get("value")
        if "answer_regions" in turn:
            text = _naming(turn, checked[-1:] if independent else checked, f"{source}: turn {number}")
        if not isinstance(speaker, str) or speaker not in ROLES:
            raise BadObjectError("unknown speaker", f"{source}: a turn is from {sorted(ROLES)}, got {speaker!r:.60}")
        if not isinstance(text, str) or not is_unicode(text):
            raise BadObjectError(TURN, f"{source}: a turn's value must be text, got {text!r:.80}")
        if not text.strip():
            kind = "empty answer" if ROLES[speaker] == "assistant" else "empty question"
            raise BadObjectError(kind, f"{source}: turn {number} (from {speaker}) is empty")
        checked.append((ROLES[speaker], text))
    if all(role != "assistant" for role, _ in checked):
        raise BadObjectError("no answer", f"{source}: there is no answer to train on: no turn is from gpt")
    return checked


def _naming(turn: dict[str, Any], before: list[tuple[str, str]], where: str) -> str:
    """Returns the answer `region2, region5` of a turn's answer_regions, which the turns before have to mention."""
    regions = turn["answer_regions"]
    if not isinstance(regions, list) or not all(type(one) is int for one in regions):
        raise BadObjectError(FIELD, f"{where}: answer_regions must be a list of whole numbers, got {regions!r:.60}")
    if ROLES.get(str(turn.get("from"))) != "assistant" or not before or before[-1][0] != "user":
        raise BadObjectError(FIELD, f"{where}: answer_regions belong to an answer, after its question")
    unseen = set(regions) - {int(number) for _, text in before for number in MENTION.findall(text)}
    if unseen:
        names = ", ".join(f"<region{number}>" for number in sorted(unseen))
        raise BadObjectError(REFERENCE, f"{where}: answer_regions name {names}, which no question before it mentions")
    text = name_regions(regions)
    if turn.get("value") not in (None, text):
        raise BadObjectError(FIELD, f"{where}: its value {turn['value']!r:.60} is not its answer_regions, {text!r:.60}")
    return text


def _check_mentions(texts: list[str], image: str | None, num_boxes: int, source: str) -> None:
    try:
        number_boxes(texts, num_boxes)
    except InputError as error:
        raise BadObjectError(REFERENCE, f"{source}: {error}") from None
    shown = sum(text.count(IMAGE_TOKEN) for text in texts)
    if shown > 1 or (shown and image is None):
        have = "no image" if image is None else "one image"
        raise BadObjectError(REFERENCE, f"{source}: {shown} <image> in the text but {have}")
    if image is None and (num_boxes or any("<region" in text or REGION_TOKEN in text for text in texts)):
        raise BadObjectError(REFERENCE, f"{source}: boxes or regions are mentioned but there is no image")


def _tasks(item: dict[str, Any], num_turns: int, source: str) -> list[str] | None:
    tasks = item.get("tasks")
    if not tasks:
        return None
    if not isinstance(tasks, list) or not all(isinstance(task, str) and is_unicode(task) for task in tasks):
        raise BadObjectError(FIELD, f"{source}: tasks must be a list of names, got {tasks!r:.80}")
    if 2 * len(tasks) != num_turns:
        got = f"{len(tasks)} tasks for {num_turns} turns"
        raise BadObjectError(FIELD, f"{source}: {got}; expected one task for each pair of turns")
    return tasks


def _region_texts(item: dict[str, Any], num_boxes: int, source: str) -> tuple[str, ...] | None:
    texts = item.get("region_texts")
    if not texts:
        return None
    if not isinstance(texts, list) or not all(isinstance(text, str) and is_unicode(text) for text in texts):
        raise BadObjectError(FIELD, f"{source}: region_texts must be a list of texts, got {texts!r:.80}")
    if len(texts) != num_boxes:
        raise BadObjectError(FIELD, f"{source}: {len(texts)} region_texts for {num_boxes} boxes")
    return tuple(texts)


def _pipeline(item: dict[str, Any], source: str) -> str | None:
    pipeline, old = item.get("image_pipeline"), item.get("picture_pipeline")
    if pipeline is not None and old is not None:
        raise BadObjectError(FIELD, f"{source}: image_pipeline and its old name picture_pipeline are both given")
    if pipeline is None and old is None:
        return None
    try:
        return as_image_pipeline(old if pipeline is None else pipeline, f"{source}: ")
    except InputError as error:
        raise BadObjectError(FIELD, str(error)) from None
