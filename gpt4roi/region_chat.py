"""RegionChat: conversations about regions of an image, and one answer for each of many regions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from gpt4roi.checkpoint.loading import load_processor, open_model
from gpt4roi.errors import InputError
from gpt4roi.generation.batching import Answer, BatchingWorker
from gpt4roi.generation.detect import Detection, check_limits, check_queries, query_scores, select
from gpt4roi.generation.encoded_image import EncodedImage, PreparedImage, Prompt, encode_images, prepare_image
from gpt4roi.generation.engine import PromptCache, stream
from gpt4roi.generation.explain import Explanation, explain
from gpt4roi.generation.likelihood import check_labels, choose
from gpt4roi.generation.many import answer_all, describe_images, region_prompts, scored_answers
from gpt4roi.generation.sampling import SamplingParams, answer_text, stable_text, stopping_criterion
from gpt4roi.processing.mentions import as_plain_text, named_regions
from gpt4roi.processing.user_input import (
    clean_question,
    groups_of_regions,
    one_region_question,
    open_image,
    pair_question,
    typed_box,
    validate_regions,
)
from gpt4roi.structures import Regions, RegionSample, Turn

logger = logging.getLogger(__name__)

LongHistory = Literal["refuse", "drop"]


class AnswerText(str):
    """The text of an answer; `regions` are the numbers of the regions that it names, from 1."""

    regions: tuple[int, ...] = ()

    @classmethod
    def of(cls, text: str, num_boxes: int) -> AnswerText:
        """Returns the answer that a text is to a question about num_boxes regions."""
        answer = cls(text)
        answer.regions = named_regions(text, num_boxes)
        return answer


@dataclass(frozen=True)
class _Dialogue:
    """An image, the regions given so far, the turns, and the KV cache of them; dropped_rounds: of the last prompt."""

    image: Image.Image
    encoded: EncodedImage
    regions: Regions = field(default_factory=Regions)
    turns: tuple[Turn, ...] = ()
    cache: PromptCache | None = None
    dropped_rounds: int = 0


class RegionChat:
    """Answers questions about regions of one image at a time.

        chat = RegionChat.from_pretrained("exp/quickstart/stage2")
        chat.set_image("photo.jpg")
        chat.ask("What is <region1>?", boxes_px=[[40, 30, 210, 190]])

    A box is introduced by `<region1>` (or `<1>`) in a question, and later only referred to. Boxes are numbered in the
    order in which they were given, over all rounds. The KV cache is reused, so that a round costs what is new in it.
    Any number of chats may share one model, in threads of their own: each holds its own dialogue. One chat answers
    one question at a time.

    Every method that answers takes the fields of generation.sampling.SamplingParams as keyword arguments:
    max_new_tokens, temperature, top_p, seed, stop. Without them it decodes greedily, at most 256 tokens.

    Attributes:
        model: The model, in evaluation mode.
        processor: Its processor.
        default_question: Asked about a box where no question is given.
    """

    default_question = "What is <region1>?"

    def __init__(
        self,
        model: Any,
        processor: Any,
        long_history: LongHistory = "refuse",
        keep_cache: bool = True,
        worker: BatchingWorker | None = None,
    ) -> None:
        """Starts without an image.

        Args:
            model: A GPT4RoI model.
            processor: Its processor.
            long_history: What happens when a conversation no longer fits into the context: `refuse` raises
                InputError, `drop` leaves out the oldest rounds after the first.
            keep_cache: False prefills every round anew, which saves memory between rounds.
            worker: Encodes images and decodes the answers of `ask` and `stream`, together with those of other chats;
                by default each chat does its own.
        """
        if long_history not in ("refuse", "drop"):
            raise InputError(f"long_history must be 'refuse' or 'drop', got {long_history!r}")
        self.model = model.eval()
        self.processor = processor
        self.long_history = long_history
        self.keep_cache = keep_cache
        self._worker, self._priority = worker, 0
        self._answer: Answer | None = None
        self._dialogue: _Dialogue | None = None

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

        Args:
            path: Folder or hub name.
            device: By default CUDA, then Apple's MPS, then the CPU.
            dtype: Name or torch.dtype; by default bfloat16 where the device computes in it, else float32.
            vision_tower: Folder or hub name of the tower, for a model that was saved without it.
            quantize: `4bit` or `8bit` for the language model (bitsandbytes).
            compile: Compiles the language model; the first answers take a minute, later ones less.
            settings: As the class takes.

        Raises:
            InputError: There is no model, or the machine cannot do it.
        """
        model = open_model(path, device, dtype, vision_tower, quantize, compile)
        return cls(model, load_processor(path, vision_tower=vision_tower), **settings)

    @property
    def regions(self) -> Regions:
        """The regions of the conversation; the first is region1."""
        return Regions() if self._dialogue is None else self._dialogue.regions

    @property
    def boxes_px(self) -> np.ndarray:
        """The boxes of the conversation, float64[N, 4] xyxy in pixels; row 0 is region1."""
        return np.zeros((0, 4)) if self._dialogue is None else self._dialogue.regions.boxes_px.copy()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The questions and answers so far."""
        return () if self._dialogue is None else self._dialogue.turns

    @property
    def dropped_rounds(self) -> int:
        """How many rounds were left out of the last prompt."""
        return 0 if self._dialogue is None else self._dialogue.dropped_rounds

    def set_image(self, image: Any) -> None:
        """Encodes an image, once for all questions about it, and begins a new conversation.

        image: path, data URL, PIL image, encoded file as bytes, or uint8 array [H, W, 3]. Raises InputError on
        anything else.
        """
        opened = open_image(image)
        prepared = prepare_image(self.processor, opened)

        def encode() -> EncodedImage:
            return next(encode_images(self.model, [prepared]))

        encoded = encode() if self._worker is None else self._worker.call(encode).result()
        self._dialogue = _Dialogue(opened, encoded)

    def correct(self, number: int, answer: str) -> None:
        """Replaces the answer of a round, counted from 1: later questions are asked as if it had been given.

        Raises InputError for an empty answer, and where there is no such round.
        """
        dialogue, text = self._require_image(), as_plain_text(answer).strip()
        if not text:
            raise InputError("the corrected answer is empty; write one, or leave the answer as it is")
        turns = list(dialogue.turns)
        if not 1 <= number <= len(turns) // 2:
            raise InputError(f"there is no round {number!r:.40} to correct; the conversation has {len(turns) // 2}")
        turns[2 * number - 1] = Turn("assistant", text)
        self._dialogue = replace(dialogue, turns=tuple(turns))

    def fork(self, priority: int = 0) -> RegionChat:
        """Returns a chat about the same image, without encoding it anew, with a conversation of its own.

        priority: Of its questions in the worker, as of BatchingWorker.submit.
        """
        other = type(self)(self.model, self.processor, self.long_history, self.keep_cache, self._worker)
        other._priority = priority
        if self._dialogue is not None:
            other._dialogue = _Dialogue(self._dialogue.image, self._dialogue.encoded)
        return other

    def reset(self) -> None:
        """Forgets the conversation and its boxes; the image stays."""
        if self._dialogue is not None:
            before = self._dialogue
            self._dialogue = _Dialogue(before.image, before.encoded, cache=before.cache)

    def cancel(self) -> None:
        """Ends the answer that the worker is writing, from another thread; the conversation stays as it was.

        Whoever waits for the answer gets InputError (code `cancelled`). Without a worker, close the iterator of
        `stream` instead.
        """
        if self._answer is not None:
            self._answer.cancel()

    def ask(self, question: str, boxes_px: Sequence | Regions | None = None, **sampling: Any) -> AnswerText:
        """Answers the next question of the conversation; `regions` of the answer are those that it names.

        Args:
            question: Mentions regions as `<region1>`, or none.
            boxes_px: The boxes that are new in this round, xyxy in pixels of the image, or masks, points and strokes
                (as of processing.user_input.validate_regions); they are numbered on from those already given.
            sampling: As of SamplingParams.

        Raises:
            InputError: Invalid boxes, a region without a box, or no image; the conversation then stays as it was.
        """
        params = SamplingParams(**sampling)
        before, after, make_prompt = self._prepare(question, boxes_px)
        return self._conclude(before, after, list(self._tokens(after, make_prompt, params)), params)

    def stream(self, question: str, boxes_px: Sequence | Regions | None = None, **sampling: Any) -> Iterator[str]:
        """Answers as `ask` does, piece by piece; the pieces join to the answer.

        Invalid input raises at once. The turn becomes part of the conversation when the last piece was taken; closing
        the iterator earlier ends the computation and leaves the conversation as it was.
        """
        params = SamplingParams(**sampling)
        before, after, make_prompt = self._prepare(question, boxes_px)
        return self._stream(before, after, self._tokens(after, make_prompt, params), params)

    def _stream(
        self, before: _Dialogue, after: _Dialogue, answer: Iterator[int], params: SamplingParams
    ) -> Iterator[str]:
        tokens: list[int] = []
        shown = ""
        for token in answer:
            tokens.append(token)
            text = stable_text(self.processor, tokens, params.stop)
            if len(text) > len(shown) and text.startswith(shown):
                yield text[len(shown) :]
                shown = text
        text = self._conclude(before, after, tokens, params)
        if text[len(shown) :]:
            yield text[len(shown) :]

    def _tokens(self, after: _Dialogue, make_prompt: Callable[[], Prompt], params: SamplingParams) -> Iterator[int]:
        if self._worker is not None:
            self._answer = self._worker.submit(make_prompt, params, priority=self._priority)
            return iter(self._answer)
        return stream(self.model, make_prompt(), params, stopping_criterion(self.processor, params.stop), after.cache)

    def _conclude(self, before: _Dialogue, after: _Dialogue, tokens: list[int], params: SamplingParams) -> AnswerText:
        """Returns the answer, which becomes a turn unless the conversation was begun anew in the meantime."""
        text = answer_text(self.processor, tokens, params.stop)
        if self._dialogue is before:
            turns = (*after.turns, Turn("assistant", as_plain_text(text)))
            self._dialogue = replace(after, turns=turns, cache=after.cache if self.keep_cache else None)
        return AnswerText.of(text, len(after.regions))

    def describe(
        self,
        image: Any,
        boxes_px: Sequence | Regions,
        question: str | Sequence[str] | None = None,
        batch_size: int = 32,
        scores: bool = False,
        pairs: Sequence[tuple[int, int]] | None = None,
        **sampling: Any,
    ) -> list[Any]:
        """Asks one question about each box by itself and returns one answer a box; the conversation is not touched.

        Args:
            image: As of set_image; None: the image of the conversation.
            boxes_px: N boxes, xyxy in pixels of the image, or masks, as of `ask`.
            question: Mentions one region, `<region1>`; by default default_question. Of several questions, a list of
                answers is returned for each box.
            batch_size: Boxes answered at once; the answers do not depend on it.
            scores: Return a pair (text, score) in place of each text; the score is the mean probability of the answer's
                tokens, its end included.
            pairs: Numbers of two boxes each, counted from 1: the question, which mentions `<region1>` and `<region2>`,
                is asked about each pair in place of each box.
            sampling: As of SamplingParams.
        """
        params = SamplingParams(**sampling)
        given = [question] if question is None or isinstance(question, str) else list(question)
        questions = [self._region_question(one, pairs) for one in given]
        encoded = self._encoded(image)
        regions = self._validated(boxes_px, encoded.size)
        groups = groups_of_regions(len(regions), pairs)
        asked = (region_prompts(self.processor, encoded, regions, one, groups=groups) for one in questions)
        answer = scored_answers if scores else answer_all
        answers = answer(self.model, self.processor, [one for prompts in asked for one in prompts], params, batch_size)
        of_group = [list(answers[number :: len(groups)]) for number in range(len(groups))]
        return [one for (one,) in of_group] if question is None or isinstance(question, str) else of_group

    def classify(
        self,
        boxes_px: Sequence | Regions,
        labels: Sequence[str],
        question: str | None = None,
        image: Any = None,
        batch_size: int = 64,
        pairs: Sequence[tuple[int, int]] | None = None,
    ) -> list[dict[str, float]]:
        """Returns for each box the probability of every label, given that one of them is the answer.

        The model reads each label as an answer and is asked how likely it is; nothing is generated.

        Args:
            boxes_px: N boxes, xyxy in pixels of the image, or masks, as of `ask`.
            labels: At least two texts, worded as the model would answer.
            question: Mentions one region, `<region1>`; by default default_question.
            image: As of set_image; None: the image of the conversation.
            batch_size: Answers scored at once.
            pairs: As of describe.
        """
        asked, checked = self._region_question(question, pairs), check_labels(labels)
        encoded = self._encoded(image)
        regions = self._validated(boxes_px, encoded.size)
        questions = [(regions.take(group), asked) for group in groups_of_regions(len(regions), pairs)]
        found = choose(self.model, self.processor, encoded, questions, checked, batch_size)
        return [one.probabilities for one in found]

    def detect(
        self,
        boxes_px: Sequence | Regions,
        queries: Sequence[str],
        question: str | None = None,
        image: Any = None,
        threshold: float = 0.3,
        nms_iou: float = 0.5,
        batch_size: int = 64,
    ) -> list[Detection]:
        """Returns which boxes show what the queries ask for, of each query the likeliest first, after NMS.

        Args:
            boxes_px: N proposals, xyxy in pixels of the image, or masks.
            queries: Texts such as "a cup", worded as the model would answer.
            question: As of generation.detect.query_scores; by default default_question.
            image: As of set_image; None: the image of the conversation.
            threshold: Lowest score, a probability.
            nms_iou: A box is dropped that overlaps a likelier one of the same query by more.
            batch_size: Answers scored at once.
        """
        asked, checked = self._region_question(question), check_queries(queries)
        check_limits(threshold, nms_iou, batch_size)
        encoded = self._encoded(image)
        regions = self._validated(boxes_px, encoded.size)
        scores = query_scores(self.model, self.processor, encoded, regions, checked, asked, batch_size)
        return select(scores, regions.boxes_px, checked, threshold, nms_iou)

    def explain(
        self,
        boxes_px: Sequence | Regions | None = None,
        question: str | None = None,
        image: Any = None,
        answer: str | None = None,
        methods: Sequence[str] | None = None,
        cells: int = 6,
        batch_size: int = 16,
        **sampling: Any,
    ) -> Explanation:
        """Computes where an answer looked: heatmaps of occlusion, gradient and attention; the conversation stays.

        Without boxes, question and image: of the last round of the conversation.

        Args:
            boxes_px: N boxes, xyxy in pixels of the image, or masks; none for a question about the image.
            question: Mentions them as `<region1>`, …; by default default_question.
            image: As of set_image; None: the image of the conversation.
            answer: The answer to explain; by default the model's own.
            methods: Some of generation.explain.METHODS; by default occlusion, gradient and, where the attention is
                eager, attention; of a pretrained vision-language model occlusion alone.
            cells: Occluded cells along each side of the image, about.
            batch_size: Occluded images at once.
            sampling: As of SamplingParams, where the model answers.
        """
        settings: dict[str, Any] = {"methods": methods, "cells": cells, "batch_size": batch_size}
        if boxes_px is None and question is None and image is None:
            dialogue = self._require_image()
            if not dialogue.turns:
                raise InputError("there is no answer to explain yet; ask first, or give a question")
            *asked, last = dialogue.turns
            regions, turns = dialogue.regions, tuple(asked)
            shown, said = dialogue.image, last.text if answer is None else as_plain_text(answer).strip()
        else:
            shown = self._require_image().image if image is None else open_image(image)
            regions = validate_regions(boxes_px, (shown.height, shown.width))  # with masks, where the model reads none
            turns = (Turn("user", clean_question(self.default_question if question is None else question)),)
            said = as_plain_text(answer or "").strip()
        sample = RegionSample("the image", turns, regions.boxes_px, masks=regions.masks)
        if answer is None and not said:
            (encoded,) = encode_images(self.model, [prepare_image(self.processor, shown)])
            prompts = encoded.prompts(self.processor, [sample])
            said = as_plain_text(answer_all(self.model, self.processor, prompts, SamplingParams(**sampling))[0])
        return explain(self.model, self.processor, shown, sample, said, **settings)

    def describe_many(
        self,
        images: Iterable[Any],
        boxes_px: Iterable[Sequence | Regions],
        question: str | None = None,
        batch_size: int = 32,
        scores: bool = False,
        **sampling: Any,
    ) -> Iterator[list[Any]]:
        """Does what `describe` does for many images, and yields the answers of one image after the other.

        images and boxes_px are of the same length and taken as needed, so that long lists need no memory. Consecutive
        images are answered together until their boxes fill a batch.
        """
        params = SamplingParams(**sampling)
        prepared = (self._open(image, boxes) for image, boxes in zip(images, boxes_px, strict=True))
        asked = self._region_question(question)
        return describe_images(self.model, self.processor, prepared, asked, params, batch_size, scores)

    def _region_question(self, question: str | None, pairs: Any = None) -> str:
        check = one_region_question if pairs is None else pair_question
        return check(self.default_question if question is None else question)

    def _validated(self, boxes_px: Any, size: tuple[int, int], first_number: int = 1) -> Regions:
        return validate_regions(boxes_px, size, first_number, self.processor.region_shape)

    def _open(self, image: Any, boxes_px: Sequence | Regions) -> tuple[PreparedImage | None, Regions]:
        opened = open_image(image)
        regions = self._validated(boxes_px, (opened.height, opened.width))
        return prepare_image(self.processor, opened) if len(regions) else None, regions

    def _encoded(self, image: Any) -> EncodedImage:
        """Returns an image encoded; None: that of the conversation."""
        if image is None:
            return self._require_image().encoded
        (encoded,) = encode_images(self.model, [prepare_image(self.processor, open_image(image))])
        return encoded

    def _require_image(self) -> _Dialogue:
        if self._dialogue is None:
            raise InputError("there is no image yet; call set_image first")
        return self._dialogue

    def _prepare(
        self, question: str, boxes_px: Sequence | Regions | None
    ) -> tuple[_Dialogue, _Dialogue, Callable[[], Prompt]]:
        """Returns the conversation, the same with the new question and boxes, and what makes the prompt to answer."""
        before = self._require_image()
        turns = (*before.turns, Turn("user", clean_question(question)))
        typed = typed_box(turns[-1].text)
        if typed:
            hint = "the model reads %s in the question as text; give the box as --box %s (in Python: boxes_px) and "
            logger.warning(hint + "write <region1> in its place", typed, typed)
        known = before.regions
        regions = known + self._validated(boxes_px, before.encoded.size, len(known) + 1)
        sample = RegionSample("the image", turns, regions.boxes_px, masks=regions.masks)
        encoded = self.processor.encode_text(sample, generation=True, image_size=before.encoded.size)
        dropped = encoded["n_dropped_rounds"]
        if dropped and self.long_history == "refuse":
            raise InputError(
                f"the conversation no longer fits into the model's {self.processor.model_max_length} tokens; "
                "begin a new one with reset(), or open the chat with long_history='drop'"
            )
        if dropped:
            logger.info("the conversation is too long: %d rounds after the first are left out", dropped)
        cache = PromptCache(self.model) if before.cache is None else before.cache.copy()
        after = replace(before, regions=regions, turns=turns, cache=cache, dropped_rounds=dropped)
        return before, after, lambda: before.encoded.prompt(encoded)
