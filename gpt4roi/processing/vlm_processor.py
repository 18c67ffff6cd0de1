"""RegionProcessor: the processor of a pretrained vision-language model, unchanged, with regions and their frames.

The base's processor makes the image's tensors, its chat template writes the prompt, its tokenizer encodes it. Ours
writes `region1 <bbox>`, counts boxes, and says where each view of an image lies in it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor

from gpt4roi.constants import IMAGE_TOKEN, REGION_TOKEN
from gpt4roi.errors import InputError
from gpt4roi.io.json_files import read_json_object
from gpt4roi.io.model_folders import REGION_FOLDER
from gpt4roi.processing.images import read_header
from gpt4roi.processing.processor import GPT4RoIProcessor
from gpt4roi.processing.prompts import IMAGE_PREAMBLE
from gpt4roi.processing.templates import ChatTemplate, Prompt, Step
from gpt4roi.processing.tokenizer import DialogueEncoder, TextEncoder
from gpt4roi.structures import Augmentation, ImagePipeline, RegionSample

SETTINGS_FILE = f"{REGION_FOLDER}/processor_config.json"
"""Inside the base's folder, beside the region encoder."""

SETTINGS = ("model_max_length", "system_prompt", "tokens_per_region", "region_shape")
DEFAULT_MAX_LENGTH = 8192

OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels", "text_replacement_offsets")
"""What a processor returns about the text; all else is about the images."""

UNUSED = ("num_crops",)
"""What a processor returns beside its model's arguments."""

PROBE = 255
"""The probe image's red is x and its green y, up to this; its blue is this, and tells image from padding."""

AFTER_IMAGE = "a"
"""A letter behind the image, before which Idefics2 writes a blank."""

MAX_LAYOUTS = 4096
BENT_MARGIN = 4
"""Pixels at the border of a view whose values resizing bends."""

_PLAIN_TEMPLATE = (
    "{%% for message in messages %%}{%% for part in message.content %%}{%% if part.type == 'image' %%}%s"
    "{%% else %%}{{ part.text }}{%% endif %%}{%% endfor %%}{%% if message.role == 'assistant' %%}%s{%% else %%}"
    "{{ '\\n' }}{%% endif %%}{%% endfor %%}"
)
"""For bases without a chat template, as PaliGemma: the image, the question on a line, the answer."""


class ImageLayout(NamedTuple):
    """What a base's processor makes of an image of some size; text: what stands for it in the prompt.

    frames: float32[V, 4], where each view lies in the image: xyxy in sides of it, beyond [0, 1] where it is padded.
    """

    frames: torch.Tensor
    text: str


class BaseChatTemplate(ChatTemplate):
    """Renders with the chat template of a base's processor, which also decides where the image stands.

    A step whose text holds `<image>` shows the image.
    """

    def __init__(self, base: Any, system_prompt: str | None = None) -> None:
        self.base = base
        self._template: str | None = None
        eos = str(base.tokenizer.eos_token)
        if not (getattr(base, "chat_template", None) or base.tokenizer.chat_template):
            self._template = _PLAIN_TEMPLATE % (base.image_token + (base.tokenizer.bos_token or ""), eos)
            base.tokenizer.chat_template = None
        self._adds_end = ""
        self.tokenizer, self.system_prompt, self._skeletons = base.tokenizer, system_prompt, {}
        try:
            self.end = self._find_end()
        except InputError:  # the template ends no answer: the end token does
            self.end = self._adds_end = eos

    @property
    def chat_template(self) -> str:
        """The base's."""
        return str(self._template or self.base.chat_template or self.tokenizer.chat_template)

    def render(self, steps: Sequence[Step], generation: bool = False) -> Prompt:
        """Renders the steps; raises InputError where the template refuses the order of the roles."""
        marked = [_without_image(role, text) for role, text in steps]
        if self._adds_end:
            marked = [(role, text + self._adds_end * (role == "assistant")) for role, text in marked]
        rendered = super().render(marked, generation)
        if self._adds_end:
            spans = tuple((start, end - len(self.end), limit) for start, end, limit in rendered.spans)
            return dataclasses.replace(rendered, spans=spans)
        return rendered

    def _apply(self, roles: tuple[str, ...], texts: list[str], generation: bool) -> str:
        messages = [
            {
                "role": role.removesuffix(IMAGE_TOKEN),
                "content": [{"type": "image"}] * role.endswith(IMAGE_TOKEN) + [{"type": "text", "text": text}],
            }
            for role, text in zip(roles, texts, strict=True)
        ]
        if self.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system_prompt}]})
        try:
            written = self.base.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation, chat_template=self._template
            )
        except Exception as error:  # templates raise what they like
            raise InputError(f"the chat template refuses {', '.join(roles)}: {error}") from error
        written = str(written).replace(self.base.image_token, IMAGE_TOKEN)
        if any(role.endswith(IMAGE_TOKEN) for role in roles) and written.count(IMAGE_TOKEN) != 1:
            raise InputError(f"the chat template writes {written.count(IMAGE_TOKEN)} images where there is one")
        return written


