"""What happens when something on the page is used: each takes values from the browser and says what changes."""

from __future__ import annotations

import base64
import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import count
from typing import Any

import gradio as gr

from gpt4roi.demo.examples import open_example
from gpt4roi.demo.export import conversation_image
from gpt4roi.demo.hints import Hint, UnclearError
from gpt4roi.demo.session import NO_IMAGE, Session
from gpt4roi.demo.store import SessionStore
from gpt4roi.demo.uploads import Limits, as_data_url, open_upload, scaled
from gpt4roi.errors import InputError
from gpt4roi.generation.sampling import SamplingParams

logger = logging.getLogger(__name__)

PUT_AWAY = Hint("This conversation was put away after a rest. Choose the image again to begin a new one.")
WRONG = "Something went wrong here; the log of the server says what."
BROKEN = f"{WRONG} Your question is still there."
MAX_NEW_TOKENS = 1024

_versions = count(1)
_newest, _numbering = 0, threading.Lock()


def find_session(store: SessionStore, request: gr.Request) -> Session:
    """Returns the session of whoever asks. Raises InputError where the request belongs to none."""
    key = getattr(request, "session_hash", None)
    if not isinstance(key, str) or not 6 <= len(key) <= 64:
        raise InputError("the request belongs to no session; use the page or gradio_client")
    return store.get(key)


def sampling_of(temperature: Any, max_new_tokens: Any, seed: Any) -> SamplingParams:
    """Reads the settings; a seed below 0 is none. Raises InputError on what is no number, or out of range."""
    for name, value in (("temperature", temperature), ("max_new_tokens", max_new_tokens)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"{name} is a number, got {value!r:.40}")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, (int, float)) or seed != seed // 1):
        raise InputError(f"seed is a whole number or left out, got {seed!r:.40}")
    if not 1 <= max_new_tokens <= MAX_NEW_TOKENS:
        raise InputError(f"max_new_tokens is between 1 and {MAX_NEW_TOKENS}, got {max_new_tokens!r:.40}")
    if not 0 <= temperature <= 10:
        raise InputError(f"temperature is between 0 and 10, got {temperature!r:.40}")
    return SamplingParams(
        int(max_new_tokens), float(temperature), seed=None if seed is None or seed < 0 else int(seed) % 2**63
    )


