"""What the model needs to know of a picture, computed once and kept for every question about it."""

from __future__ import annotations

from typing import Any

import torch


class EncodedPicture:
    """The image tokens of a picture, its feature maps, and the embeddings of the regions asked about so far.

    image_features: float[P, D]. feature_maps: list of float[1, C_l, H_l, W_l].
    """

    def __init__(self, model: Any, image_features: torch.Tensor, feature_maps: list[torch.Tensor]) -> None:
        self.model = model
        self.image_features = image_features
        self.feature_maps = feature_maps
        self._regions: dict[tuple[float, ...], torch.Tensor] = {}

    @torch.inference_mode()
    def region_features(self, boxes: torch.Tensor) -> torch.Tensor:
        """Returns the embeddings float[M, D] of boxes float[M, 4], xyxy in [0, 1]; each box is computed once."""
        rows = [tuple(row) for row in boxes.tolist()]
        new = list(dict.fromkeys(row for row in rows if row not in self._regions))
        if new:
            wanted = torch.tensor(new, dtype=torch.float32, device=self.model.device)
            features = self.model.region_encoder(self.feature_maps, [wanted])
            self._regions.update(zip(new, features, strict=True))
        if not rows:
            return self.image_features.new_zeros(0, self.image_features.shape[-1])
        return torch.stack([self._regions[row] for row in rows])


@torch.inference_mode()
def encode_pictures(model: Any, pixel_values: torch.Tensor) -> list[EncodedPicture]:
    """Looks at K pictures at once; pixel_values: float[K, 3, S, S]."""
    image_tokens, feature_maps = model.encode_picture(pixel_values.to(model.device))
    weight = next(model.mm_projector.parameters())
    features = model.mm_projector(image_tokens.to(weight.device, weight.dtype))
    return [
        EncodedPicture(model, features[row], [level[row : row + 1] for level in feature_maps])
        for row in range(len(pixel_values))
    ]
