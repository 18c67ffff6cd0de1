"""Names of boxes: a short answer about each box that is drawn, computed while no question is being answered."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.region_chat import RegionChat

logger = logging.getLogger(__name__)

Box = tuple[float, ...]
"""A box as the page has it: x1, y1, x2, y2 in pixels of the user's own image."""

MAX_NEW_TOKENS, ENDS = 32, ("\n", ". ")
"""Of a name: the first sentence at most."""


class QuestionsFirst:
    """Holds names back while a question is being answered or an image encoded; one for all sessions of a model."""

    def __init__(self) -> None:
        self._questions = 0
        self._changed = threading.Condition()

    @contextmanager
    def question(self) -> Iterator[None]:
        """Wraps what names wait for."""
        with self._changed:
            self._questions += 1
        try:
            yield
        finally:
            with self._changed:
                self._questions -= 1
                self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Waits until there is no question, so long at most; returns whether there is none."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._questions, seconds)


class BoxNames:
    """Names of the boxes that are drawn on an image and wait for one, by the box itself: no two can be confused.

    A box that was moved or deleted is wanted no longer: its name is not computed, or not any further.
    """

    def __init__(self, questions: QuestionsFirst) -> None:
        """Starts without an image; questions: what names wait for."""
        self._questions = questions
        self._lock = threading.Lock()
        self._chat: RegionChat | None = None
        self._scale = np.ones(4)
        self._names: dict[Box, str | None] = {}
        self.order = 0
        """Number of the last request."""

    def begin(self, chat: RegionChat, scale: np.ndarray) -> None:
        """Forgets all boxes; the next ones are on the image of a chat.

        scale: float64[4], from pixels of the user's image to pixels of the chat's.
        """
        with self._lock:
            self._chat, self._scale, self._names = chat, scale, {}

    def want(self, boxes: Sequence[Box], order: int) -> None:
        """Says for which boxes, and for no others, a name is wanted; requests may come late: an older one is void."""
        with self._lock:
            if order > self.order:
                self.order = order
                self._names = {box: self._names.get(box) for box in boxes}

    @property
    def known(self) -> list[tuple[Box, str]]:
        """The wanted boxes that have a name, with it; an empty one where the model says nothing."""
        with self._lock:
            return [(box, name) for box, name in self._names.items() if name is not None]

    def compute(self) -> Iterator[None]:
        """Names one wanted box after the other, and yields after each."""
        while True:
            with self._lock:
                box = next((box for box, name in self._names.items() if name is None), None)
                chat, scale = self._chat, self._scale
            if box is None or chat is None:
                return
            name = self._name(chat, box, (np.asarray(box) * scale).tolist())
            with self._lock:
                named = name is not None and self._wants(chat, box)
                if named:
                    self._names[box] = name
            if named:
                yield

    def _wants(self, chat: RegionChat, box: Box) -> bool:
        return chat is self._chat and box in self._names

    def _name(self, chat: RegionChat, box: Box, stored_px: list[float]) -> str | None:
        """Returns the model's answer about a box; None where it is wanted no longer."""
        name = ""
        try:
            pieces = chat.fork().stream(chat.default_question, [stored_px], max_new_tokens=MAX_NEW_TOKENS, stop=ENDS)
            while self._wants(chat, box):
                if self._questions.wait(seconds=0.2):
                    piece = next(pieces, None)
                    if piece is None:
                        return name.strip()
                    name += piece
        except InputError as error:  # such as a model with a very short context
            logger.warning("a box could not be named: %s", error)
            return ""
        return None
