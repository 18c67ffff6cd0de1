"""Which text of the training a region is nearest to, and whether that or a tower's own classifier names it; ours.

near = cosine of the learned embedding with the text's + 2.8 cosine of the box's cells with the text's class mean
of_texts = softmax(near / 0.07);  of_classes = softmax(the classifier's logits / 0.5)
trust = gate(how high and how spread out either is): above 0 the text names the region, below the classifier
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

TEXT_TEMPERATURE = 0.07
"""Of the softmax over texts, in alignment too."""

DISCRIMINANT_WEIGHT = 2.8
"""Of the cosines of LinearDiscriminant beside those of the learned embedding."""

TRUST_SCALES = (0.4, 1.0, 1.0, 0.4, 0.4, 0.8)
"""What the gate reads is divided by these: the head's highest probability and entropy; the similarity of the nearest
text, its lead over the second, the highest probability of a text, and their entropy."""

SHRINKAGE = 0.3
"""How much of the mean variance is added to each channel's own, for classes of few regions."""


@dataclass(frozen=True)
class Judgement:
    """Whether what is learned of each box is to be trusted, or the head.

    Attributes:
        facts: float32[M, 6], what the gate reads, over TRUST_SCALES.
        trust: float32[M], the log-odds that the learned part knows better.
        of_texts: float32[M, T], probabilities of the texts of the training, by the learned part.
        of_classes: float32[M, N], probabilities of the head's classes.
    """

    facts: torch.Tensor
    trust: torch.Tensor
    of_texts: torch.Tensor
    of_classes: torch.Tensor


def directions(rows: torch.Tensor, count: int, centre: torch.Tensor | None = None) -> torch.Tensor:
    """Returns float32[M, k * D] of float[M * k, D]: each token centred (by default among all rows) and of unit length.

    Args:
        rows: Embeddings of regions.
        count: k.
        centre: float[k, D].
    """
    tokens = rows.unflatten(0, (-1, count)).float()
    return F.normalize(tokens - (tokens.mean(0) if centre is None else centre), dim=-1).flatten(1)


def text_directions(embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what `directions` are compared with, float[T, k * D] of float[T, k, D], and the centre float[k, D]."""
    centre = embeddings.mean(0)
    # What all texts have in common is rounding once the centre is off, and no direction.
    return F.normalize(embeddings - centre, dim=-1, eps=1e-4).flatten(1), centre


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    return -(probabilities * probabilities.clamp(min=1e-9).log()).sum(-1)


def judge(near: torch.Tensor, of_classes: torch.Tensor, gate: nn.Linear) -> Judgement:
    """Compares how near the nearest text is with how sure the head is.

    Args:
        near: float32[M, T], similarities with the texts of the training.
        of_classes: float32[M, N], the head's logits over its temperature.
        gate: From TRUST_SCALES to the log-odds.
    """
    of_texts, of_classes = (near / TEXT_TEMPERATURE).softmax(-1), of_classes.softmax(-1)
    with torch.no_grad():
        highest = near.topk(min(2, near.shape[1])).values
        first, second = highest[:, 0], highest[:, -1]  # of a single text the lead is 0
        facts = [of_classes.amax(1), _entropy(of_classes), first, first - second, of_texts.amax(1), _entropy(of_texts)]
        scaled = torch.stack(facts, dim=1) / torch.tensor(TRUST_SCALES, device=near.device)
    trust = F.linear(scaled, gate.weight.float(), gate.bias.float())[:, 0]
    return Judgement(scaled, trust, of_texts, of_classes)


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

    def keep(self, known: torch.Tensor) -> None:
        """Changes the classes to int64[C], each the number that it had before, or -1, which has no mean."""
        known = known.to(self.prototypes.device)
        kept = self.prototypes.new_zeros(len(known), self.prototypes.shape[1])
        kept[known >= 0] = self.prototypes[known[known >= 0]]
        self.prototypes = kept

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
