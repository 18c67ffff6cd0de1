"""LinearDiscriminant: the class mean that a region's features are nearest to, fitted in closed form; ours."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

SHRINKAGE = 0.3
"""How much of the mean variance is added to each channel's own, for classes of few regions."""


class LinearDiscriminant(nn.Module):
    """Cosines of features with class means, after whitening by what varies within classes (Fisher, 1936).

    Some ten regions a class are enough for it, where gradients overfit; nothing of it is trained.

    Args:
        channels: F of the features.
        classes: C; none has a mean, and all cosines are 0, before `fit`.
    """

    mean: torch.Tensor
    whitening: torch.Tensor
    """float[F, F]."""
    prototypes: torch.Tensor
    """float[C, F], whitened means of unit length; 0 where a class had no features."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("whitening", torch.eye(channels))
        self.register_buffer("prototypes", torch.zeros(classes, channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns cosines, float32[M, C], of float[M, F]."""
        if not self.prototypes.any():
            return features.new_zeros(len(features), len(self.prototypes))
        with torch.autocast(features.device.type, enabled=False):
            whitened = (features.float() - self.mean.float()) @ self.whitening.float()
            return F.normalize(whitened, dim=1) @ self.prototypes.float().T

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], classes: int) -> None:
        """Measures means and what varies within classes; batches: float[N, F], int64[N], which is -1 where unknown."""
        channels, device = len(self.mean), self.mean.device
        sums = torch.zeros(classes, channels, dtype=torch.float64, device=device)
        counts, products = sums.new_zeros(classes), sums.new_zeros(channels, channels)
        for features, of_class in batches:
            rows, known = features[of_class >= 0].double(), of_class[of_class >= 0]
            sums.index_add_(0, known, rows)
            counts += torch.bincount(known, minlength=classes)
            products += rows.T @ rows
        total = counts.sum().clamp(min=1)
        mean, of_classes = sums.sum(0) / total, sums / counts.clamp(min=1)[:, None]
        std = (products.diagonal() / total - mean.square()).clamp(min=1e-10).sqrt()
        within = (products - of_classes.T @ sums) / total / std / std[:, None]
        within += SHRINKAGE * within.diagonal().mean().clamp(min=1e-6) * torch.eye(channels, device=device)
        inverse = torch.linalg.inv(torch.linalg.cholesky(within)) / std
        self.mean.copy_(mean)
        self.whitening.copy_(inverse.T)
        seen = (counts > 0)[:, None]
        self.prototypes = F.normalize(seen * ((of_classes - mean) @ inverse.T), dim=1).to(self.prototypes)
