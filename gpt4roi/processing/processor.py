"""GPT4RoIProcessor: turns a sample (image, boxes, dialogue) into the model's tensors, and generated ids into text."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, PreTrainedTokenizerBase

from gpt4roi.constants import (
    IGNORE_INDEX,
    IMAGE_END_TOKEN,
    IMAGE_PATCH_TOKEN,
    IMAGE_START_TOKEN,
    IMAGE_TOKEN,
    REGION_TOKEN,
)
from gpt4roi.errors import InputError
from gpt4roi.geometry.boxes import boxes_in_frame, far_outside
from gpt4roi.geometry.masks import cut_raster
from gpt4roi.io.auto_map import auto_map
from gpt4roi.processing import images
from gpt4roi.processing.mentions import number_boxes
from gpt4roi.processing.prompts import IMAGE_PREAMBLE
from gpt4roi.processing.templates import TEMPLATES, V0, ChatTemplate, PromptTemplate
from gpt4roi.processing.tokenizer import DialogueEncoder, DialogueStep, TextEncoder, is_llama_style
from gpt4roi.processing.transformers_interface import TransformersInterface
from gpt4roi.structures import MASK_SIZE, Augmentation, ImagePipeline, RegionSample

logger = logging.getLogger(__name__)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_RESERVED = (IMAGE_START_TOKEN, IMAGE_PATCH_TOKEN, IMAGE_END_TOKEN)
SAVED_SETTINGS = (
    "image_size",
    "image_mean",
    "image_std",
    "image_seq_length",
    "prompt_format",
    "model_max_length",
    "system_prompt",
    "use_image_start_end",
    "image_first",
    "tokens_per_region",
    "region_shape",
)


class GPT4RoIProcessor(TransformersInterface):
    """Renders prompts, tokenizes, opens images and normalises boxes; the same for training and inference.

    Args:
        tokenizer: With the added tokens, see tokenizer.add_special_tokens.
        image_size: Side of the model's input image.
        image_mean: Of values in [0, 1].
        image_std: Of values in [0, 1].
        image_seq_length: How many tokens an image takes.
        prompt_format: `v0`, `v1` or `llava_v1` (as released models were trained), or `chat`, the tokenizer's template.
        model_max_length: Longer samples lose complete question-answer rounds.
        system_prompt: For `chat`, instead of the template's own.
        use_image_start_end: Puts <im_start> and <im_end> around the image.
        image_first: For `v0`: the image before all else.
        tokens_per_region: How many `<bbox>` tokens a mention of a region becomes.
        region_shape: `mask`: what is encoded holds masks; `box`: masks of samples are left out, which is logged once.
    """

    preamble = IMAGE_PREAMBLE
    """Stands before the first question and shows the image, where no turn does."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_size: int = 224,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        image_seq_length: int = 256,
        prompt_format: str = "v0",
        model_max_length: int = 2048,
        system_prompt: str | None = None,
        use_image_start_end: bool = True,
        image_first: bool = False,
        tokens_per_region: int = 1,
        region_shape: str = "box",
    ) -> None:
        super().__init__(tokenizer)
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in (*_RESERVED, REGION_TOKEN) if token not in vocabulary]
        if missing or tokenizer.pad_token is None:
            lacking = ", ".join(missing) or "a padding token"
            raise InputError(
                f"the tokenizer lacks {lacking}; call gpt4roi.processing.tokenizer.add_special_tokens on it"
            )
        self.image_size, self.image_seq_length = image_size, image_seq_length
        self.image_mean, self.image_std = _per_channel(image_mean), _per_channel(image_std)
        self.prompt_format, self.model_max_length = prompt_format, model_max_length
        self.system_prompt, self.image_first = system_prompt, image_first
        self.use_image_start_end, self.tokens_per_region = use_image_start_end, tokens_per_region
        self.region_shape = region_shape
        self.n_masks_left_out = 0
        self.region_token_id: int = vocabulary[REGION_TOKEN]
        self.image_patch_token_id: int = vocabulary[IMAGE_PATCH_TOKEN]
        self._template = self._make_template()
        piecewise = self._template.piecewise and is_llama_style(tokenizer)
        own_bos = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        self._text_encoder = TextEncoder(tokenizer, piecewise, self._template.adds_bos and (piecewise or own_bos))
        self._dialogues = DialogueEncoder(
            self._template,
            self._text_encoder,
            "".join(_RESERVED) if use_image_start_end else IMAGE_PATCH_TOKEN,
            self.image_patch_token_id,
            self.region_token_id,
            image_seq_length,
            model_max_length,
            tokens_per_region,
        )

    def _make_template(self) -> PromptTemplate:
        if self.prompt_format == "chat":
            return ChatTemplate(self.tokenizer, self.system_prompt)
        if self.prompt_format not in TEMPLATES:
            known = ", ".join([*TEMPLATES, "chat"])
            raise InputError(f"prompt_format must be one of {known}; got {self.prompt_format!r}")
        if self.image_first:
            return dataclasses.replace(V0, image_first=True)
        return TEMPLATES[self.prompt_format]

    def to_dict(self) -> dict[str, Any]:
        """Returns what is saved beside the tokenizer."""
        saved = {name: getattr(self, name) for name in SAVED_SETTINGS}
        return saved | {"processor_class": type(self).__name__, "auto_map": auto_map("AutoProcessor")}

    def with_settings(self, **changes: Any) -> GPT4RoIProcessor:
        """Returns a copy with some of its settings changed."""
        return GPT4RoIProcessor(self.tokenizer, **{name: getattr(self, name) for name in SAVED_SETTINGS} | changes)

    @property
    def stop_strings(self) -> list[str]:
        """Texts that end an answer; what follows is not part of it."""
        return list(self._template.stops(self.tokenizer.eos_token))

    @property
    def answer_prefix(self) -> str:
        """What an answer begins with in this prompt format and is no part of it; may be empty."""
        return self._template.answer_prefix

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids at which generation stops: the end token, and stop strings that are one token of their own."""
        known = self._text_encoder.added
        return list(
            dict.fromkeys(known[text] for text in (*self.stop_strings, self.tokenizer.eos_token) if text in known)
        )

    def encode(self, sample: RegionSample, generation: bool = False) -> dict[str, Any]:
        """Turns one sample into tensors.

        Args:
            sample: The sample.
            generation: Up to the point where the model answers, without labels.

        Returns:
            input_ids, labels int64[T]; where it has an image, pixel_values float32[3, S, S], boxes float32[M, 4] (xyxy
            in [0, 1], row k is the box of the k-th `<bbox>`), masks float32[M, r, r] inside these boxes where
            region_shape is `mask`, and box_indices int64[M] (its number in the sample, from 0); where its turns are
            independent, segment_ids (0: shared, k: k-th pair) and position_ids int64[T]; n_dropped_rounds, the
            question-answer rounds that were too long; n_cut_answers, 1 where the only round left lost the end of its
            answer; source.

        Raises:
            InputError: Image, boxes and text do not fit together; it names the sample's source.
        """
        if sample.image is None:
            return self.encode_text(sample, generation)
        image = images.load_image(sample.image, sample.image_pipeline, sample.where, sample.ignore_alpha)
        encoded = self.encode_text(sample, generation, (image.height, image.width))
        return encoded | self.image_inputs(image, sample.image_pipeline, sample.augmentation)

    def encode_text(
        self, sample: RegionSample, generation: bool = False, image_size: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """Does what encode does without opening the image; image_size: its (height, width), for boxes in pixels."""
        where = sample.where
        steps = self._steps(sample, generation, where)
        dialogues = self._dialogues_of(image_size)
        if sample.independent_turns and not generation:
            encoded = dialogues.independent(_each_shows(steps, sample, where, self.preamble), where)
        else:
            if sample.independent_turns:  # the other questions cannot be seen by the one that is asked
                steps = _each_shows(steps, sample, where, self.preamble)[-1:]
            encoded = dialogues.dialogue(_first_shows(steps, sample, self.preamble), generation, where)
        result: dict[str, Any] = {"input_ids": torch.tensor(encoded.ids)}
        if not generation:
            result["labels"] = torch.tensor(encoded.labels)
        if sample.image is not None:
            result |= self._regions(sample, encoded.boxes, image_size, where)
            result["box_indices"] = torch.tensor(encoded.boxes, dtype=torch.int64)
        if encoded.segment_ids is not None:
            result["segment_ids"] = torch.tensor(encoded.segment_ids)
            result["position_ids"] = torch.tensor(encoded.position_ids)
        counts = {"n_dropped_rounds": encoded.dropped, "n_cut_answers": int(encoded.cut)}
        return result | counts | {"source": sample.source}

    def _steps(self, sample: RegionSample, generation: bool, where: str) -> list[DialogueStep]:
        """Checks the turns and says which box each bare `<bbox>` means."""
        turns = list(sample.turns)
        if generation and turns and turns[-1].role == "assistant" and not turns[-1].text:
            turns.pop()
        for index, turn in enumerate(turns):
            answered = generation and turn.role == "assistant"  # a model may have had nothing to say
            if not turn.text.strip() and not answered:
                raise InputError(f"turn {index} ({turn.role}) is empty{where}")
            reserved = [token for token in _RESERVED if token in turn.text]
            if reserved:
                raise InputError(f"turn {index} holds {reserved[0]}{where}; write <image> where the image belongs")
        if generation and (not turns or turns[-1].role != "user"):
            raise InputError(f"the last turn must be the user's question{where}")
        if not generation and not any(turn.role == "assistant" for turn in turns):
            raise InputError(f"there is no answer to train on{where}")
        texts = [turn.text for turn in turns]
        images = sum(text.count(IMAGE_TOKEN) for text in texts)
        if images > 1 or (images and sample.image is None):
            raise InputError(f"{images} <image> in the text but {int(sample.image is not None)} image{where}")
        bare = number_boxes(texts, len(sample.boxes_px), where)
        if sample.image is None and any("<region" in text or REGION_TOKEN in text for text in texts):
            raise InputError(f"the text refers to regions but there is no image{where}")
        return [DialogueStep(turn.role, turn.text, boxes) for turn, boxes in zip(turns, bare, strict=True)]

    def _regions(
        self, sample: RegionSample, order: list[int], image_size: tuple[int, int] | None, where: str
    ) -> dict[str, torch.Tensor]:
        """Returns the boxes, and the masks for a model that reads them, of regions in the order of their tokens."""
        if not order:
            empty = {"boxes": torch.zeros(0, 4), "masks": torch.zeros(0, MASK_SIZE, MASK_SIZE)}
            return {name: rows for name, rows in empty.items() if name == "boxes" or self.region_shape == "mask"}
        boxes = sample.boxes_px[order]
        inverted = np.flatnonzero((boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1]))
        if len(inverted):
            number = order[inverted[0]] + 1
            message = f"box {number} is {boxes[inverted[0]].tolist()}{where}; expected x1 <= x2 and y1 <= y2"
            raise InputError(message, code="box_inverted")
        if sample.box_frame == "unit":
            image_size = (1, 1)
        if image_size is None:
            raise InputError(f"boxes in pixels need the image's size{where}; pass image_size=(height, width)")
        moved = boxes_in_frame(boxes, image_size, sample.image_pipeline, self.image_size, sample.augmentation)
        far = np.flatnonzero(far_outside(moved / self.image_size))
        if len(far):  # the model refuses it
            number = order[far[0]] + 1
            raise InputError(
                f"box {number} is {boxes[far[0]].tolist()}{where}, far outside the image; expected its pixels"
            )
        regions = {"boxes": torch.tensor(moved / self.image_size, dtype=torch.float32)}
        if self.region_shape == "mask":
            whole = boxes_in_frame(boxes, image_size, "dialogue", self.image_size, sample.augmentation)
            masks = np.ones((len(order), MASK_SIZE, MASK_SIZE), dtype=np.float32)
            for row, number in enumerate(order if sample.masks else ()):
                mask = sample.masks[number]
                if mask is not None:
                    is_mirrored = sample.augmentation is not None and sample.augmentation.flip
                    masks[row] = cut_raster(mask[:, ::-1] if is_mirrored else mask, whole[row], moved[row])
            regions["masks"] = torch.from_numpy(masks)
        elif any(mask is not None for mask in sample.masks):
            self._leave_out_masks(sample)
        return regions

    def _leave_out_masks(self, sample: RegionSample) -> None:
        """Counts masks of which the model gets the boxes alone, and says so the first time."""
        if not self.n_masks_left_out:
            logger.warning("masks are read as their bounding boxes%s: the model's region_shape is 'box'", sample.where)
        self.n_masks_left_out += sum(mask is not None for mask in sample.masks)

    def _dialogues_of(self, image_size: tuple[int, int] | None) -> DialogueEncoder:
        """Returns what encodes dialogues about an image of this (height, width); here they are all alike."""
        return self._dialogues

    def image_inputs(
        self, opened: Image.Image, pipeline: ImagePipeline = "dialogue", augmentation: Augmentation | None = None
    ) -> dict[str, Any]:
        """Returns the model's inputs about an image that was opened, RGB: pixel_values float32[3, S, S]."""
        side, mean, std = self.image_size, self.image_mean, self.image_std
        return {"pixel_values": images.to_pixel_values(opened, pipeline, side, mean, std, augmentation)}

    def load_image(self, image: Any, pipeline: ImagePipeline = "dialogue") -> Image.Image:
        """Opens a path, PIL image or uint8 array as RGB; rotated by its EXIF data for `detection`."""
        return images.load_image(image, pipeline)

    def pixel_values(
        self, image: Any, pipeline: ImagePipeline = "dialogue", augmentation: Augmentation | None = None
    ) -> torch.Tensor:
        """Opens an image as load_image does and turns it into float32[3, image_size, image_size]."""
        return self.to_pixel_values(images.load_image(image, pipeline), pipeline, augmentation)

    def to_pixel_values(
        self, opened: Image.Image, pipeline: ImagePipeline = "dialogue", augmentation: Augmentation | None = None
    ) -> torch.Tensor:
        """Turns an image that was opened, RGB, into float32[3, image_size, image_size]."""
        return self.image_inputs(opened, pipeline, augmentation)["pixel_values"]

    def supervision_spans(self, ids: Any, labels: Any, segment_ids: Any = None) -> list[tuple[str, bool]]:
        """Decodes an encoded sample (input_ids, labels and segment_ids, int64[T]) for display.

        Returns (text, whether it is supervised) in order; the image's tokens are `[256 image tokens]`. Independent
        conversations come one by one, each under a line that numbers it, with the beginning that all of them share.
        """
        n_conversations = 0 if segment_ids is None else int(segment_ids.max())
        if n_conversations < 2:
            return self._spans(ids, labels)
        spans: list[tuple[str, bool]] = []
        for number in range(1, n_conversations + 1):
            end = "" if number == 1 else "\n"
            spans.append((f"{end}— conversation {number} of {n_conversations}, which sees no other —\n", False))
            seen = (segment_ids == 0) | (segment_ids == number)
            spans += self._spans(ids[seen], labels[seen])
        return spans

    def _spans(self, ids: Any, labels: Any) -> list[tuple[str, bool]]:
        runs: list[tuple[str, list[int]]] = []
        for token, label in zip(ids.tolist(), labels.tolist(), strict=True):
            image = token == self.image_patch_token_id
            kind = "image" if image else "supervised" if label != IGNORE_INDEX else "context"
            if not runs or runs[-1][0] != kind:
                runs.append((kind, []))
            runs[-1][1].append(token)
        return [
            (f"[{len(run)} image tokens]" if kind == "image" else self.tokenizer.decode(run), kind == "supervised")
            for kind, run in runs
        ]

    def decode(self, ids: Any, **kwargs: Any) -> Any:
        """Turns generated ids (of one sample, without its prompt) into the answer.

        It ends before the format's stop word; the speaker's name, special tokens and outer blanks are dropped. With any
        argument of a tokenizer's `decode` (as skip_special_tokens), it does what the tokenizer does.
        """
        if kwargs:
            return self.tokenizer.decode(ids, **kwargs)
        tokens = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        stops = set(self.stop_token_ids)
        end = next((index for index, token in enumerate(tokens) if token in stops), len(tokens))
        added = set(self._text_encoder.added.values())
        return self.answer_in(self._text_encoder.decode([token for token in tokens[:end] if token not in added]))

    def answer_in(self, text: str) -> str:
        """Returns the answer in generated text: up to the stop word, without the speaker's name and outer blanks."""
        for stop in self.stop_strings:
            text = text.partition(stop)[0]
        return text.strip().removeprefix(self.answer_prefix).strip()


