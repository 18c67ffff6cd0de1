"""Batches: pad_features and RegionCollator, the data collator, are the only place that pads."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature

from gpt4roi.constants import IGNORE_INDEX


class RegionBatch(BatchFeature):
    """A batch of the processor. Boxes follow to another device, not to another dtype: half precision moves corners."""

    def to(self, *args: Any, **kwargs: Any) -> RegionBatch:
        """Moves and casts the tensors, as BatchFeature does."""
        boxes = self.data.get("boxes", [])
        super().to(*args, **kwargs)
        moved = self.data.get("boxes", [])
        self.data |= {"boxes": [old.to(new.device) for old, new in zip(boxes, moved, strict=True)]} if boxes else {}
        return self


def pad_features(
    features: list[dict[str, Any]], pad_token_id: int, side: Literal["left", "right"] = "right"
) -> dict[str, Any]:
    """Joins what GPT4RoIProcessor.encode returns into a batch for the model.

    Returns:
        input_ids and attention_mask int64[B, T]; labels int64[B, T] where every sample has them; pixel_values
        float32[K, 3, S, S] and boxes, a list of K float32[M_k, 4], for the K samples with an image, in batch order
        (neither where there is none), and masks, a list of K float32[M_k, r, r], where they have them; segment_ids and
        position_ids int64[B, T] where any sample has them.
    """
    join = functools.partial(pad_sequence, batch_first=True, padding_side=side)
    ids = [feature["input_ids"] for feature in features]
    batch: dict[str, Any] = {
        "input_ids": join(ids, padding_value=pad_token_id),
        "attention_mask": join([torch.ones_like(row) for row in ids]),
    }
    if all("labels" in feature for feature in features):
        batch["labels"] = join([feature["labels"] for feature in features], padding_value=IGNORE_INDEX)
    if any("segment_ids" in feature for feature in features):
        # A sample of one conversation is all prefix: it sees itself causally.
        segments = [
            feature.get("segment_ids", torch.zeros_like(row)) for feature, row in zip(features, ids, strict=True)
        ]
        positions = [
            feature.get("position_ids", torch.arange(len(row))) for feature, row in zip(features, ids, strict=True)
        ]
        batch["segment_ids"] = join(segments)
        batch["position_ids"] = join(positions)
    with_image = [feature for feature in features if "pixel_values" in feature]
    if any("view_frames" in feature for feature in features):
        batch |= join_images(with_image)
    elif with_image:
        batch["pixel_values"] = torch.stack([feature["pixel_values"] for feature in with_image])
    for name in ("boxes", "masks"):
        rows = [feature[name] for feature in features if name in feature]
        batch |= {name: rows} if rows else {}
    return batch


OF_SAMPLE = (
    "input_ids", "labels", "boxes", "masks", "box_indices", "segment_ids", "position_ids", "text_ids",
    "n_dropped_rounds", "n_cut_answers", "source",
)  # fmt: skip
"""What an encoded sample says beside its image's tensors."""


def join_images(features: list[dict[str, Any]]) -> dict[str, Any]:
    """Joins what RegionProcessor says about images: the tensors of the base's processor, and view_frames.

    Tensors are joined in their first dimension; in the others the smaller ones are padded at the end with zeros, as the
    base's processor pads a batch, and the frames of views that are padded grow with them.
    """
    names = [
        name for name in features[0] if name not in OF_SAMPLE
    ] if features else []  # fmt: skip
    joined: dict[str, Any] = {}
    for name in names:
        values = [feature[name] for feature in features]
        if name == "view_frames":
            continue
        largest = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
        joined[name] = torch.cat([_padded(value, largest) for value in values])
    frames = [feature["view_frames"] for feature in features]
    if "pixel_attention_mask" in joined and joined["pixel_values"].ndim > 3:
        height, width = joined["pixel_values"].shape[-2:]
        sizes = [feature["pixel_values"].shape[-2:] for feature in features]
        frames = [_grown(rows, width / w, height / h) for rows, (h, w) in zip(frames, sizes, strict=True)]
    return joined | {"view_frames": frames}


def _padded(value: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    lacking = [(0, size - own) for own, size in zip(value.shape[1:], sizes, strict=True)]
    return torch.nn.functional.pad(value, [side for pair in reversed(lacking) for side in pair])


def _grown(frames: torch.Tensor, across: float, down: float) -> torch.Tensor:
    """Returns the frames of views, float[V, 4], that were padded on the right and below."""
    start, side = frames[:, :2], frames[:, 2:] - frames[:, :2]
    return torch.cat([start, start + side * side.new_tensor([across, down])], dim=1)


class RegionCollator:
    """Pads encoded samples to one batch for training; what could not be encoded is left out.

    Where all are left out, one row without a label stands in, so that the batches of a step, and all processes, stay
    together.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Makes a batch.

        Args:
            features: Outputs of GPT4RoIProcessor.encode; instead of `pixel_values` they may hold the vision tower's
                outputs: `image_tokens` float[P, C] and `feature_maps`, a list of float[C, H, W].

        Returns:
            The model's arguments, plus `text_ids` (int64[M], one for each `<bbox>` of the batch) where the samples have
            them, `n_dropped_rounds` and `sources` of each sample used, `skipped`: the reasons of those left out, and
            `n_tokens` and `n_supervised`, counted here to avoid a device sync.
        """
        encoded = [feature for feature in features if "input_ids" in feature]
        skipped = [feature["skipped"] for feature in features if "input_ids" not in feature]
        batch = pad_features(encoded, self.pad_token_id) if encoded else self._empty_batch()
        cached = [feature for feature in encoded if "image_tokens" in feature]
        if cached:
            batch["image_tokens"] = torch.stack([feature["image_tokens"] for feature in cached])
            levels = zip(*(feature["feature_maps"] for feature in cached), strict=True)
            batch["feature_maps"] = [torch.stack(level) for level in levels]
        if encoded and all("text_ids" in feature for feature in encoded):
            batch["text_ids"] = torch.cat([feature["text_ids"] for feature in encoded])
        batch["n_dropped_rounds"] = [feature["n_dropped_rounds"] for feature in encoded]
        batch["sources"] = [feature["source"] for feature in encoded]
        if skipped or not encoded:
            batch["skipped"] = skipped
        batch["n_tokens"] = int(batch["attention_mask"].sum())
        batch["n_supervised"] = int((batch["labels"] != IGNORE_INDEX).sum())
        return batch

    def _empty_batch(self) -> dict[str, Any]:
        ids = torch.full((1, 2), self.pad_token_id)
        return {
            "input_ids": ids,
            "labels": torch.full_like(ids, IGNORE_INDEX),
            "attention_mask": torch.ones_like(ids),
        }
