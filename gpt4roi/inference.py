"""Conversations about regions of a picture, and one answer for each of many regions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gpt4roi.checkpoint.loading import load_model, load_processor
from gpt4roi.conversation import TEMPLATES
from gpt4roi.decoding import Decoding, Ended, Prompt, generate, stream
from gpt4roi.devices import choose_device, choose_dtype, place
from gpt4roi.encoded_picture import EncodedPicture, encode_pictures
from gpt4roi.errors import InputError
from gpt4roi.inputs import check_boxes, clean_question, one_region_question, open_picture
from gpt4roi.structures import RegionSample, Turn

logger = logging.getLogger(__name__)

DEFAULT_QUESTION = "What is <region1>?"
"""Asked about a box when nothing is asked; a processor may carry another, as `default_question`."""

TAIL_TOKENS = 12
"""How many last tokens of an answer are looked through for a stop word; longer than any stop word."""


@dataclass
class _Dialogue:
    """A picture, the boxes shown so far and what was said; frozen in spirit: a new turn makes a new one."""

    picture: Image.Image | None = None
    encoded: EncodedPicture | None = None
    boxes_px: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    turns: tuple[Turn, ...] = ()


class RegionChat:
    """Answers questions about regions of one picture at a time.

        chat = RegionChat.from_pretrained("exp/quickstart/stage2")
        chat.set_image("photo.jpg")
        chat.ask("What is <region1>?", boxes_px=[[40, 30, 210, 190]])

    A box is introduced by `<region1>` (or `<1>`) in a question, and later only referred to. Boxes are numbered in the
    order in which they were given, over all rounds. Several chats may share one model: each holds its own dialogue.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model.eval()
        self.processor = processor
        self._ended = answer_ended(processor)
        self._dialogue = _Dialogue()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | None = None,
        dtype: Any = None,
        vision_tower: str | Path | None = None,
    ) -> RegionChat:
        """Opens a saved model with its processor.

        path: folder or hub name. device: by default CUDA, then Apple's MPS, then the CPU. dtype: name or torch.dtype;
        by default bfloat16 where the device computes in it, else float32. vision_tower: folder or hub name of the
        tower, for a model that lies without it. Raises InputError where there is no model.
        """
        target = choose_device(device)
        precision = choose_dtype(target, dtype)
        model, processor = load_model(path, vision_tower=vision_tower), load_processor(path, vision_tower=vision_tower)
        logger.info("computing on %s in %s", target, str(precision).removeprefix("torch."))
        return cls(place(model, target, precision), processor)

    @property
    def boxes_px(self) -> np.ndarray:
        """The boxes of the conversation, float64[N, 4] xyxy in pixels; row 0 is region1."""
        return self._dialogue.boxes_px.copy()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """What was asked and answered so far."""
        return self._dialogue.turns

    @property
    def default_question(self) -> str:
        """What is asked about a box when nothing else is."""
        return getattr(self.processor, "default_question", None) or DEFAULT_QUESTION

    def set_image(self, image: Any) -> None:
        """Looks at a picture, once for all questions about it, and begins a new conversation.

        image: path, PIL picture, encoded file as bytes, or uint8 array [H, W, 3]. Raises InputError on anything else.
        """
        picture = open_picture(image)
        self._dialogue = _Dialogue(picture, self._encode(picture))

    def reset(self) -> None:
        """Forgets the conversation and its boxes; the picture stays."""
        self._dialogue = _Dialogue(self._dialogue.picture, self._dialogue.encoded)

    def ask(
        self,
        question: str,
        boxes_px: Sequence | None = None,
        max_new_tokens: int = 256,
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> str:
        """Answers the next question of the conversation.

        question: mentions regions as `<region1>`. boxes_px: the boxes that are new in this round, xyxy in pixels of
        the picture; they are numbered on from those already there. The rest: see Decoding.
        Raises InputError on wrong boxes, on a region without a box, without a picture; the conversation then stays as
        it was.
        """
        decoding = Decoding(max_new_tokens, temperature, top_p, seed)
        turns, boxes, prompt = self._prepare(question, boxes_px)
        tokens = list(stream(self.model, prompt, decoding, self._ended))
        return self._conclude(turns, boxes, tokens)

    def stream(
        self,
        question: str,
        boxes_px: Sequence | None = None,
        max_new_tokens: int = 256,
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Answers as `ask` does, piece by piece; the pieces join to the answer.

        The turn becomes part of the conversation when the last piece was taken.
        """
        decoding = Decoding(max_new_tokens, temperature, top_p, seed)
        turns, boxes, prompt = self._prepare(question, boxes_px)
        return self._stream(turns, boxes, prompt, decoding)

    def _stream(self, turns, boxes, prompt: Prompt, decoding: Decoding) -> Iterator[str]:
        tokens: list[int] = []
        shown = ""
        for token in stream(self.model, prompt, decoding, self._ended):
            tokens.append(token)
            text = self._settled(tokens)
            if len(text) > len(shown) and text.startswith(shown):
                yield text[len(shown) :]
                shown = text
        answer = self._conclude(turns, boxes, tokens)
        if answer[len(shown) :]:
            yield answer[len(shown) :]

    def describe(
        self,
        image: Any,
        boxes_px: Sequence,
        question: str | None = None,
        max_new_tokens: int = 256,
        batch_size: int = 32,
    ) -> list[str]:
        """Asks one question about each box by itself and returns one answer a box; the conversation is not touched.

        boxes_px: N boxes, xyxy in pixels of the picture. question: mentions one region, `<region1>`; by default the
        model's own. batch_size: boxes answered at once; the answers do not depend on it.
        """
        picture = open_picture(image)
        boxes = check_boxes(boxes_px, (picture.height, picture.width))
        asked = one_region_question(self.default_question if question is None else question)
        if not len(boxes):
            return []
        encoded = self._encode(picture)
        texts = [self._encode_text(picture, (Turn("user", asked),), box[None]) for box in boxes]
        regions = encoded.region_features(torch.cat([text["boxes"] for text in texts]))
        prompts = [
            Prompt(text["input_ids"], 0, encoded.image_features, row[None])
            for text, row in zip(texts, regions, strict=True)
        ]
        answers = generate(self.model, prompts, Decoding(max_new_tokens), self._ended, batch_size)
        return [self.processor.decode(answer) for answer in answers]

    def _encode(self, picture: Image.Image) -> EncodedPicture:
        return encode_pictures(self.model, self.processor.pixel_values(picture, "bicubic")[None])[0]

    def _encode_text(self, picture: Image.Image, turns: tuple[Turn, ...], boxes: np.ndarray) -> dict:
        sample = RegionSample(picture, turns, boxes)
        text = self.processor.encode_text(sample, generation=True, image_size=(picture.height, picture.width))
        if text.get("n_dropped_turns"):
            raise InputError(
                f"the conversation no longer fits into the model's {self.processor.model_max_length} tokens; "
                "begin a new one with reset()"
            )
        return text

    def _prepare(self, question: str, boxes_px: Sequence | None) -> tuple[tuple[Turn, ...], np.ndarray, Prompt]:
        """Returns the conversation with the new question, all its boxes, and the prompt to answer."""
        dialogue = self._dialogue
        if dialogue.picture is None or dialogue.encoded is None:
            raise InputError("there is no picture yet; call set_image first")
        turns = (*dialogue.turns, Turn("user", clean_question(question)))
        size = (dialogue.picture.height, dialogue.picture.width)
        known = dialogue.boxes_px
        boxes = np.concatenate([known, check_boxes(boxes_px, size, first_number=len(known) + 1)])
        text = self._encode_text(dialogue.picture, turns, boxes)
        regions = dialogue.encoded.region_features(text["boxes"])
        return turns, boxes, Prompt(text["input_ids"], 0, dialogue.encoded.image_features, regions)

    def _conclude(self, turns: tuple[Turn, ...], boxes: np.ndarray, tokens: list[int]) -> str:
        answer = self.processor.decode(tokens)
        dialogue = self._dialogue
        self._dialogue = _Dialogue(dialogue.picture, dialogue.encoded, boxes, (*turns, Turn("assistant", answer)))
        return answer

    def _settled(self, tokens: list[int]) -> str:
        """Returns as much of an unfinished answer as later tokens cannot change."""
        text = self.processor.decode(tokens).rstrip("\ufffd")  # half a character
        template = TEMPLATES.get(self.processor.prompt_format)
        if template is not None and template.answer_prefix.startswith(text):
            return ""  # may become the speaker's name, which is no part of the answer
        for stop in self.processor.stop_strings:
            overlap = next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)
            text = text[: len(text) - overlap]
        return text.rstrip()


def answer_ended(processor: Any) -> Ended:
    """Returns a function that tells from an answer's tokens whether the model has ended it."""
    stop_ids, stop_texts = set(processor.stop_token_ids), processor.stop_strings
    decode = processor.tokenizer.decode

    def ended(tokens: list[int]) -> bool:
        if tokens[-1] in stop_ids:
            return True
        tail = decode(tokens[-TAIL_TOKENS:], skip_special_tokens=False)
        return any(text in tail for text in stop_texts)

    return ended
