"""What generic tools of transformers call on a processor: images=, text=, boxes=, chat messages, tokens, decoding."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from transformers import BatchFeature, ImageProcessingMixin, ProcessorMixin
from transformers.processing_utils import MultiModalData

from gpt4roi.constants import IMAGE_END_TOKEN, IMAGE_PATCH_TOKEN, IMAGE_START_TOKEN, IMAGE_TOKEN
from gpt4roi.errors import InputError
from gpt4roi.io.auto_map import InPackage, write_auto_file
from gpt4roi.processing.batch import RegionBatch, pad_features
from gpt4roi.processing.images import to_pixel_values
from gpt4roi.processing.mentions import number_boxes
from gpt4roi.processing.messages import Conversation, align_boxes, align_images, read_conversation, replaced_by_masks
from gpt4roi.processing.templates import ChatTemplate, PromptTemplate, user_heading
from gpt4roi.processing.tokenizer import DialogueEncoder
from gpt4roi.processing.user_input import open_image, validate_regions
from gpt4roi.structures import Regions, RegionSample, Turn

_WRITTEN_IMAGE = re.compile(f"({IMAGE_START_TOKEN})?({IMAGE_PATCH_TOKEN})+({IMAGE_END_TOKEN})?")
_OPTIONS = ("padding", "padding_side", "truncation", "max_length", "add_special_tokens", "return_mm_token_type_ids")
"""Arguments of other processors that are understood. Every batch is padded; nothing is cut; a prompt has its tokens."""


class RegionImageProcessor(ImageProcessingMixin):
    """Turns images into pixel_values alone, as the processor does in its `dialogue` pipeline; upright by EXIF.

    Attributes:
        size: `{"height": S, "width": S}`.
        image_mean, image_std: Of values in [0, 1], for each channel.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 (a list, as transformers declares it)
    size: dict[str, int]
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    def __call__(self, images: Any, return_tensors: str | None = "pt") -> BatchFeature:
        """Returns pixel_values float32[K, 3, S, S] of one image or several, as open_image takes them."""
        _check_tensors(return_tensors)
        opened = [open_image(image) for image in (images if isinstance(images, (list, tuple)) else [images])]
        return BatchFeature({"pixel_values": torch.stack([self.pixel_values(image) for image in opened])})

    preprocess = __call__

    def pixel_values(self, opened: Image.Image) -> torch.Tensor:
        """Returns float32[3, S, S] of an image that was opened."""
        return to_pixel_values(opened, "dialogue", self.size["height"], self.image_mean, self.image_std)


