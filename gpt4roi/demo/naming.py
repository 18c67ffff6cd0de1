"""Names of boxes: a short answer about each box that is drawn, computed while no question is being answered."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping

from gpt4roi.errors import InputError
from gpt4roi.region_chat import RegionChat
from gpt4roi.structures import Regions

logger = logging.getLogger(__name__)

Box = tuple[float, ...]
"""A box as the page has it: x1, y1, x2, y2 in pixels of the user's own image."""

MAX_NEW_TOKENS, ENDS = 32, ("\n", ". ")
"""Of a name: the first sentence at most."""
AFTER_QUESTIONS = 1
"""Priority of names in the worker's batch: they wait from token to token while a question is being answered."""


class BoxNames:
    """Names of the boxes that are drawn on an image and wait for one, by the box itself: no two can be confused.

    A box that was moved or deleted is wanted no longer: its name is not computed, or not any further.
    """

    def __init__(self) -> None:
        """Starts without an image."""
        self._lock = threading.Lock()
        self._chat: RegionChat | None = None
        self._naming: dict[Box, RegionChat] = {}
        self._regions: Mapping[Box, Regions] = {}
        self._names: dict[Box, str | None] = {}
        self.order = 0
        """Number of the last request."""

    def begin(self, chat: RegionChat) -> None:
        """Forgets all boxes; the next ones are on the image of a chat."""
        with self._lock:
            self._chat, self._regions, self._names = chat, {}, {}
            self._cancel_unwanted()

    def want(self, boxes: Mapping[Box, Regions], order: int) -> None:
        """Says for which boxes, and for no others, a name is wanted; requests may come late: an older one is void.

        boxes: Each with its region on the chat's image.
        """
        with self._lock:
            if order > self.order:
                self.order, self._regions = order, boxes
                self._names = {box: self._names.get(box) for box in boxes}
                self._cancel_unwanted()

    def _cancel_unwanted(self) -> None:
        for box, chat in self._naming.items():
            if box not in self._names:
                chat.cancel()

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
                chat, regions = self._chat, self._regions
            if box is None or chat is None:
                return
            name = self._name(chat, box, regions[box])
            with self._lock:
                named = name is not None and self._wants(chat, box)
                if named:
                    self._names[box] = name
            if named:
                yield

    def _wants(self, chat: RegionChat, box: Box) -> bool:
        return chat is self._chat and box in self._names

    def _name(self, chat: RegionChat, box: Box, region: Regions) -> str | None:
        """Returns the model's answer about a box; None where it is wanted no longer."""
        fork = chat.fork(AFTER_QUESTIONS)
        try:
            pieces = fork.stream(chat.default_question, region, max_new_tokens=MAX_NEW_TOKENS, stop=ENDS)
            with self._lock:
                self._naming[box] = fork
                if not self._wants(chat, box):
                    fork.cancel()
            return "".join(pieces).strip()
        except InputError as error:  # such as a model with a very short context
            if error.code == "cancelled":
                return None
            logger.warning("a box could not be named: %s", error)
            return ""
        finally:
            with self._lock:
                self._naming.pop(box, None)
