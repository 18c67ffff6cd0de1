"""EncodedImage: image features and cached region embeddings of one image, and the prompts about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image

from gpt4roi.models.compat import execution_device_and_dtype
from gpt4roi.processing.tokenizer import common_prefix_length
from gpt4roi.structures import RegionSample

IMAGE_BATCH_SIZE = 8
"""How many images the vision tower encodes together."""

REGION_BATCH_SIZE = 64
"""How many boxes are pooled together at most, which bounds the memory for an image with many."""

REGION_CACHE_SIZE = 1024
"""How many embeddings are cached for later questions: more than one call may ask about (user_input.MAX_BOXES)."""


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt and the embeddings that belong at its placeholder tokens.

    Attributes:
        input_ids: int64[T], on the CPU.
        image: Number of its image; prompts of one image share their prefix.
        image_features: float[P, D], or what a vision-language model made of the image; None without an image.
        region_features: float[M * k, D], row j for the j-th `<bbox>`; a region has k of them.
        dropped_rounds: Rounds of the conversation that were left out because it is too long.
    """

    input_ids: torch.Tensor
    image: int = 0
    image_features: Any = None
    region_features: torch.Tensor | None = None
    dropped_rounds: int = 0

    def embed(self, model: Any) -> torch.Tensor:
        """Returns float[T, R], what the language model reads of each token, with image and regions in their places."""
        return model.prompt_rows(self.input_ids, self.image_features, self.region_features)

    def common_length(self, later: Prompt, region_token_id: int) -> int:
        """Returns how many tokens two prompts begin with alike, the embeddings at their placeholders included."""
        if self.image_features is not later.image_features:
            return 0
        ids = later.input_ids.numpy()
        common = common_prefix_length([self.input_ids.numpy(), ids])
        ours, theirs = self.region_features, later.region_features
        for number, position in enumerate(np.flatnonzero(ids[:common] == region_token_id).tolist()):
            if ours is None or theirs is None or not torch.equal(ours[number], theirs[number]):
                return position
        return common


@dataclass(frozen=True)
class PreparedImage:
    """The processor's tensors of an image of any size (pixel_values), and that size, (height, width)."""

    inputs: Mapping[str, torch.Tensor]
    size: tuple[int, int]

    @property
    def pixel_values(self) -> torch.Tensor:
        """The pixels, as the model sees them."""
        return self.inputs["pixel_values"]


def prepare_image(processor: Any, image: Image.Image) -> PreparedImage:
    """Prepares an opened image, RGB, for encode_images; the image may then be closed."""
    return PreparedImage(processor.image_inputs(image), (image.height, image.width))


@torch.inference_mode()
def encode_images(
    model: Any, images: Iterable[PreparedImage], batch_size: int = IMAGE_BATCH_SIZE
) -> Iterator[EncodedImage]:
    """Runs the vision tower over batches of images, taken as needed, and yields each image encoded."""
    remaining = iter(images)
    while batch := list(islice(remaining, batch_size)):
        encoded = model.encode_prepared([image.inputs for image in batch])
        for image, (features, maps) in zip(batch, encoded, strict=True):
            yield EncodedImage(model, features, maps, image.size)


class EncodedImage:
    """What the model computes once of an image: its features float[P, D], its pyramid, its regions' embeddings.

    The pyramid is computed with the first box and replaces the tower's feature maps. The embeddings are an LRU cache.
    """

    def __init__(self, model: Any, image_features: Any, feature_maps: list[Any], size: tuple[int, int]) -> None:
        self.model = model
        self.image_features = image_features
        self.size = size
        self._feature_maps = feature_maps
        self._pyramid: list[Any] | None = None
        self._regions: dict[tuple[float | bytes, ...], torch.Tensor] = {}

    @torch.inference_mode()
    def region_features(self, boxes: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the embeddings float[M * k, D] of boxes float[M, 4], xyxy in [0, 1], and their masks float[M, r, r].

        Each region is computed once, unless REGION_CACHE_SIZE others were asked about in between.
        """
        rows: list[tuple[float | bytes, ...]] = [tuple(row) for row in boxes.tolist()]
        if not rows:
            return torch.zeros(0, self.model.region_encoder.width)
        if masks is not None:
            rows = [(*row, mask.numpy().tobytes()) for row, mask in zip(rows, masks, strict=True)]
        cached = self._regions
        computed: dict[tuple[float | bytes, ...], torch.Tensor] = {}
        first = {row: number for number, row in reversed(list(enumerate(rows)))}
        new = [row for row in dict.fromkeys(rows) if row not in cached]
        for start in range(0, len(new), REGION_BATCH_SIZE):
            batch = new[start : start + REGION_BATCH_SIZE]
            numbers, device = [first[row] for row in batch], execution_device_and_dtype(self.model.region_encoder)[0]
            of_masks = None if masks is None else [masks[numbers].to(device)]
            features = self.model.region_encoder.embed_boxes(
                self._fused(), [boxes[numbers].to(device, torch.float32)], of_masks
            )
            features = features.unflatten(0, (len(batch), -1))
            # Copies, so that one that stays cached does not hold the memory of all that were computed with it.
            computed.update(zip(batch, (row.clone() for row in features), strict=True))
        used = {row: computed[row] if row in computed else cached[row] for row in rows}
        latest = [*((row, features) for row, features in cached.items() if row not in used), *used.items()]
        self._regions = dict(latest[-REGION_CACHE_SIZE:])
        return torch.cat([used[row] for row in rows])

    def _fused(self) -> list[Any]:
        if self._pyramid is None:
            self._pyramid = self.model.region_encoder.pyramid(self._feature_maps)
            self._feature_maps = []
        return self._pyramid

    def prompts(self, processor: Any, samples: Sequence[RegionSample], number: int = 0) -> list[Prompt]:
        """Writes the prompt of each sample, a conversation about this image up to the next answer.

        Their regions are embedded together. number: the image's, for Prompt.image.
        """
        encoded = [processor.encode_text(sample, generation=True, image_size=self.size) for sample in samples]
        if encoded:
            names = [name for name in ("boxes", "masks") if name in encoded[0]]
            self.region_features(*(torch.cat([one[name] for one in encoded]) for name in names))
        return [self.prompt(one, number) for one in encoded]

    def prompt(self, encoded: Mapping[str, Any], number: int = 0) -> Prompt:
        """Returns the prompt of one encoded sample about this image (input_ids, boxes, masks, n_dropped_rounds)."""
        regions = self.region_features(encoded["boxes"], encoded.get("masks"))
        return Prompt(encoded["input_ids"], number, self.image_features, regions, encoded["n_dropped_rounds"])
