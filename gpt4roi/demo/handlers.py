"""Event handlers of the page: each takes values from the browser and returns updates for it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from html import escape
from types import MappingProxyType
from typing import Any

import gradio as gr

from gpt4roi.demo.examples import Examples, open_example
from gpt4roi.demo.export import conversation_image
from gpt4roi.demo.gradio_compat import event_value
from gpt4roi.demo.hints import Hint, IncompleteQuestionError
from gpt4roi.demo.page_values import (
    ask_again,
    boxes_value,
    buttons,
    conversation,
    conversation_with_image,
    download,
    drawn_boxes,
    hints_of,
    hints_value,
    names_given,
    names_of,
    no_hints,
    stage_note,
    stage_with_image,
)
from gpt4roi.demo.session import NO_IMAGE, Session
from gpt4roi.demo.store import SessionStore
from gpt4roi.errors import InputError
from gpt4roi.generation.sampling import SamplingParams
from gpt4roi.processing.uploads import Limits, Upload, open_upload
from gpt4roi.report.drawing import jpeg_data_url

logger = logging.getLogger(__name__)

DEFECT = "Something went wrong here; the log of the server says what."
DEFECT_WHILE_ASKING = f"{DEFECT} Your question is still there."
MAX_NEW_TOKENS = 1024


def find_session(store: SessionStore, request: gr.Request) -> Session:
    """Returns the session of a request; raises InputError where it belongs to none."""
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
    """The listeners of the page; `ui.build_page` connects them. Each docstring lists the outputs in their order."""

    def __init__(
        self, store: SessionStore, limits: Limits, model_name: str, examples: Examples = MappingProxyType({})
    ) -> None:
        self.store, self.limits, self.model_name, self.examples = store, limits, model_name, examples

    def upload(self, event: gr.EventData, request: gr.Request) -> tuple:
        """An image came from the browser. Returns stage, conversation, hints."""
        image, name = event_value(event, "image"), event_value(event, "name")
        return self._show_image(request, lambda: (open_upload(image, self.limits, name), []))

    def pick(self, event: gr.EventData, request: gr.Request) -> tuple:
        """An example was clicked. Returns stage, conversation, hints."""
        return self._show_image(request, lambda: open_example(self.examples, event_value(event, "name")))

    def want_names(self, event: gr.EventData, request: gr.Request) -> Any:
        """The boxes that have no name yet changed. Returns stage."""
        image, boxes, order = (event_value(event, key) for key in ("image", "boxes", "order"))
        try:
            find_session(self.store, request).want_names(image, boxes, order)
        except InputError as error:
            return names_given(order, [], ended=True, note=str(error))
        return gr.skip()

    def name_boxes(self, request: gr.Request) -> Iterator[gr.HTML]:
        """Names these boxes, one after the other, while no question is being answered. Yields stage."""
        names = find_session(self.store, request).names
        try:
            for _ in names.compute():
                yield names_given(names.order, names.known)
        except Exception:
            logger.exception("a box could not be named")
        yield names_given(names.order, names.known, ended=True)

    def _show_image(self, request: gr.Request, open_it: Callable[[], tuple[Upload, list]]) -> tuple:
        try:
            session = find_session(self.store, request)
            upload, boxes = open_it()
            session.show(upload)
        except InputError as error:
            return stage_note(str(error)), gr.skip(), gr.skip()
        except Exception:
            logger.exception("an image could not be shown")
            return stage_note(DEFECT_WHILE_ASKING), gr.skip(), gr.skip()
        return stage_with_image(session, boxes), conversation_with_image(session), no_hints()

    def begin(self, question: Any, stage: Any, request: gr.Request) -> tuple:
        """Checks the question at once, without the queue. Returns hints, ask button, stop button."""
        return self._begin(question, stage, request, force=False)

    def begin_forced(self, question: Any, stage: Any, request: gr.Request) -> tuple:
        """Does the same, where a drawn box need not be mentioned."""
        return self._begin(question, stage, request, force=True)

    def _begin(self, question: Any, stage: Any, request: gr.Request, force: bool) -> tuple:
        try:
            session = find_session(self.store, request)
            session.refused = True
            if session.answering:
                raise InputError("an answer is still being written; wait for it, or stop it")
            session.check(question, drawn_boxes(stage, session), force)
            session.refused = False
        except InputError as error:
            return hints_value(hints_of(error)), gr.skip(), gr.skip()
        return no_hints(), gr.update(interactive=False), gr.update(interactive=True)

    def ask(self, question, stage, temperature, max_new_tokens, seed, request: gr.Request) -> Iterator[tuple]:
        """Streams the answer. Yields stage, conversation, hints, question, ask button, stop button."""
        yield from self._ask(question, stage, (temperature, max_new_tokens, seed), request, force=False)

    def ask_forced(self, question, stage, temperature, max_new_tokens, seed, request: gr.Request) -> Iterator[tuple]:
        """Does the same, where a drawn box need not be mentioned."""
        yield from self._ask(question, stage, (temperature, max_new_tokens, seed), request, force=True)

    def _ask(self, question: Any, stage: Any, settings: tuple, request: gr.Request, force: bool) -> Iterator[tuple]:
        skip, idle = gr.skip(), buttons(asking=False)
        rounds, typed = skip, skip  # what the page shows of the conversation, and in the question box, after an error
        try:
            session = find_session(self.store, request)
            if session.refused:  # its hints are shown; once more, they could come after what the user did about them
                session.refused = False
                yield (skip,) * 6
                return
            drawn = drawn_boxes(stage, session)
            session.check(question, drawn, force)
            answers = session.ask(question, drawn, sampling_of(*settings), force)
            rounds, typed = conversation(session), question
            yield skip, conversation(session, question, "", drawn), no_hints(), "", *buttons(asking=True)
            for answer in answers:
                yield skip, conversation(session, question, answer, drawn), skip, skip, skip, skip
            yield boxes_value(session, keep=True), conversation(session), no_hints(), skip, *idle
        except InputError as error:
            yield skip, rounds, hints_value(hints_of(error)), typed, *idle
        except Exception:
            logger.exception("a question could not be answered")
            yield skip, rounds, hints_value([Hint(DEFECT_WHILE_ASKING)]), typed, *idle

    def correct(self, event: gr.EventData, request: gr.Request) -> tuple:
        """An answer was corrected. Returns conversation, hints."""
        image, index, answer = (event_value(event, key) for key in ("image", "round", "answer"))

        def work() -> tuple:
            session = find_session(self.store, request)
            session.correct(image, index, answer)
            return conversation(session), no_hints()

        return errors_as_hints(work, 1)

    def stop(self, question: Any, stage: Any, request: gr.Request) -> tuple:
        """Stops the answer, if one is being written; its question goes back where it was typed.

        Returns stage, conversation, hints, question, both buttons.
        """

        def work() -> tuple:
            session = find_session(self.store, request)
            session.stop(wait_seconds=10)
            asked, session.asking = session.asking, ""
            typed = asked if asked and not (isinstance(question, str) and question.strip()) else gr.skip()
            try:
                drawn_boxes(stage, session)
                # The answer may have been completed just before: then its boxes stay where they are from now on.
                boxes = boxes_value(session, keep=True)
            except IncompleteQuestionError:
                boxes = gr.skip()
            return boxes, conversation(session), no_hints(), typed, *buttons(asking=False)

        return errors_as_hints(work, 2, (gr.skip(), *ask_again()))

    def start_over(self, stage: Any, request: gr.Request) -> tuple:
        """Keeps the image, forgets the rest. Returns stage, conversation, hints, both buttons."""

        def work() -> tuple:
            session = find_session(self.store, request)
            drawn_boxes(stage, session)
            session.start_over()
            return boxes_value(session), conversation(session), no_hints(), *buttons(asking=False)

        return errors_as_hints(work, 2, ask_again())

    def clear_all(self, request: gr.Request) -> tuple:
        """Forgets everything. Returns stage, conversation, hints, both buttons, question."""

        def work() -> tuple:
            session = find_session(self.store, request)
            session.clear()
            return stage_with_image(session), conversation_with_image(session), no_hints(), *buttons(asking=False), ""

        return errors_as_hints(work, 2, (*ask_again(), gr.skip()))

    def save_record(self, stage: Any, request: gr.Request) -> tuple:
        """Packs the conversation and the boxes drawn since as JSON. Returns the download, hints."""

        def work() -> tuple:
            session = self._session_with_image(stage, request)
            record = {"model": self.model_name, **session.as_record(drawn_boxes(stage, session), names_of(stage))}
            text = json.dumps(record, ensure_ascii=False, indent=2)
            name = f"{session.file_name or 'conversation'}.json"  # `data convert` finds the photograph by it
            return download(name, "application/json", text.encode()), no_hints()

        return errors_as_hints(work, 1)

    def save_image(self, stage: Any, request: gr.Request) -> tuple:
        """Packs the conversation as an image. Returns the download, hints."""

        def work() -> tuple:
            file = io.BytesIO()
            session = self._session_with_image(stage, request)
            conversation_image(session).save(file, "PNG")
            name = f"{session.file_name}-conversation.png".lstrip("-")  # never the photograph's own name
            return download(name, "image/png", file.getvalue()), no_hints()

        return errors_as_hints(work, 1)

    def explain(self, stage: Any, request: gr.Request) -> tuple:
        """Draws where the last answer looked. Returns the panel, hints."""

        def work() -> tuple:
            found, drawn = self._session_with_image(stage, request).explain()
            text = f"Where “{found.answer}” looked ({', '.join(found.heatmaps)}): {found.question}"
            text = escape(f"{text} ({found.remark})" if found.remark else text)
            source = jpeg_data_url(drawn, max_side=2160)
            return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>', no_hints()

        return errors_as_hints(work, 1)

    def _session_with_image(self, stage: Any, request: gr.Request) -> Session:
        session = find_session(self.store, request)
        drawn_boxes(stage, session)
        if session.image is None:
            raise IncompleteQuestionError([NO_IMAGE])
        return session

    def leave(self, request: gr.Request) -> None:
        """The page was closed: its session will be freed."""
        if isinstance(request.session_hash, str):
            self.store.leave(request.session_hash)


def errors_as_hints(work: Callable[[], tuple], before: int, after: tuple = ()) -> tuple:
    """Returns what a button's work returns; where it raises, hints that say why, and all else stays.

    Args:
        work: Returns the outputs.
        before: How many outputs stand before the hints.
        after: The outputs behind the hints where it raised.
    """
    try:
        return work()
    except InputError as error:
        hints = hints_of(error)
    except Exception:
        logger.exception("a button of the page did not work")
        hints = [Hint(DEFECT)]
    return *[gr.skip()] * before, hints_value(hints), *after