class Handlers:
    """The listeners of the page; `ui.build_page` connects them."""

    def __init__(self, store: SessionStore, limits: Limits, model_name: str) -> None:
        self.store, self.limits, self.model_name = store, limits, model_name

    def upload(self, event: gr.EventData, request: gr.Request) -> tuple:
        """An image came from the browser. Returns stage, conversation, hints."""
        data = event._data.get("picture") if isinstance(event._data, dict) else None
        return self._new_image(request, lambda: open_upload(data, self.limits))

    def pick(self, event: gr.EventData, request: gr.Request) -> tuple:
        """An example was clicked. Returns stage, conversation, hints."""
        name = event._data.get("name") if isinstance(event._data, dict) else None
        return self._new_image(request, lambda: scaled(open_example(name)))

    def _new_image(self, request: gr.Request, open_it: Any) -> tuple:
        try:
            session = find_session(self.store, request)
            session.show(open_it())
        except InputError as error:
            return note_on_stage(str(error)), gr.skip(), gr.skip()
        except Exception:
            logger.exception("an image could not be shown")
            return note_on_stage(BROKEN), gr.skip(), gr.skip()
        return whole_stage(session), whole_conversation(session), no_hints()

    def begin(self, question: Any, stage: Any, request: gr.Request) -> tuple:
        """Says at once, without the queue, what the question lacks. Returns hints, ask button, stop button."""
        return self._begin(question, stage, request, anyway=False)

    def begin_anyway(self, question: Any, stage: Any, request: gr.Request) -> tuple:
        """Begins, though a drawn box is not mentioned."""
        return self._begin(question, stage, request, anyway=True)

    def _begin(self, question: Any, stage: Any, request: gr.Request, anyway: bool) -> tuple:
        try:
            session = find_session(self.store, request)
            if session.answering:
                raise InputError("an answer is still being written; wait for it, or stop it")
            session.check(question, drawn_boxes(stage, session), anyway)
        except InputError as error:
            return show_hints(hints_of(error)), gr.skip(), gr.skip()
        return no_hints(), gr.update(interactive=False), gr.update(interactive=True)

    def ask(self, question, stage, temperature, length, seed, request: gr.Request) -> Iterator[tuple]:
        """Answers. Yields stage, conversation, hints, question, ask button, stop button."""
        yield from self._ask(question, stage, (temperature, length, seed), request, anyway=False)

    def ask_anyway(self, question, stage, temperature, length, seed, request: gr.Request) -> Iterator[tuple]:
        """Answers, though a drawn box is not mentioned."""
        yield from self._ask(question, stage, (temperature, length, seed), request, anyway=True)

    def _ask(self, question, stage, settings, request: gr.Request, anyway: bool) -> Iterator[tuple]:
        skip = gr.skip()
        idle = gr.update(interactive=True), gr.update(interactive=False)
        said, typed = skip, skip  # what the page shows of the conversation, and in the question box, after an error
        try:
            session = find_session(self.store, request)
            drawn = drawn_boxes(stage, session)
            session.check(question, drawn, anyway)
            answers = session.ask(question, drawn, sampling_of(*settings), anyway)
            busy = gr.update(interactive=False), gr.update(interactive=True)
            said, typed = conversation(session), question
            yield skip, conversation(session, question, "", drawn), no_hints(), "", *busy
            for answer in answers:
                yield skip, conversation(session, question, answer, drawn), skip, skip, skip, skip
            yield boxes_value(session, keep=True), conversation(session), no_hints(), skip, *idle
        except InputError as error:
            yield skip, said, show_hints(hints_of(error)), typed, *idle
        except Exception:
            logger.exception("a question could not be answered")
            yield skip, said, show_hints([Hint(BROKEN)]), typed, *idle

    def stop(self, question: Any, stage: Any, request: gr.Request) -> tuple:
        """Stops the answer, if one is written; its question goes back where it was typed.

        Returns stage, conversation, hints, question, both buttons.
        """
        return in_place(lambda: self._stop(question, stage, request), 2, (gr.skip(), *ask_again()))

    def _stop(self, question: Any, stage: Any, request: gr.Request) -> tuple:
        session = find_session(self.store, request)
        session.stop(wait_seconds=10)
        asked, session.asking = session.asking, ""
        typed = asked if asked and not (isinstance(question, str) and question.strip()) else gr.skip()
        try:
            drawn_boxes(stage, session)
            # The answer may have become whole just before: then its boxes stay where they are from now on.
            shown = boxes_value(session, keep=True)
        except UnclearError:
            shown = gr.skip()
        buttons = gr.update(interactive=True), gr.update(interactive=False)
        return shown, conversation(session), no_hints(), typed, *buttons

    def start_over(self, stage: Any, request: gr.Request) -> tuple:
        """Keeps the image, forgets the rest. Returns stage, conversation, hints, both buttons."""
        return in_place(lambda: self._start_over(stage, request), 2, ask_again())

    def _start_over(self, stage: Any, request: gr.Request) -> tuple:
        session = find_session(self.store, request)
        drawn_boxes(stage, session)
        session.start_over()
        buttons = gr.update(interactive=True), gr.update(interactive=False)
        return boxes_value(session), conversation(session), no_hints(), *buttons

    def clear_all(self, request: gr.Request) -> tuple:
        """Forgets everything. Returns stage, conversation, hints, both buttons, question."""
        return in_place(lambda: self._clear_all(request), 2, (*ask_again(), gr.skip()))

    def _clear_all(self, request: gr.Request) -> tuple:
        session = find_session(self.store, request)
        session.clear()
        buttons = gr.update(interactive=True), gr.update(interactive=False)
        return whole_stage(session), whole_conversation(session), no_hints(), *buttons, ""

    def save_record(self, stage: Any, request: gr.Request) -> tuple:
        """Packs the conversation as JSON. Returns the download, hints."""
        return in_place(lambda: self._save_record(stage, request), 1)

    def _save_record(self, stage: Any, request: gr.Request) -> tuple:
        session = self._to_be_saved(stage, request)
        record = {"model": self.model_name, **session.as_record()}
        text = json.dumps(record, ensure_ascii=False, indent=2)
        return download("conversation.json", "application/json", text.encode()), no_hints()

    def save_image(self, stage: Any, request: gr.Request) -> tuple:
        """Packs the conversation as an image. Returns the download, hints."""
        return in_place(lambda: self._save_image(stage, request), 1)

    def _save_image(self, stage: Any, request: gr.Request) -> tuple:
        session = self._to_be_saved(stage, request)
        packed = io.BytesIO()
        conversation_image(session).save(packed, "PNG")
        return download("conversation.png", "image/png", packed.getvalue()), no_hints()

    def _to_be_saved(self, stage: Any, request: gr.Request) -> Session:
        session = find_session(self.store, request)
        drawn_boxes(stage, session)
        if session.image is None:
            raise UnclearError([NO_IMAGE])
        return session

    def leave(self, request: gr.Request) -> None:
        """The page was closed: what it held will be freed."""
        if isinstance(request.session_hash, str):
            self.store.leave(request.session_hash)


