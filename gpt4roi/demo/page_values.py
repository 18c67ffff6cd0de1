"""Values of the page's components: what the stage, the conversation and the hints show, and what the browser sent."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import gradio as gr

from gpt4roi.demo.hints import Hint, IncompleteQuestionError
from gpt4roi.demo.naming import Box
from gpt4roi.demo.session import EXPIRED, MAX_QUESTION, Session
from gpt4roi.errors import InputError
from gpt4roi.report.drawing import jpeg_data_url

SHOWN_SIDE = 1280
"""Longest side of the image that the browser gets, in pixels."""


class VersionCounter:
    """Numbers what the browser is sent, each above all earlier ones, so that it can pass over what is outdated.

    By the clock, so that it holds over a restart of the server; but for a clock that is set back meanwhile.
    """

    def __init__(self) -> None:
        self._last, self._lock = 0, threading.Lock()

    def next(self) -> int:
        """Returns the next number."""
        with self._lock:
            self._last = max(self._last + 1, time.time_ns() // 1000)
            return self._last


versions = VersionCounter()


def buttons(asking: bool) -> tuple:
    """Returns the buttons Ask and Stop, of which one can be pressed."""
    return gr.update(interactive=not asking), gr.update(interactive=asking)


def ask_again() -> tuple:
    """Returns both buttons after a failure: no answer will free Ask; Stop stays, it may be needed."""
    return gr.update(interactive=True), gr.skip()


def drawn_boxes(stage: Any, session: Session) -> list:
    """Returns the boxes that were drawn since the last question, unchecked, from the value of the stage.

    Raises:
        IncompleteQuestionError: The stage shows an image that the session does not have any more.
    """
    if not isinstance(stage, dict) or not stage.get("image"):
        return []
    if stage["image"] != session.image_id:
        raise IncompleteQuestionError([EXPIRED])
    boxes, masks, known = stage.get("boxes"), stage.get("masks"), len(session.boxes_px)
    if not isinstance(boxes, list):
        return []
    if not isinstance(masks, list) or len(masks) != len(boxes):
        return boxes[known:]
    pairs = zip(boxes[known:], masks[known:], strict=True)
    return [box if mask is None else {"box": box, "mask": mask} for box, mask in pairs]


def names_of(stage: Any) -> dict[Box, tuple[str, bool]]:
    """Returns the names of boxes, and whether the user wrote or confirmed them, from the value of the stage."""
    found: dict[Box, tuple[str, bool]] = {}
    if not isinstance(stage, dict) or stage.get("names") is None:
        return found
    try:
        for box, name in zip(stage["boxes"], stage["names"], strict=True):
            if name is not None:
                found[tuple(map(float, box))] = (name["text"][:MAX_QUESTION].strip(), name["corrected"] is True)
    except (TypeError, ValueError, KeyError, AttributeError):
        raise InputError("the page sent names that fit no boxes; load it again") from None
    return found


def names_given(order: Any, names: list[tuple[Box, str]], ended: bool = False, note: str = "") -> gr.HTML:
    """Returns names for the stage; ended: no more will come for the request of this number."""
    given = {"order": order, "names": names, "ended": ended, "version": versions.next()}
    return gr.HTML(names=given, note=note_value(note)) if note else gr.HTML(names=given)


def hints_of(error: InputError) -> list[Hint]:
    """Returns an error as hints."""
    if isinstance(error, IncompleteQuestionError):
        return list(error.hints)
    return [Hint(f"{str(error)[:1].upper()}{str(error)[1:]}")]


def hints_value(hints: list[Hint]) -> dict:
    """Returns the value of the hints."""
    return {"hints": [asdict(hint) for hint in hints], "version": versions.next()}


def no_hints() -> dict:
    """Returns the value of no hints."""
    return {"hints": []}


def boxes_value(session: Session, keep: bool = False, drawn: Sequence[list[float]] = ()) -> dict:
    """Returns the value of the stage: the boxes of the conversation, and after them those that are drawn already.

    With `keep`, those that the browser has beyond them stay; they may have been drawn while the answer was written.
    """
    fixed, image = list(session.boxes_px), session.image_id
    boxes = [*fixed, *drawn]
    return {"image": image, "boxes": boxes, "fixed": len(fixed), "keep": keep, "version": versions.next()}


def image_value(session: Session) -> dict | None:
    """Returns the image for the browser; width and height are those of the user's own."""
    if session.image is None:
        return None
    width, height = session.size
    source = jpeg_data_url(session.image, SHOWN_SIDE, quality=88)
    return {"src": source, "width": width, "height": height, "id": session.image_id}


def stage_with_image(session: Session, drawn: Sequence[list[float]] = ()) -> gr.HTML:
    """Returns the stage with its image, and boxes that are drawn on it already."""
    return gr.HTML(value=boxes_value(session, drawn=drawn), image=image_value(session), note=None)


def stage_note(text: str) -> gr.HTML:
    """Returns a message about what was wrong with an image; all else stays."""
    return gr.HTML(note=note_value(text))


def note_value(text: str) -> dict:
    """Returns the value of a note below the image about what was wrong."""
    return {"text": f"{text[:1].upper()}{text[1:].rstrip('.')}.", "wrong": True, "version": versions.next()}


def conversation_with_image(session: Session) -> gr.HTML:
    """Returns the conversation with its image."""
    return gr.HTML(value=conversation(session), image=image_value(session))


def conversation(session: Session, question: str = "", answer: str | None = None, drawn: list | None = None) -> dict:
    """Returns the value of the conversation; with an answer, also the round that is being answered."""
    rounds = [asdict(one) for one in session.rounds]
    boxes = [*session.boxes_px, *(one["box"] if isinstance(one, dict) else one for one in drawn or ())]
    pending = answer is not None
    if pending:
        known = len(session.boxes_px)
        rounds.append({"question": question, "answer": answer, "regions": session.new_regions(question, known)})
    state = {"introduced": sorted(session.introduced), "pending": pending, "version": versions.next()}
    return {"rounds": rounds, "boxes": boxes, **state}


def download(name: str, kind: str, data: bytes) -> dict:
    """Returns a file for the browser to save."""
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"name": name, "data": source, "version": versions.next()}