def _without_image(role: str, text: str) -> Step:
    """Marks the role of a step that shows the image, and takes what shows it out of its text."""
    if IMAGE_TOKEN not in text:
        return role, text
    for shown in (IMAGE_PREAMBLE, f"{IMAGE_TOKEN}\n", f"\n{IMAGE_TOKEN}", IMAGE_TOKEN):
        text = text.replace(shown, "")
    return role + IMAGE_TOKEN, text


class RegionProcessor(GPT4RoIProcessor):
    """Does with a base's processor what GPT4RoIProcessor does with our own images and prompts.

    Augmentations of a data set (shift and flip) are left out, of image and boxes alike: a base resizes as it likes.
    Independent turns are trained as one conversation, in their order.

    Args:
        base: A processor of transformers; its tokenizer gets `<bbox>`, nothing else of it changes.
        model_max_length: Longer samples lose complete question-answer rounds.
        system_prompt: Instead of the chat template's own.
        tokens_per_region: How many `<bbox>` tokens a mention of a region becomes.
        region_shape: As of GPT4RoIProcessor.
    """

    preamble = IMAGE_TOKEN
    prompt_format = "chat"
    image_size = 1
    use_image_start_end = image_first = False

    def __init__(
        self,
        base: Any,
        model_max_length: int = DEFAULT_MAX_LENGTH,
        system_prompt: str | None = None,
        tokens_per_region: int = 1,
        region_shape: str = "box",
    ) -> None:
        self.base, tokenizer = base, base.tokenizer
        if REGION_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_tokens([REGION_TOKEN], special_tokens=True)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer, self.system_prompt = tokenizer, system_prompt
        self.model_max_length, self.tokens_per_region = model_max_length, tokens_per_region
        self.region_shape, self.n_masks_left_out = region_shape, 0
        self.region_token_id = tokenizer.convert_tokens_to_ids(REGION_TOKEN)
        patch = getattr(base, "image_token_id", None)
        self.image_patch_token_id = tokenizer.convert_tokens_to_ids(base.image_token) if patch is None else patch
        self._template = BaseChatTemplate(base, system_prompt)
        begins = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id] and tokenizer.bos_token_id is not None
        written = self._template.render([("user", "a")]).text
        self._text_encoder = TextEncoder(tokenizer, False, begins and tokenizer.bos_token not in written)
        self._layouts: dict[tuple[int, int], ImageLayout] = {}
        self._dialogues = self._encoder_of("")

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> RegionProcessor:  # type: ignore[override]
        """Opens the processor of a base's folder, with the settings saved beside it or as kwargs say."""
        path = Path(folder, SETTINGS_FILE)
        saved = read_json_object(path) if path.is_file() else {}
        given = {name: value for name, value in kwargs.items() if value is not None}
        return cls(AutoProcessor.from_pretrained(str(folder), trust_remote_code=False), **saved | given)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Writes the base's own files, and our settings beside the region encoder."""
        files = self.base.save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        path = Path(save_directory, SETTINGS_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return files

    def to_dict(self) -> dict[str, Any]:
        """Returns what is saved beside the base's processor."""
        return {name: getattr(self, name) for name in SETTINGS}

    def with_settings(self, **changes: Any) -> RegionProcessor:
        """Returns a processor of the same base with some of its settings changed."""
        return RegionProcessor(self.base, **self.to_dict() | changes)

    def _encoder_of(self, image_text: str) -> DialogueEncoder:
        return DialogueEncoder(
            self._template, self._text_encoder, image_text, self.image_patch_token_id, self.region_token_id, 1,
            self.model_max_length, self.tokens_per_region,
        )  # fmt: skip

    def encode_text(
        self, sample: RegionSample, generation: bool = False, image_size: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """Does what encode does without the image's tensors; its header is read where no image_size is given."""
        # A base has its own attention, under which conversations that do not see each other cannot share a sequence.
        apart = sample.independent_turns and generation
        sample = dataclasses.replace(sample, augmentation=None, independent_turns=apart)
        if sample.image is None:
            return super().encode_text(sample, generation)
        if image_size is None:
            image_size = read_header(sample.image, sample.where).size_read_by(sample.image_pipeline)
        return super().encode_text(sample, generation, image_size)

    def _dialogues_of(self, image_size: tuple[int, int] | None) -> DialogueEncoder:
        return self._dialogues if image_size is None else self._encoder_of(self.image_layout(*image_size).text)

    def image_inputs(
        self, opened: Image.Image, pipeline: ImagePipeline = "dialogue", augmentation: Augmentation | None = None
    ) -> dict[str, Any]:
        """Returns the tensors that the base's processor makes of an image that was opened, RGB, and view_frames.

        view_frames: float32[V, 4], as of ImageLayout.
        """
        made = self._call_base(opened)
        inputs = {name: value for name, value in made.items() if name not in (*OF_TEXT, *UNUSED)}
        return inputs | {"view_frames": self.image_layout(opened.height, opened.width).frames}

    def image_layout(self, height: int, width: int) -> ImageLayout:
        """Returns what the base's processor makes of images of this size.

        Resizing, cropping, padding and tiling are its business. They are measured, on an image whose colours say where
        a pixel comes from: formulas of our own would be wrong by a pixel here and there, and with the next version.
        """
        key = int(height), int(width)
        if key not in self._layouts:
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[key] = self._measure(*key)
        return self._layouts[key]

    def _measure(self, height: int, width: int) -> ImageLayout:
        x = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width)) * PROBE
        y = np.broadcast_to(((np.arange(height) + 0.5) / height)[:, None], (height, width)) * PROBE
        probe = np.stack([x, y, np.full((height, width), PROBE)], axis=-1).round().astype(np.uint8)
        made = self._call_base(Image.fromarray(probe), do_rescale=False, do_normalize=False)
        pixels = made["pixel_values"].float()
        if pixels.ndim < 4:  # resized as a whole and cut into patches
            frames = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        else:
            views = pixels.reshape(-1, *pixels.shape[-3:])
            frames = torch.tensor([_frame_of(view) for view in views if view.any()], dtype=torch.float32)
        return ImageLayout(frames, self._image_text(made))

    def _image_text(self, made: Any) -> str:
        offsets = made.get("text_replacement_offsets")
        if offsets and offsets[0]:
            return str(offsets[0][0]["replacement"])
        # Some processors do not say it: then it is what they write before a letter, without what begins every prompt.
        ids = torch.as_tensor(made["input_ids"]).flatten().tolist()
        added = {number: token for token, number in self.tokenizer.get_added_vocab().items()}
        marks = [place for place, number in enumerate(ids) if number in added]
        ends = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id}
        behind = self.tokenizer.decode(ids[marks[-1] + 1 :]).partition(AFTER_IMAGE)[0]
        return "".join(added[ids[place]] for place in marks if ids[place] not in ends) + behind

    def _call_base(self, image: Image.Image, **options: Any) -> Any:
        return self.base(
            text=[self.base.image_token + AFTER_IMAGE],
            images=[[image]],
            return_tensors="pt",
            return_text_replacement_offsets=True,
            **options,
        )


def _frame_of(view: torch.Tensor) -> tuple[float, float, float, float]:
    """Reads where a view of the probe image, float[3, H, W], lies in it."""
    inside = (view[2] - PROBE).abs() < 1
    columns = inside.any(0)
    rows = inside.float().mean(1) > 0.5 * columns.float().mean()
    x, y = view[0][rows].mean(0) / PROBE, view[1][:, columns].mean(1) / PROBE
    (x1, x2), (y1, y2) = _ends(x, columns), _ends(y, rows)
    return x1, y1, x2, y2


def _ends(values: torch.Tensor, inside: torch.Tensor) -> tuple[float, float]:
    """Fits a line through the values that are inside, and returns it at both ends of the view."""
    places = inside.nonzero().flatten()
    margin = min(BENT_MARGIN, max((len(places) - 2) // 3, 0))
    places = places[margin : len(places) - margin]
    slope, start = np.polyfit(places.double().numpy() + 0.5, values[places].double().numpy(), 1)
    return float(start), float(start + slope * len(values))