def in_place(work: Callable[[], tuple], before: int, after: tuple = ()) -> tuple:
    """Returns what a button's work returns; where it raises, hints that say why, and all else stays.

    before: how many outputs stand before the hints; after: those behind them where it raised.
    """
    try:
        return work()
    except InputError as error:
        hints = hints_of(error)
    except Exception:
        logger.exception("a button of the page did not work")
        hints = [Hint(WRONG)]
    return *[gr.skip()] * before, show_hints(hints), *after


def ask_again() -> tuple:
    """Returns both buttons after a failure: no answer will free Ask; Stop stays, it may be needed."""
    return gr.update(interactive=True), gr.skip()


def drawn_boxes(stage: Any, session: Session) -> list:
    """Returns the boxes that were drawn since the last question, unchecked, from the value of the stage.

    Raises UnclearError where the stage shows an image that the session does not have any more.
    """
    if not isinstance(stage, dict) or not stage.get("picture"):
        return []
    if stage["picture"] != session.image_id:
        raise UnclearError([PUT_AWAY])
    boxes = stage.get("boxes")
    return boxes[len(session.boxes_px) :] if isinstance(boxes, list) else []


def hints_of(error: InputError) -> list[Hint]:
    """Returns an error as hints."""
    return list(error.hints) if isinstance(error, UnclearError) else [Hint(f"{str(error)[:1].upper()}{str(error)[1:]}")]


def show_hints(hints: list[Hint]) -> dict:
    """Returns the value of the hints."""
    return {"hints": [asdict(hint) for hint in hints], "version": next(_versions)}


def no_hints() -> dict:
    """Returns the value of no hints."""
    return {"hints": []}


def boxes_value(session: Session, keep: bool = False) -> dict:
    """Returns the value of the stage: the boxes of the conversation.

    keep: those that the browser has beyond them stay; they may have been drawn while the answer was written.
    """
    boxes = list(session.boxes_px)
    return {
        "picture": session.image_id,
        "boxes": boxes,
        "fixed": len(boxes),
        "keep": keep,
        "version": next(_versions),
    }


def shown_image(session: Session) -> dict | None:
    """Returns what the browser shows of the image; width and height are those of the person's own."""
    if session.image is None:
        return None
    width, height = session.size
    return {"src": as_data_url(session.image), "width": width, "height": height, "id": session.image_id}


def whole_stage(session: Session) -> Any:
    """Returns the stage with its image."""
    return gr.HTML(value=boxes_value(session), image=shown_image(session), note=None)


def note_on_stage(text: str) -> Any:
    """Returns a word about what was wrong with an image; all else stays."""
    return gr.HTML(note={"text": f"{text[:1].upper()}{text[1:]}.", "wrong": True, "version": next(_versions)})


def whole_conversation(session: Session) -> Any:
    """Returns the conversation with its image."""
    return gr.HTML(value=conversation(session), image=shown_image(session))


def conversation(session: Session, question: str = "", answer: str | None = None, drawn: list | None = None) -> dict:
    """Returns what is said; with an answer, also the round that is being answered."""
    rounds = [asdict(one) for one in session.rounds]
    boxes = [*session.boxes_px, *(drawn or [])]
    pending = answer is not None
    if pending:
        known = len(session.boxes_px)
        rounds.append({"question": question, "answer": answer, "regions": session.new_regions(question, known)})
    introduced = sorted(session.introduced)
    return {"rounds": rounds, "boxes": boxes, "introduced": introduced, "pending": pending, "version": _next_version()}


def _next_version() -> int:
    """Numbers a value of the conversation above all earlier ones, which the browser passes over.

    By the clock, so that it holds over a restart of the server; but for a clock that is set back meanwhile.
    """
    global _newest
    with _numbering:
        _newest = max(_newest + 1, time.time_ns() // 1000)
        return _newest


def download(name: str, kind: str, data: bytes) -> dict:
    """Returns a file for the browser to save."""
    return {
        "name": name,
        "data": f"data:{kind};base64,{base64.b64encode(data).decode()}",
        "version": next(_versions),
    }
