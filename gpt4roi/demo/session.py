"""Session: one user's conversation about one image, as plain data; independent of Gradio."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from gpt4roi.demo.hints import Hint, IncompleteQuestionError, find_hints, normalize_mentions
from gpt4roi.demo.naming import Box, BoxNames
from gpt4roi.errors import InputError
from gpt4roi.generation.batching import BatchingWorker
from gpt4roi.generation.explain import Explanation
from gpt4roi.generation.sampling import SamplingParams
from gpt4roi.geometry.masks import size_of, to_box, to_pixels, to_raster, to_runs
from gpt4roi.processing.uploads import Upload
from gpt4roi.processing.user_input import mentioned_regions, validate_boxes_px
from gpt4roi.region_chat import RegionChat
from gpt4roi.report.drawing import draw_heatmaps
from gpt4roi.structures import Regions

MAX_BOXES = 50
"""Boxes in one conversation; each costs the model a few tokens of its context."""

MAX_QUESTION = 4000
"""Characters in one question."""

EXPIRED = Hint("This conversation expired because it was idle. Choose the image again to begin a new one.")
NO_IMAGE = Hint("There is no image yet. Choose one of your own, or click an example.")


@dataclass(frozen=True)
class Round:
    """A question with its answer.

    Attributes:
        regions: The numbers of the boxes that are new in this round.
        model_answer: What the model had answered, where the user corrected it.
    """

    question: str
    answer: str
    regions: tuple[int, ...] = ()
    model_answer: str | None = None


def masks_of(drawn_px: Sequence | np.ndarray) -> list[Any]:
    """Returns the mask of each region as the page sends them; None of one that is a box."""
    return [one.get("mask") if isinstance(one, dict) else None for one in drawn_px]


class Session:
    """An image, its boxes and the conversation about them.

    Boxes are numbered from 1 in the order in which they were drawn. A box that has been asked about is part of the
    conversation and stays as it is; those drawn since may change until the next question, and come in with it.
    """

    def __init__(self, worker: BatchingWorker) -> None:
        """Begins without an image; worker: computes for all sessions of the model."""
        self._worker = worker
        self._chat = self._new_chat()
        self._busy = threading.Lock()
        self._stop = threading.Event()
        self.refused = False
        """Whether the page was told what its last question lacks, so that it is not asked."""
        self.names = BoxNames()
        self._show(None)

    def _new_chat(self) -> RegionChat:
        # No cache of keys and values between rounds: many idle users would hold the memory of the few who ask.
        return RegionChat(self._worker.model, self._worker.processor, keep_cache=False, worker=self._worker)

    def _show(self, upload: Upload | None) -> None:
        """Begins a conversation about an image, or without one."""
        self.image: Image.Image | None = upload.image if upload else None
        self.image_id = secrets.token_hex(8) if upload else ""
        self.size = upload.own_size if upload else (0, 0)
        self.file_name = upload.file_name if upload else ""
        """What the user's own file is called, without its extension."""
        self._begin()

    def _begin(self) -> None:
        self.boxes_px: list[list[float]] = []
        self.masks: list[Any] = []
        """Of each box the mask that was drawn inside it, run lengths of the image at any size, or polygons in pixels of
        the user's own image; None of all of it."""
        self.rounds: list[Round] = []
        self.names.begin(self._chat)
        self.asking = ""
        """The question that is being answered, or whose answer was stopped."""

    @property
    def default_question(self) -> str:
        """A question that the model was made for."""
        return self._chat.default_question

    @property
    def introduced(self) -> set[int]:
        """The numbers of the boxes that a question has brought in."""
        return {number for one in self.rounds for number in mentioned_regions(one.question)}

    @property
    def answering(self) -> bool:
        """Whether an answer is being written, or one is being ended."""
        return self._busy.locked()

    def show(self, upload: Upload) -> None:
        """Encodes an image and begins a new conversation; an answer being written is stopped."""
        chat = self._new_chat()
        chat.set_image(upload.image)
        with self._interrupted():
            asking = self.asking
            self._chat = chat
            self._show(upload)
            self.asking = asking  # for Stop, which puts it back where it was typed, and may come after this

    def start_over(self) -> None:
        """Forgets boxes and conversation; the image stays."""
        with self._interrupted():
            self._chat.reset()
            self._begin()

    def clear(self) -> None:
        """Forgets everything, the image too."""
        with self._interrupted():
            self._chat = self._new_chat()
            self._show(None)

    def stop(self, wait_seconds: float = 0) -> None:
        """Stops the answer being written; the conversation stays as it was before the question.

        Args:
            wait_seconds: How long to wait at most until the next question may be asked.
        """
        self._cancel()
        if wait_seconds and self._busy.acquire(timeout=wait_seconds):
            self._busy.release()

    def _cancel(self) -> None:
        self._stop.set()
        self._chat.cancel()

    def hints(self, question: Any, drawn_px: Sequence | np.ndarray = (), force: bool = False) -> list[Hint]:
        """Returns what a question lacks before it can be asked; drawn_px: the boxes drawn since the last one."""
        if self.image is None:
            return [NO_IMAGE]
        known = len(self.boxes_px)
        return find_hints(
            normalize_mentions(question) if isinstance(question, str) else "",
            known + len(drawn_px),
            self.introduced,
            known,
            self.default_question,
            force,
        )

    def ask(
        self, question: str, drawn_px: Any = (), sampling: SamplingParams | None = None, force: bool = False
    ) -> Iterator[str]:
        """Streams the answer to a question; nothing changes where it fails or is stopped.

        Args:
            question: The text.
            drawn_px: Boxes drawn since the last question, xyxy in pixels of the user's own image, or
                `{"box": …, "mask": …}`, as of `masks`; those after the last one mentioned are left for later.
            sampling: Greedy by default.
            force: A drawn box need not be mentioned.

        Yields:
            The answer so far, until it is complete.

        Raises:
            IncompleteQuestionError: Something is missing.
            InputError: Wrong boxes or values.
        """
        sampling = sampling or SamplingParams()
        checked, known = self.image_id, len(self.boxes_px)
        drawn = self.check(question, drawn_px, force)
        asked, masks = normalize_mentions(question), masks_of(drawn_px)
        if not self._busy.acquire(blocking=False):
            raise InputError("an answer is still being written; wait for it, or stop it")
        if (self.image_id, len(self.boxes_px)) != (checked, known):  # by another request of the same user
            self._busy.release()
            raise InputError("the image or its boxes changed while this was asked; ask again")
        before = self._chat.turns
        new = drawn[: len(self.new_regions(asked, known))]
        pieces: Iterator[str] | None = None
        try:
            self._stop.clear()
            self.asking = question
            pieces = self._chat.stream(asked, self.regions(new, masks[: len(new)]), **asdict(sampling))
            if self._stop.is_set():  # before there was an answer to cancel
                self._chat.cancel()
            answer = ""
            for piece in pieces:
                answer += piece
                yield answer
                if self._stop.is_set():
                    return
        except InputError as error:
            if error.code != "cancelled":
                raise
        finally:
            if isinstance(pieces, Generator):
                pieces.close()
            if self._chat.turns != before:  # the answer is complete, whether or not anybody took its last piece
                self.boxes_px += new.tolist()
                self.masks += masks[: len(new)]
                self.rounds.append(Round(asked, self._chat.turns[-1].text, self.new_regions(asked, known)))
                self.asking = ""
            self._busy.release()

    def correct(self, image_id: Any, index: Any, answer: Any) -> None:
        """Replaces the answer of a round, by its index; the model reads the corrected one in later rounds.

        Raises:
            InputError: There is no such answer, it is no text, or another one is being written.
            IncompleteQuestionError: The conversation is about another image.
        """
        self._require(image_id)
        if not isinstance(answer, str) or len(answer) > MAX_QUESTION:
            raise InputError(f"an answer is text of at most {MAX_QUESTION} characters")
        if isinstance(index, bool) or not isinstance(index, int):
            raise InputError(f"the index of an answer is a whole number, got {index!r:.40}")
        if not self._busy.acquire(blocking=False):
            raise InputError("an answer is still being written; wait for it, or stop it")
        try:
            self._chat.correct(index + 1, answer)
            before, text = self.rounds[index], self._chat.turns[2 * index + 1].text
            said = before.answer if before.model_answer is None else before.model_answer
            self.rounds[index] = replace(before, answer=text, model_answer=said)
        finally:
            self._busy.release()

    def explain(self) -> tuple[Explanation, Image.Image]:
        """Returns where the last answer looked, and the stored image with it drawn; questions may be asked meanwhile.

        Raises:
            IncompleteQuestionError: There is no image.
            InputError: There is no answer.
        """
        if self.image is None:
            raise IncompleteQuestionError([NO_IMAGE])
        image, found = self.image, self._chat.explain()
        return found, draw_heatmaps(image, found, found.heatmaps)

    def _require(self, image_id: Any) -> None:
        if self.image is None or image_id != self.image_id:
            raise IncompleteQuestionError([EXPIRED])

    def check(self, question: Any, drawn_px: Any, force: bool = False) -> np.ndarray:
        """Returns the drawn boxes, float64[N, 4], where the question can be asked; raises as `ask` does."""
        if self.image is None:
            raise IncompleteQuestionError([NO_IMAGE])
        if not isinstance(question, str) or len(question) > MAX_QUESTION:
            raise InputError(f"a question is text of at most {MAX_QUESTION} characters")
        drawn = self._valid_boxes(drawn_px)
        hints = self.hints(question, drawn, force)
        if hints:
            raise IncompleteQuestionError(hints)
        return drawn

    def _valid_boxes(self, drawn_px: Any) -> np.ndarray:
        """Returns boxes drawn since the last question, float64[N, 4]; raises InputError where they are wrong."""
        if not isinstance(drawn_px, (list, tuple, np.ndarray)):
            raise InputError("boxes are a list of [x1, y1, x2, y2] in pixels")
        if len(self.boxes_px) + len(drawn_px) > MAX_BOXES:
            raise InputError(f"a conversation has at most {MAX_BOXES} boxes; start over for more")
        width, height = self.size
        boxes = [one.get("box") if isinstance(one, dict) else one for one in drawn_px]
        found = validate_boxes_px(boxes, (height, width), first_number=len(self.boxes_px) + 1).reshape(-1, 4)
        self.regions(found, masks_of(drawn_px))
        return found

    def regions(self, boxes_px: np.ndarray, masks: Sequence[Any]) -> Regions:
        """Returns regions of the stored image; raises InputError where a mask cannot be used."""
        width, height = self.size
        rasters: list[np.ndarray | None] = []
        for box, mask in zip(boxes_px, masks, strict=True):
            if mask is None:
                rasters.append(None)
                continue
            if not (isinstance(mask, Mapping) or (isinstance(mask, list) and size_of(mask) is None)):
                forms = "run lengths {size, counts} or polygons [[x1, y1, x2, y2, …], …]"
                raise InputError(f"the mask of a drawn region is {forms}, got {mask!r:.60}")
            to_box(mask)  # refuses damaged ones
            rows, columns = size_of(mask) or (height, width)
            rasters.append(to_raster(mask, box * ([columns / width, rows / height] * 2)))
        return Regions(boxes_px * self._scale, tuple(rasters) if any(one is not None for one in rasters) else ())

    @staticmethod
    def new_regions(question: str, num_known: int) -> tuple[int, ...]:
        """Returns the numbers of the drawn boxes that a question brings in: up to the last one it mentions."""
        last = max(mentioned_regions(normalize_mentions(question)), default=0)
        return tuple(range(num_known + 1, last + 1))

    @property
    def _scale(self) -> np.ndarray:
        """From pixels of the user's image to pixels of the stored one."""
        if self.image is None:
            return np.ones(4)
        x, y = self.image.width / self.size[0], self.image.height / self.size[1]
        return np.array([x, y, x, y])

    @contextmanager
    def _interrupted(self) -> Iterator[None]:
        """Stops an answer being written, and blocks the next one inside the `with` block."""
        self._cancel()
        if not self._busy.acquire(timeout=30):
            raise InputError("the answer being written does not stop; try again in a moment")
        try:
            yield
        finally:
            self._busy.release()

    def boxes_in_stored_image(self) -> np.ndarray:
        """Returns the boxes of the conversation, float64[N, 4] xyxy in pixels of the stored image."""
        return np.asarray(self.boxes_px, dtype=np.float64).reshape(-1, 4) * self._scale

    def want_names(self, image_id: Any, boxes_px: Any, order: Any) -> None:
        """Says which of the drawn boxes wait for a name; `names` computes them.

        Raises:
            InputError: Wrong boxes.
            IncompleteQuestionError: The boxes are on another image.
        """
        self._require(image_id)
        boxes, masks = self._valid_boxes(boxes_px), masks_of(boxes_px)
        if isinstance(order, bool) or not isinstance(order, int):
            raise InputError(f"the number of a request for names is a whole number, got {order!r:.40}")
        regions = self.regions(boxes, masks)
        keys = [tuple(map(float, one["box"] if isinstance(one, dict) else one)) for one in boxes_px]
        self.names.want({key: regions[row : row + 1] for row, key in enumerate(keys)}, order)

    def as_record(
        self, drawn_px: Any = (), names: Mapping[Box, tuple[str, bool]] = MappingProxyType({})
    ) -> dict[str, Any]:
        """Returns the conversation as JSON can hold it; boxes in pixels of the user's own image.

        Args:
            drawn_px: Boxes drawn since the last question.
            names: Of boxes, each with whether the user wrote or confirmed it.

        Raises:
            InputError: Wrong boxes.
        """
        width, height = self.size
        drawn = self._valid_boxes(drawn_px).tolist() if self.image is not None else []
        masks = [*self.masks, *(masks_of(drawn_px) if drawn else ())]
        regions: list[dict[str, Any]] = []
        for number, (box, mask) in enumerate(zip([*self.boxes_px, *drawn], masks, strict=True), start=1):
            name, corrected = names.get(tuple(box), ("", False))
            said: dict[str, Any] = {"name": name, "corrected": corrected} if name else {}
            if mask is not None:
                said["mask"] = to_runs(to_pixels(mask, (height, width))) if isinstance(mask, Mapping) else mask
            regions.append({"region": number, "box": [round(value, 2) for value in box], **said})
        return {
            "picture": {"width": width, "height": height} if self.image is not None else None,
            "regions": regions,
            **({"name_question": self.default_question} if any("name" in region for region in regions) else {}),
            "rounds": [
                {"question": one.question, "answer": one.answer, "new_regions": list(one.regions)}
                | ({} if one.model_answer is None else {"model_answer": one.model_answer})
                for one in self.rounds
            ],
        }