def _per_channel(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _first_shows(steps: list[DialogueStep], sample: RegionSample, preamble: str) -> list[DialogueStep]:
    """Puts the image before the first question, where no turn holds it."""
    if sample.image is None or any(IMAGE_TOKEN in step.text for step in steps):
        return steps
    first = next((index for index, step in enumerate(steps) if step.role == "user"), 0)
    shown = dataclasses.replace(steps[first], text=preamble + steps[first].text, preamble=len(preamble))
    return [*steps[:first], shown, *steps[first + 1 :]]


def _each_shows(steps: list[DialogueStep], sample: RegionSample, where: str, default: str) -> list[DialogueStep]:
    """Puts the image before every question, as the first one has it or else with the default preamble."""
    if sample.image is None:
        return steps
    begins = next((text for text in (IMAGE_PREAMBLE, f"{IMAGE_TOKEN}\n") if steps[0].text.startswith(text)), "")
    steps = [dataclasses.replace(steps[0], text=steps[0].text.removeprefix(begins)), *steps[1:]]
    preamble = begins or default
    if any(IMAGE_TOKEN in step.text for step in steps):
        raise InputError(f"independent turns may show <image> only on a line of its own, at the very start{where}")
    return [
        dataclasses.replace(step, text=preamble + step.text, preamble=len(preamble)) if step.role == "user" else step
        for step in steps
    ]


# Saved processors are found by their name; the configuration's class belongs to models, which is not imported here.
AutoProcessor.register(GPT4RoIProcessor, GPT4RoIProcessor)
