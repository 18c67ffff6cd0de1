"""Conversations about regions of an image, and one answer for each of many regions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from gpt4roi.checkpoint.loading import load_processor, open_model
from gpt4roi.errors import InputError
from gpt4roi.generation.encoded_image import EncodedImage
from gpt4roi.generation.engine import Prompt, stream
from gpt4roi.generation.many import View, answer, describe_images, grouped, look_at, prompts_about, view_of
from gpt4roi.generation.prompt_cache import Recall
from gpt4roi.generation.sampling import Decoding
from gpt4roi.generation.stopping import answer_ended, answer_text, settled_text
from gpt4roi.processing.mentions import as_plain_text
from gpt4roi.processing.user_input import check_boxes, clean_question, one_region_question, open_image
from gpt4roi.structures import RegionSample, Turn

logger = logging.getLogger(__name__)

DEFAULT_QUESTION = "What is <region1>?"
"""Asked about a box when nothing is asked; a processor may carry another, as `default_question`."""

LongHistory = Literal["refuse", "drop"]


@dataclass(frozen=True)
class _Dialogue:
    """An image, the boxes shown so far, what was said, and what the language model has read of it."""

    image: Image.Image | None = None
    encoded: EncodedImage | None = None
    boxes_px: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    turns: tuple[Turn, ...] = ()
    recall: Recall | None = None
    dropped_rounds: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.image.height, self.image.width


class RegionChat:
    """Answers questions about regions of one image at a time.

        chat = RegionChat.from_pretrained("exp/quickstart/stage2")
        chat.set_image("photo.jpg")
        chat.ask("What is <region1>?", boxes_px=[[40, 30, 210, 190]])

    A box is introduced by `<region1>` (or `<1>`) in a question, and later only referred to. Boxes are numbered in the
    order in which they were given, over all rounds. What the language model has read is kept, so that a round costs
    what is new in it. Any number of chats may share one model, in threads of their own: each holds its own dialogue.
    One chat answers one question at a time.

    long_history: what happens when a conversation no longer fits into the context: `refuse` raises InputError, `drop`
    leaves out the oldest rounds after the first. keep_cache: False reads every round anew, which spares memory between
    rounds.
    """

    def __init__(
        self, model: Any, processor: Any, long_history: LongHistory = "refuse", keep_cache: bool = True
    ) -> None:
        if long_history not in ("refuse", "drop"):
            raise InputError(f"long_history must be 'refuse' or 'drop', got {long_history!r}")
        self.model = model.eval()
        self.processor = processor
        self.long_history = long_history
        self.keep_cache = keep_cache
        self._dialogue = _Dialogue()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | None = None,
        dtype: Any = None,
        vision_tower: str | Path | None = None,
        quantize: str | None = None,
        compile: bool = False,
        **settings: Any,
    ) -> RegionChat:
        """Opens a saved model with its processor.

        path: folder or hub name. device: by default CUDA, then Apple's MPS, then the CPU. dtype: name or torch.dtype;
        by default bfloat16 where the device computes in it, else float32. vision_tower: folder or hub name of the
        tower, for a model that lies without it. quantize: `4bit` or `8bit` for the language model (bitsandbytes).
        compile: lets torch.compile translate the language model; the first answers take a minute, later ones less.
        settings: as the class takes. Raises InputError where there is no model or the machine cannot do it.
        """
        model = open_model(path, device, dtype, vision_tower, quantize, compile)
        return cls(model, load_processor(path, vision_tower=vision_tower), **settings)

    @property
    def boxes_px(self) -> np.ndarray:
        """The boxes of the conversation, float64[N, 4] xyxy in pixels; row 0 is region1."""
        return self._dialogue.boxes_px.copy()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """What was asked and answered so far."""
        return self._dialogue.turns

    @property
    def dropped_rounds(self) -> int:
        """How many rounds the model no longer saw when it gave the last answer."""
        return self._dialogue.dropped_rounds

    @property
    def default_question(self) -> str:
        """What is asked about a box when nothing else is."""
        return getattr(self.processor, "default_question", None) or DEFAULT_QUESTION

    def set_image(self, image: Any) -> None:
        """Looks at an image, once for all questions about it, and begins a new conversation.

        image: path, data URL, PIL image, encoded file as bytes, or uint8 array [H, W, 3]. Raises InputError on
        anything else.
        """
        opened = open_image(image)
        (encoded,) = look_at(self.model, self.processor, [opened])
        self._dialogue = _Dialogue(opened, encoded)

    def reset(self) -> None:
        """Forgets the conversation and its boxes; the image stays."""
        before = self._dialogue
        self._dialogue = _Dialogue(before.image, before.encoded, recall=before.recall)

    def ask(
        self,
        question: str,
        boxes_px: Sequence | None = None,
        max_new_tokens: int = 256,
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> str:
        """Answers the next question of the conversation.

        question: mentions regions as `<region1>`, or none. boxes_px: the boxes that are new in this round, xyxy in
        pixels of the image, or masks (see inputs.check_boxes); they are numbered on from those already there. The
        rest: see Decoding.
        Raises InputError on wrong boxes, on a region without a box, without an image; the conversation then stays as
        it was.
        """
        decoding = Decoding(max_new_tokens, temperature, top_p, seed, stop)
        before, after, prompt = self._prepare(question, boxes_px)
        tokens = list(self._tokens(after, prompt, decoding))
        return self._conclude(before, after, answer_text(self.processor, tokens, decoding.stop))

    def stream(
        self,
        question: str,
        boxes_px: Sequence | None = None,
        max_new_tokens: int = 256,
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Answers as `ask` does, piece by piece; the pieces join to the answer.

        Wrong input raises at once. The turn becomes part of the conversation when the last piece was taken; closing
        the iterator earlier ends the computation and leaves the conversation as it was.
        """
        decoding = Decoding(max_new_tokens, temperature, top_p, seed, stop)
        return self._stream(*self._prepare(question, boxes_px), decoding)

    def _stream(self, before: _Dialogue, after: _Dialogue, prompt: Prompt, decoding: Decoding) -> Iterator[str]:
        tokens: list[int] = []
        shown = ""
        for token in self._tokens(after, prompt, decoding):
            tokens.append(token)
            text = settled_text(self.processor, tokens, decoding.stop)
            if len(text) > len(shown) and text.startswith(shown):
                yield text[len(shown) :]
                shown = text
        text = self._conclude(before, after, answer_text(self.processor, tokens, decoding.stop))
        if text[len(shown) :]:
            yield text[len(shown) :]

    def describe(
        self,
        image: Any,
        boxes_px: Sequence,
        question: str | None = None,
        max_new_tokens: int = 256,
        batch_size: int = 32,
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """Asks one question about each box by itself and returns one answer a box; the conversation is not touched.

        image: as of set_image; None: the image of the conversation. boxes_px: N boxes, xyxy in pixels of the
        image, or masks. question: mentions one region, `<region1>`; by default the model's own. batch_size: boxes
        answered at once; the answers do not depend on it. The rest: see Decoding.
        """
        decoding = Decoding(max_new_tokens, temperature, top_p, seed, stop)
        if image is None:
            return self._describe_shown(boxes_px, question, decoding, batch_size)
        return next(self._describe_each([(image, boxes_px)], self._about_one(question), decoding, batch_size))

    def describe_many(
        self,
        images: Iterable[Any],
        boxes_px: Iterable[Sequence],
        question: str | None = None,
        max_new_tokens: int = 256,
        batch_size: int = 32,
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[list[str]]:
        """Does what `describe` does for many images, and yields the answers of one image after the other.

        images and boxes_px: of the same length; they are taken as needed, so that long lists need no memory.
        Consecutive images are answered together until they fill a batch.
        """
        decoding = Decoding(max_new_tokens, temperature, top_p, seed, stop)
        pairs = zip(images, boxes_px, strict=True)
        return self._describe_each(pairs, self._about_one(question), decoding, batch_size)

    def _about_one(self, question: str | None) -> str:
        return one_region_question(self.default_question if question is None else question)

    def _describe_each(
        self, pairs: Iterable[tuple[Any, Sequence]], question: str, decoding: Decoding, batch_size: int
    ) -> Iterator[list[str]]:
        views = (self._view(image, boxes_px) for image, boxes_px in pairs)
        for group in grouped(views, lambda view: len(view.boxes_px), batch_size):
            yield from describe_images(self.model, self.processor, group, question, decoding, batch_size)

    def _view(self, image: Any, boxes_px: Sequence) -> View:
        opened = open_image(image)
        return view_of(self.processor, opened, check_boxes(boxes_px, (opened.height, opened.width)))

    def _describe_shown(
        self, boxes_px: Sequence, question: str | None, decoding: Decoding, batch_size: int
    ) -> list[str]:
        dialogue = self._with_image()
        boxes = check_boxes(boxes_px, dialogue.size)
        asked = self._about_one(question)
        prompts = prompts_about(self.processor, dialogue.encoded, dialogue.size, boxes, asked)
        return answer(self.model, self.processor, prompts, decoding, batch_size)

    def _with_image(self) -> _Dialogue:
        if self._dialogue.image is None:
            raise InputError("there is no image yet; call set_image first")
        return self._dialogue

    def _prepare(self, question: str, boxes_px: Sequence | None) -> tuple[_Dialogue, _Dialogue, Prompt]:
        """Returns the conversation, the same with the new question and boxes, and the prompt to answer."""
        before = self._with_image()
        turns = (*before.turns, Turn("user", clean_question(question)))
        known = before.boxes_px
        boxes = np.concatenate([known, check_boxes(boxes_px, before.size, first_number=len(known) + 1)])
        sample = RegionSample(before.image, turns, boxes)
        text = self.processor.encode_text(sample, generation=True, image_size=before.size)
        dropped = text["n_dropped_turns"]
        if dropped and self.long_history == "refuse":
            raise InputError(
                f"the conversation no longer fits into the model's {self.processor.model_max_length} tokens; "
                "begin a new one with reset(), or open the chat with long_history='drop'"
            )
        if dropped:
            logger.info("the conversation is too long: %d rounds after the first are left out", dropped)
        recall = Recall(self.model) if before.recall is None else before.recall.copy()
        after = replace(before, boxes_px=boxes, turns=turns, recall=recall, dropped_rounds=dropped)
        regions = before.encoded.region_features(text["boxes"])
        return before, after, Prompt(text["input_ids"], 0, before.encoded.image_features, regions)

    def _tokens(self, after: _Dialogue, prompt: Prompt, decoding: Decoding) -> Iterator[int]:
        ended = answer_ended(self.processor, decoding.stop)
        return stream(self.model, prompt, decoding, ended, after.recall)

    def _conclude(self, before: _Dialogue, after: _Dialogue, text: str) -> str:
        """Makes the answer a turn, unless the conversation was begun anew while it was computed."""
        if self._dialogue is before:
            turns = (*after.turns, Turn("assistant", as_plain_text(text)))
            self._dialogue = replace(after, turns=turns, recall=after.recall if self.keep_cache else None)
        return text
