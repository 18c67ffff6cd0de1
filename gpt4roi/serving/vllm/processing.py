"""Images and regions as two modalities of vLLM's multimodal processing, in prompts that our own processor wrote."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)

from gpt4roi.checkpoint.loading import load_processor
from gpt4roi.constants import IMAGE_PATCH_TOKEN, REGION_TOKEN
from gpt4roi.processing.processor import GPT4RoIProcessor
from gpt4roi.serving.vllm.items import ImageItem, RegionItem
from gpt4roi.structures import MASK_SIZE

MAX_REGIONS = 256
"""Mentions of regions in one prompt; each is an item that brings its image's pixels."""


class Items(ProcessorBatchItems):
    """Items that vLLM's caches identify by our digests."""

    def get_item_for_hash(self, index: int) -> str:
        """Returns the whole digest."""
        return self.data[index].digest.hex()


class DataParser(MultiModalDataParser):
    """Takes lists of ImageItem and RegionItem."""

    def _get_subparsers(self) -> dict[str, Any]:
        return {
            "image": lambda data: Items(list(data), "image") if data else None,
            "region": lambda data: Items(list(data), "region") if data else None,
        }


class ProcessingInfo(BaseProcessingInfo):
    """What vLLM asks about prompts of a model before it has any."""

    @cached_property
    def processor(self) -> GPT4RoIProcessor:
        """The processor that was saved with the model."""
        config = self.ctx.model_config
        return load_processor(config.model, revision=config.revision)

    @cached_property
    def placeholders(self) -> dict[str, list[int]]:
        """The tokens that each item of a modality replaces."""
        processor = self.processor
        return {
            "image": [processor.image_patch_token_id] * processor.image_seq_length,
            "region": [processor.region_token_id] * processor.tokens_per_region,
        }

    def get_hf_processor(self, **kwargs: object) -> GPT4RoIProcessor:
        """Returns our processor."""
        return self.processor

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """Returns none: what an item is made of is in the item."""
        return {}

    def get_data_parser(self) -> DataParser:
        """Returns the parser of `multi_modal_data`."""
        return DataParser()

    def get_supported_mm_limits(self) -> dict[str, int | None]:
        """Returns how many items one prompt may have."""
        return {"image": 1, "region": MAX_REGIONS}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> dict[str, int]:
        """Returns how many embeddings an item has."""
        return {modality: len(tokens) for modality, tokens in self.placeholders.items()}


class DummyInputs(BaseDummyInputsBuilder[ProcessingInfo]):
    """Prompts by which vLLM measures memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Returns the placeholder tokens of some items."""
        words = {"image": IMAGE_PATCH_TOKEN, "region": REGION_TOKEN}
        lengths = {modality: len(tokens) for modality, tokens in self.info.placeholders.items()}
        return "".join(words[modality] * lengths[modality] * count for modality, count in mm_counts.items())

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        """Returns grey images and regions of them."""
        processor = self.info.processor
        image = ImageItem(torch.zeros(3, processor.image_size, processor.image_size))
        fields = {"boxes": torch.tensor([0.1, 0.1, 0.9, 0.9])}
        if processor.region_shape == "mask":
            fields["masks"] = torch.ones(MASK_SIZE, MASK_SIZE)
        item = {"image": image, "region": RegionItem(image, fields)}
        return {modality: [item[modality]] * count for modality, count in mm_counts.items()}


class Processor(BaseMultiModalProcessor[ProcessingInfo]):
    """Turns items into the tensors that the model's `embed_multimodal` gets."""

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> BatchFeature:
        if hf_kwargs:
            raise VLLMValidationError(f"mm_processor_kwargs: this model takes none, got {', '.join(hf_kwargs)}")
        tensors: dict[str, torch.Tensor] = {}
        for modality in ("image", "region"):
            items = mm_items[modality].get_all() if modality in mm_items else []
            if not items:
                continue
            images = items if modality == "image" else [item.image for item in items]
            pixels = torch.stack([image.pixel_values for image in images])
            digests = torch.stack([torch.frombuffer(bytearray(image.digest), dtype=torch.uint8) for image in images])
            tensors |= {f"{modality}_pixel_values": pixels, f"{modality}_digest": digests}
            if modality == "region":  # in float32: half of it would move a box by a pixel
                for name in items[0].fields:
                    tensors[f"region_{name}"] = torch.stack([item.fields[name] for item in items])
        return BatchFeature(tensors)

    def _get_mm_fields_config(self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        # On the CPU, until it is known which images are new.
        return {name: MultiModalFieldConfig.batched(name.partition("_")[0], keep_on_cpu=True) for name in hf_inputs}

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> list[Any]:
        # Nothing changes: this tells vLLM where the items' tokens are.
        return [PromptReplacement(modality, tokens, tokens) for modality, tokens in self.info.placeholders.items()]

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Checks that every placeholder has its item, and processes a prompt."""
        for modality, tokens in self.info.placeholders.items():
            expected = sum(token == tokens[0] for token in inputs.prompt)
            given = len(tokens) * len(inputs.mm_data_items.get(modality, ()))
            if expected != given:
                raise VLLMValidationError(
                    f"the prompt has {expected} tokens for items of modality {modality}, but {given} embeddings come"
                )
        return super().apply(inputs, timing_ctx)
