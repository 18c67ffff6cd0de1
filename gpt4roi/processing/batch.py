"""The only place that pads: encoded samples become one batch."""

from __future__ import annotations

from typing import Any, Literal

import torch

from gpt4roi.constants import IGNORE_INDEX


def pad_features(
    features: list[dict[str, Any]], pad_token_id: int, side: Literal["left", "right"] = "right"
) -> dict[str, Any]:
    """Joins what GPT4RoIProcessor.encode returns into a batch for the model.

    Returns input_ids and attention_mask int64[B, T]; labels int64[B, T] where every sample has them; pixel_values
    float32[K, 3, S, S] and boxes, a list of K float32[M_k, 4], for the K samples with an image, in batch order
    (neither where there is none); segment_ids and position_ids int64[B, T] where any sample has them.
    """
    length = max(len(feature["input_ids"]) for feature in features)

    def join(rows: list[torch.Tensor], fill: int) -> torch.Tensor:
        joined = torch.full((len(rows), length), fill, dtype=torch.int64)
        for target, row in zip(joined, rows, strict=True):
            if side == "right":
                target[: len(row)] = row
            else:
                target[length - len(row) :] = row
        return joined

    ids = [feature["input_ids"] for feature in features]
    batch: dict[str, Any] = {
        "input_ids": join(ids, pad_token_id),
        "attention_mask": join([torch.ones_like(row) for row in ids], 0),
    }
    if all("labels" in feature for feature in features):
        batch["labels"] = join([feature["labels"] for feature in features], IGNORE_INDEX)
    if any("segment_ids" in feature for feature in features):
        # A sample of one conversation is all prefix: it sees itself causally.
        segments = [
            feature.get("segment_ids", torch.zeros_like(row)) for feature, row in zip(features, ids, strict=True)
        ]
        positions = [
            feature.get("position_ids", torch.arange(len(row))) for feature, row in zip(features, ids, strict=True)
        ]
        batch["segment_ids"] = join(segments, 0)
        batch["position_ids"] = join(positions, 0)
    with_image = [feature for feature in features if "pixel_values" in feature]
    if with_image:
        batch["pixel_values"] = torch.stack([feature["pixel_values"] for feature in with_image])
    boxed = [feature["boxes"] for feature in features if "boxes" in feature]
    if boxed:
        batch["boxes"] = boxed
    return batch
