"""Language modelling loss: cross-entropy of the supervised next tokens."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from gpt4roi.constants import IGNORE_INDEX


def next_tokens(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns where the next token has a label, bool[B, T - 1], and those labels, int64[N] in batch order."""
    following = labels[:, 1:]
    supervised = following != IGNORE_INDEX
    return supervised, following[supervised]


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Returns the mean cross-entropy, in float32; of no target at all it is 0.

    Args:
        logits: float[N, V].
        targets: int64[N].
        num_items: Divide the sum by this instead of N (the targets of all micro-batches of a step).
    """
    total = F.cross_entropy(logits.float(), targets.to(logits.device), reduction="sum")
    if num_items is None:
        return total / max(len(targets), 1)
    if isinstance(num_items, torch.Tensor):
        return total / num_items.to(total.device).clamp(min=1)
    return total / max(num_items, 1)