class TransformersInterface(InPackage, ProcessorMixin):
    """The processor as others of transformers are; what it encodes is defined in GPT4RoIProcessor."""

    image_token = IMAGE_PATCH_TOKEN
    """Stands in a text for the image, like `<image>`; its id stands image_seq_length times in input_ids."""

    image_size: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    image_seq_length: int
    region_shape: str
    model_max_length: int
    image_patch_token_id: int
    _template: PromptTemplate
    _dialogues: DialogueEncoder

    def encode(self, sample: RegionSample, generation: bool = False) -> dict[str, Any]:
        """Turns one sample into tensors."""
        raise NotImplementedError

    def image_inputs(self, opened: Image.Image) -> dict[str, Any]:
        """Returns the model's inputs about an image."""
        raise NotImplementedError

    @property
    def image_token_id(self) -> int:
        """Id of image_token."""
        return self.image_patch_token_id

    @property  # type: ignore[override]  # there is one, never several by name
    def chat_template(self) -> str | None:
        """The prompt format in jinja, for messages whose content is text."""
        return self._template.chat_template

    @chat_template.setter
    def chat_template(self, value: str | None) -> None:
        if value is not None:  # ProcessorMixin sets None
            raise InputError(
                "the prompt format belongs to the weights; give the tokenizer the chat template, and build"
            )

    @property
    def image_processor(self) -> RegionImageProcessor:
        """What turns images alone into pixel_values."""
        size = {"height": self.image_size, "width": self.image_size}
        return RegionImageProcessor(size=size, image_mean=self.image_mean, image_std=self.image_std)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that a batch holds."""
        return ["input_ids", "attention_mask", "pixel_values", "boxes"] + ["masks"] * (self.region_shape == "mask")

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        boxes: Any = None,
        masks: Any = None,
        *,
        samples: RegionSample | Sequence[RegionSample] | None = None,
        generation: bool = False,
        return_tensors: str | None = "pt",
        **options: Any,
    ) -> RegionBatch:
        """Encodes texts with their images and boxes, or samples, as a batch.

        Args:
            images: An image (path, data URL, PIL image, bytes or array) or None for each text, as align_images takes
                them. Or samples, which may stand here.
            text: One or several: a complete prompt, as apply_chat_template writes it, or else a question, which is
                written as the prompt format has it. Regions are `<region1>` or `<bbox>`, the image `<image>`.
            boxes: As align_boxes takes them; xyxy in pixels of the image as it is shown, after its EXIF rotation; also
                masks, points and strokes, as of user_input.validate_regions.
            masks: Instead of boxes, or None where a region's box is meant; a list, or for several texts one for each.
            samples: One or several RegionSample.
            generation: For samples: up to where the model answers, without labels, padded on the left.
            return_tensors: `pt`, the only kind there is.
            options: Of _OPTIONS. Texts are padded on the left, unless padding_side is `right`.

        Returns:
            What batch.pad_features describes.

        Raises:
            InputError: Images, texts and boxes do not fit together, or an argument is not understood.
        """
        _check_tensors(return_tensors)
        options = _flat(options)
        if isinstance(text, bool):  # processor(samples, generation)
            text, generation = None, text
        listed = list(images) if isinstance(images, (list, tuple)) else [images]
        if samples is None and listed and all(isinstance(one, RegionSample) for one in listed):
            samples = images
        if samples is not None:
            listed = [samples] if isinstance(samples, RegionSample) else list(samples)
            features, side = [self.encode(one, generation) for one in listed], "left" if generation else "right"
        elif text is None:
            raise InputError("give text, or samples; image_processor(images) gives the tensors of images alone")
        else:
            boxes = boxes if masks is None else replaced_by_masks(boxes, masks, isinstance(text, str))
            features, side = self._encode_texts(images, text, boxes, options), options.get("padding_side") or "left"
        batch = pad_features(features, cast(int, self.tokenizer.pad_token_id), cast(Any, side))
        if options.get("return_mm_token_type_ids"):
            batch["mm_token_type_ids"] = (batch["input_ids"] == self.image_token_id).long()
        return RegionBatch(batch)

    def _encode_texts(
        self, images: Any, text: str | Sequence[str], boxes: Any, options: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        texts = [_WRITTEN_IMAGE.sub(IMAGE_TOKEN, one) for one in ([text] if isinstance(text, str) else text)]
        aligned = align_images(images, texts)
        rows = align_boxes(boxes, texts, aligned)
        encoded = [self._encode_text(*one) for one in zip(texts, aligned, rows, strict=True)]
        limit, longest = options.get("max_length", self.model_max_length), max(len(one["input_ids"]) for one in encoded)
        if longest > limit:
            raise InputError(f"a prompt of {longest} tokens, of which {limit} are allowed; nothing is cut: shorten it")
        return encoded

    def _encode_text(self, text: str, image: Any, boxes: Any) -> dict[str, Any]:
        """Encodes a complete prompt, or a question."""
        opened = None if image is None else open_image(image)
        size = (opened.height, opened.width) if opened else (1, 1)
        regions = validate_regions(boxes, size, region_shape=self.region_shape) if opened else Regions()
        sample = RegionSample(opened, (Turn("user", text),), regions.boxes_px, masks=regions.masks)
        heading = user_heading(self._template)
        if not heading or heading not in text:
            return self.encode(sample, generation=True)
        if text.count(IMAGE_TOKEN) != int(image is not None):
            raise InputError(f"{text.count(IMAGE_TOKEN)} <image> in the prompt but {int(image is not None)} image")
        encoded = self._dialogues.prompt(text, number_boxes([text], len(regions))[0])
        features: dict[str, Any] = {"input_ids": torch.tensor(encoded.ids)}
        if opened is not None:
            features |= self.image_inputs(opened)
            features |= self._regions(sample, encoded.boxes, size, "")
        return features

    def _regions(
        self, sample: RegionSample, order: list[int], image_size: tuple[int, int] | None, where: str
    ) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def apply_chat_template(  # type: ignore[override]  # transformers says that it returns text
        self,
        conversation: Any,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        boxes: Any = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Writes one conversation or several in the prompt format, and encodes them.

        Args:
            conversation: Messages, as read_conversation takes them, or a list of such.
            chat_template: None: the prompt format belongs to the weights.
            add_generation_prompt: Up to where the model answers.
            continue_final_message: Up to where the last message's text ends, to be gone on with.
            tokenize: Return a batch, or its input_ids.
            return_dict: With tokenize: the batch.
            boxes: As of a call, for conversations; they may also stand as `boxes` in a block of type image.
            processor_kwargs: Arguments of a call.
            kwargs: Likewise.

        Returns:
            The prompt, `<image>` and `<region1>` in it, or a list of them; with tokenize a RegionBatch or int64[B, T].

        Raises:
            InputError: A conversation cannot be read, or an argument is not understood.
        """
        if chat_template not in (None, self.chat_template):
            raise InputError("chat_template: the prompt format belongs to the weights, and cannot be exchanged")
        several = isinstance(conversation, (list, tuple)) and not isinstance(conversation[0], Mapping)
        read = [read_conversation(messages) for messages in (conversation if several else [conversation])]
        prompts = [self._render(one, add_generation_prompt, continue_final_message) for one in read]
        options = {name: value for name, value in (kwargs | dict(processor_kwargs or {})).items() if value is not None}
        if not tokenize:
            return prompts if several else prompts[0]
        if boxes is None and any(one.boxes_px is not None for one in read):
            boxes = [one.boxes_px for one in read]
        images = options.pop("images", None) or [one.image for one in read]
        if options.get("return_tensors") == "auto":
            del options["return_tensors"]
        batch = self(images=images, text=prompts, boxes=boxes, **options)
        return batch if return_dict else batch["input_ids"]

    def _render(self, conversation: Conversation, generation: bool, continued: bool) -> str:
        template: Any = self._template
        if conversation.system is not None and isinstance(template, ChatTemplate):
            template = ChatTemplate(cast(Any, self.tokenizer), conversation.system)
        elif conversation.system is not None:
            template = dataclasses.replace(template, system=conversation.system)
        written = str(template.render(conversation.steps, generation and not continued).text)
        if not continued:
            return written
        last = conversation.steps[-1][1].strip()
        return written[: written.rindex(last) + len(last)]

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Saves processor and tokenizer; the tokenizer's chat template stays its own, whatever the prompt format."""
        files = super().save_pretrained(save_directory, push_to_hub, **kwargs)
        if self.chat_template != self.tokenizer.chat_template:
            Path(save_directory, "chat_template.jinja").unlink(missing_ok=True)
            self.tokenizer.save_pretrained(save_directory)
        write_auto_file(Path(save_directory))
        return files

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """Returns how many tokens images of these sizes take; asked by serving engines."""
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.image_seq_length] * count, num_image_patches=[1] * count)


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that are set, also those inside `text_kwargs` and the like; raises InputError on others."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= value if name.endswith("_kwargs") and isinstance(value, Mapping) else {name: value}
    flat = {name: value for name, value in flat.items() if value is not None and value is not False}
    unknown = [name for name in flat if name not in _OPTIONS]
    if unknown:
        raise InputError(
            f"the processor has no argument {unknown[0]!r}; it has images, text, boxes, masks, {', '.join(_OPTIONS)}"
        )
    if flat.get("padding", True) not in (True, "longest"):
        raise InputError(f"padding is {flat['padding']!r}; batches are padded to their longest sample only")
    return flat


def _check_tensors(return_tensors: str | None) -> None:
    if return_tensors not in (None, "pt"):
        raise InputError(f"return_tensors is {return_tensors!r}; there are PyTorch tensors only ('pt')")
