"""Items of a prompt for vLLM: its image, and each region as one of its own, identified by digests of their content.

An image is identified without its regions, so that questions about other regions reuse its embeddings and its prefix
in vLLM's caches. A region is identified by its image and by all that the region encoder takes of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from gpt4roi.generation.encoded_image import PreparedImage

FIELDS = ("boxes", "masks")
"""What an encoded sample holds for each mention of a region: float32[M, 4], xyxy in [0, 1], and float32[M, r, r]."""


@dataclass(frozen=True)
class ImageItem:
    """An image as the vision tower takes it.

    Attributes:
        pixel_values: float32[3, S, S].
        digest: Their SHA-256.
    """

    pixel_values: torch.Tensor
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", _digest(self.pixel_values))


@dataclass(frozen=True)
class RegionItem:
    """A region of an image.

    Attributes:
        image: The image.
        fields: What the region encoder takes of it, a row of each of FIELDS that the processor wrote.
    """

    image: ImageItem
    fields: Mapping[str, torch.Tensor]

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the image and every field."""
        named = [name.encode() + b"=" + _digest(value) for name, value in sorted(self.fields.items())]
        return hashlib.sha256(b";".join([self.image.digest, *named])).digest()


def _digest(values: torch.Tensor) -> bytes:
    shape = f"{values.dtype}{list(values.shape)}".encode()
    return hashlib.sha256(shape + values.contiguous().numpy().tobytes()).digest()


def image_item(image: PreparedImage) -> ImageItem:
    """Returns the item of a prepared image."""
    return ImageItem(image.pixel_values)


def tokens_prompt(encoded: Mapping[str, Any], image: ImageItem | None) -> dict[str, Any]:
    """Returns what `LLM.generate` takes for a sample that GPT4RoIProcessor.encode_text encoded up to the answer.

    All placeholder tokens of its image and its regions are in it already.
    """
    prompt: dict[str, Any] = {"prompt_token_ids": encoded["input_ids"].tolist()}
    if image is not None:
        prompt["multi_modal_data"] = {"image": [image]}
        names = [name for name in FIELDS if name in encoded]
        rows = zip(*(encoded[name] for name in names), strict=True)
        regions = [RegionItem(image, dict(zip(names, row, strict=True))) for row in rows]
        prompt["multi_modal_data"] |= {"region": regions} if regions else {}
    return prompt
