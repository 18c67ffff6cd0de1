"""Chat messages and batches as transformers' processors take them: to texts, an image and boxes for each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt4roi.constants import IMAGE_TOKEN
from gpt4roi.errors import InputError
from gpt4roi.processing.prompts import IMAGE_PREAMBLE
from gpt4roi.processing.templates import Step
from gpt4roi.processing.user_input import decode_base64

_IMAGE_KEYS = ("image", "url", "path", "base64")
_ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Conversation:
    """The messages of one conversation.

    Attributes:
        steps: `<image>` stands in them where there is an image.
        system: Text of the system's message, None where there is none.
        image: As open_image takes it; None where the messages only say that there is one, or there is none.
        boxes_px: Boxes that lie beside the image, None where none do.
    """

    steps: tuple[Step, ...]
    system: str | None = None
    image: Any = None
    boxes_px: Any = None


def read_conversation(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """Reads messages whose content is text or a list of `{"type": "text"}` and `{"type": "image"}` blocks.

    An image that stands before all text of the first question is shown by the sentence that the models know; one that
    stands elsewhere, where it is. `<image>` in a text goes before both.

    Raises:
        InputError: A role or a block is none of these, or there are several images.
    """
    messages = list(getattr(messages, "messages", messages))
    steps: list[Step] = []
    blocks: list[Mapping[str, Any]] = []
    system = None
    marked = any(IMAGE_TOKEN in block["text"] for message in messages for block in _blocks(message) if "text" in block)
    for message in messages:
        role, text = message.get("role"), ""
        for number, block in enumerate(_blocks(message)):
            if "text" in block:
                text += block["text"]
                continue
            blocks.append(block)
            first = not any(before == "user" for before, _ in steps) and role == "user" and number == 0
            text += "" if marked else IMAGE_PREAMBLE if first else f"{IMAGE_TOKEN}\n" if number == 0 else IMAGE_TOKEN
        if role == "system" and not steps and system is None:
            system = text
        elif role in _ROLES:
            steps.append((role, text))
        else:
            raise InputError(f"message {len(steps)} is of role {role!r}; expected user and assistant after one system")
    if not steps:
        raise InputError("the conversation has no message of a user")
    if len(blocks) > 1:
        raise InputError(f"{len(blocks)} images in one conversation; a sample holds one image or none")
    image, boxes = _image_of(blocks[0]) if blocks else (None, None)
    return Conversation(tuple(steps), system, image, boxes)


def _blocks(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the content of a message as blocks that have a `text` or are an image."""
    content = message.get("content")
    if isinstance(content, str):
        return [{"text": content}]
    if not isinstance(content, (list, tuple)):
        raise InputError(f"a message's content must be text or a list of blocks, got {content!r:.60}")
    blocks: list[Mapping[str, Any]] = []
    for block in content:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "text" and isinstance(block.get("text"), str):
            blocks.append({"text": block["text"]})
        elif kind == "image":
            blocks.append({name: value for name, value in block.items() if name != "text"})
        elif kind == "image_url":
            url = block.get("image_url")
            blocks.append({"url": url["url"] if isinstance(url, Mapping) else url})
        else:
            raise InputError(f"a block of a message must be of type text or image, got {block!r:.60}")
    return blocks


def _image_of(block: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the image of a block, None where it only says that there is one, and the boxes beside it."""
    key = next((key for key in _IMAGE_KEYS if block.get(key) is not None), None)
    image = None if key is None else block[key]
    if key == "base64":
        try:
            image = decode_base64(block[key])
        except ValueError as error:
            raise InputError(f"the image's base64 cannot be decoded: {error}") from None
    return image, block.get("boxes")


def align_images(images: Any, texts: Sequence[str]) -> list[Any]:
    """Returns the image of each text, None where it has none.

    images: one image; a list with one for each text, None for none, or for each text with `<image>`; or a list of
    lists, of one image or none for each text.
    """
    if images is None:
        return [None] * len(texts)
    listed = list(images) if isinstance(images, (list, tuple)) else [images]
    rows = [_only(entry) if isinstance(entry, (list, tuple)) else entry for entry in listed]
    return _one_for_each(rows, texts, "images")


def align_boxes(boxes: Any, texts: Sequence[str], images: Sequence[Any]) -> list[Any]:
    """Returns the boxes of each text, None where it has none.

    boxes: N boxes of four numbers for a single text; else a list of such, for each text or for each that has an image.
    """
    if boxes is None:
        return [None] * len(texts)
    if len(texts) == 1 and _depth(boxes) < 3:
        return [boxes]
    return _one_for_each(list(boxes), texts, "lists of boxes", [image is not None for image in images])


def replaced_by_masks(boxes: Any, masks: Any, single: bool) -> list[Any]:
    """Returns the regions of each text: its masks, and its boxes where a mask is None; single: they are of one text."""
    of_masks = [masks] if single else list(masks)
    of_boxes = [[None] * len(row) for row in of_masks] if boxes is None else [boxes] if single else list(boxes)
    if list(map(len, of_masks)) != list(map(len, of_boxes)):
        raise InputError("give as many masks as boxes for each text; None in place of a mask where the box is meant")
    pairs = (zip(*rows, strict=True) for rows in zip(of_boxes, of_masks, strict=True))
    return [[box if mask is None else mask for box, mask in row] for row in pairs]


def _only(images: Sequence[Any]) -> Any:
    if len(images) > 1:
        raise InputError(f"{len(images)} images for one text; a sample holds one image or none")
    return images[0] if images else None


def _one_for_each(rows: list[Any], texts: Sequence[str], what: str, shown: Sequence[bool] | None = None) -> list[Any]:
    """Returns one of the rows for each text: in order, or in the order of the texts that show an image."""
    if len(rows) == len(texts):
        return rows
    shown = [IMAGE_TOKEN in text for text in texts] if shown is None else shown
    if len(rows) != sum(shown):
        raise InputError(
            f"{len(rows)} {what} for {len(texts)} texts, {sum(shown)} of which show an image; give one each"
        )
    left = iter(rows)
    return [next(left) if one else None for one in shown]


def _depth(boxes: Any) -> int:
    """Returns how deep boxes are nested: 2 where they are rows of numbers."""
    depth = 0
    while isinstance(boxes, (list, tuple)) and len(boxes):
        boxes, depth = boxes[0], depth + 1
    return depth + int(np.ndim(boxes))
