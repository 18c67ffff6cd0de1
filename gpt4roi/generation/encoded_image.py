"""What the model needs to know of an image, computed once and kept for every question about it."""

from __future__ import annotations

from typing import Any

import torch

from gpt4roi.models.compat import execution_device_and_dtype

REGIONS_AT_ONCE = 64
"""How many boxes are pooled together at most, which bounds the memory for an image with many."""

REGIONS_KEPT = 1024
"""How many embeddings are kept for later questions: more than one call may ask about (inputs.MAX_BOXES)."""


class EncodedImage:
    """The image tokens of an image, its pyramid, and the embeddings of the regions asked about last.

    image_features: float[P, D]. The pyramid is computed with the first box and replaces the tower's maps.
    """

    def __init__(self, model: Any, image_features: torch.Tensor, feature_maps: list[torch.Tensor]) -> None:
        self.model = model
        self.image_features = image_features
        self._feature_maps = feature_maps
        self._pyramid: list[torch.Tensor] | None = None
        self._regions: dict[tuple[float, ...], torch.Tensor] = {}

    @torch.inference_mode()
    def region_features(self, boxes: torch.Tensor) -> torch.Tensor:
        """Returns the embeddings float[M, D] of boxes float[M, 4], xyxy in [0, 1].

        Each box is computed once, unless REGIONS_KEPT others were asked about in between.
        """
        rows = [tuple(row) for row in boxes.tolist()]
        if not rows:
            return self.image_features.new_zeros(0, self.image_features.shape[-1])
        known = self._regions
        used = {row: known.get(row) for row in rows}
        new = [row for row, features in used.items() if features is None]
        for start in range(0, len(new), REGIONS_AT_ONCE):
            portion = new[start : start + REGIONS_AT_ONCE]
            wanted = torch.tensor(portion, dtype=torch.float32, device=self.image_features.device)
            features = self.model.region_encoder.embed_boxes(self._fused(), [wanted])
            # Copies, so that one that is kept does not hold the memory of all that were computed with it.
            used.update(zip(portion, (row.clone() for row in features), strict=True))
        latest = [*((row, features) for row, features in known.items() if row not in used), *used.items()]
        self._regions = dict(latest[-REGIONS_KEPT:])
        return torch.stack([used[row] for row in rows])

    def _fused(self) -> list[torch.Tensor]:
        if self._pyramid is None:
            device, _ = execution_device_and_dtype(self.model.region_encoder)
            self._pyramid = self.model.region_encoder.pyramid([level.to(device) for level in self._feature_maps])
            self._feature_maps = []
        return self._pyramid


@torch.inference_mode()
def encode_images(model: Any, pixel_values: torch.Tensor) -> list[EncodedImage]:
    """Looks at K images at once; pixel_values: float[K, 3, S, S]."""
    image_tokens, feature_maps = model.encode_image(pixel_values.to(model.device))
    features = model.mm_projector(image_tokens.to(*execution_device_and_dtype(model.mm_projector)))
    return [
        EncodedImage(model, features[row], [level[row : row + 1] for level in feature_maps])
        for row in range(len(pixel_values))
    ]
