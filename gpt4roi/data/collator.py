"""Data collator: pads encoded samples to one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gpt4roi.constants import IGNORE_INDEX
from gpt4roi.processing.batch import pad_features

_TENSOR_LISTS = ("feature_maps",)
_STACKED = ("image_tokens",)


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
            features: Outputs of GPT4RoIProcessor.encode; instead of `pixel_values` they may hold what the vision tower
                made of the image: `image_tokens` float[P, C] and `feature_maps`, a list of float[C, H, W].

        Returns:
            The model's arguments, plus `text_ids` (int64[M], one for each `<bbox>` of the batch) where the samples have
            them, `n_dropped_turns` and `sources` of each sample used, `skipped`: the reasons of those left out, and
            `n_tokens` and `n_supervised`, counted here to avoid a device sync.
        """
        encoded = [feature for feature in features if "input_ids" in feature]
        skipped = [feature["skipped"] for feature in features if "input_ids" not in feature]
        if not encoded:
            return _counted(self._nothing() | {"skipped": skipped})
        cached = [{key: f[key] for key in (*_TENSOR_LISTS, *_STACKED) if key in f} for f in encoded]
        batch = pad_features(
            [{key: value for key, value in f.items() if key not in (*_TENSOR_LISTS, *_STACKED)} for f in encoded],
            pad_token_id=self.pad_token_id,
            side="right",
        )
        with_image = [entry for entry in cached if entry]
        if with_image:
            batch["image_tokens"] = torch.stack([entry["image_tokens"] for entry in with_image])
            batch["feature_maps"] = [
                torch.stack(level) for level in zip(*(e["feature_maps"] for e in with_image), strict=True)
            ]
        if all("text_ids" in feature for feature in encoded):
            batch["text_ids"] = torch.cat([feature["text_ids"] for feature in encoded])
        batch["n_dropped_turns"] = [feature["n_dropped_turns"] for feature in encoded]
        batch["sources"] = [feature["source"] for feature in encoded]
        if skipped:
            batch["skipped"] = skipped
        return _counted(batch)

    def _nothing(self) -> dict[str, Any]:
        ids = torch.full((1, 2), self.pad_token_id)
        labels = torch.full_like(ids, IGNORE_INDEX)
        return {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": torch.ones_like(ids),
            "n_dropped_turns": [],
            "sources": [],
        }


def _counted(batch: dict[str, Any]) -> dict[str, Any]:
    batch["n_tokens"] = int(batch["attention_mask"].sum())
    batch["n_supervised"] = int((batch["labels"] != IGNORE_INDEX).sum())
    return batch
