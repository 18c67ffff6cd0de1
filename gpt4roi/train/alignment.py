"""Teaches the region encoder to speak the language model's words before any language model runs.

Ours, not the original's. A region's embedding is drawn to the mean of the language model's own input embeddings of the
words that name it, each word weighted by its rarity, and away from the words of all other regions. A linear read-out
keeps the box readable from the same embedding. Seconds of this replace what a small language model cannot teach by its
loss alone.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from gpt4roi.geometry.boxes import center_size_features
from gpt4roi.train.saving import save_tensors

logger = logging.getLogger(__name__)

TEMPERATURE = 0.07


class RegionTexts:
    """The distinct texts that name regions, and their targets in the language model's embedding space.

    texts: in a fixed order; targets: float[T, D], centred and of unit length, one row a text.
    """

    def __init__(self, texts: list[str], targets: torch.Tensor) -> None:
        self.texts, self.targets = texts, targets
        self.index = {text: number for number, text in enumerate(texts)}

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: Any, embeddings: torch.Tensor) -> RegionTexts:
        """Makes the targets: means of input embeddings, each token weighted by 1 / sqrt(document frequency).

        embeddings: float[V, D], the language model's input embeddings.
        """
        distinct = sorted(set(texts))
        ids = [tokenizer(" " + text, add_special_tokens=False).input_ids for text in distinct]
        frequency = Counter(token for of_text in ids for token in set(of_text))
        rows = []
        for of_text in ids:
            weights = torch.tensor([1 / math.sqrt(frequency[token]) for token in of_text])
            rows.append((weights[:, None] * embeddings[of_text].float()).sum(0) / weights.sum())
        means = torch.stack(rows)
        return cls(distinct, F.normalize(means - means.mean(0), dim=-1))

    def save(self, path: Path) -> None:
        """Writes texts and targets to a safetensors file, whole or not at all."""
        save_tensors(path, {"targets": self.targets.contiguous()}, {"texts": json.dumps(self.texts)})

    @classmethod
    def load(cls, path: Path) -> RegionTexts:
        """Reads what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            # A copy lies at the allocator's alignment, as in the run that made the file: sums are equal to the bit.
            return cls(json.loads(file.metadata()["texts"]), file.get_tensor("targets").clone())


class AlignmentLoss(nn.Module):
    """Scores region embeddings against the texts of their regions, and the boxes read from them.

    targets: float[T, D] of RegionTexts.
    """

    def __init__(self, targets: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("targets", targets, persistent=False)
        self.read_box = nn.Linear(targets.shape[1], 5)

    def forward(self, content: torch.Tensor, text_ids: torch.Tensor) -> torch.Tensor:
        """Returns cross-entropy over all texts plus one minus the cosine with the right one.

        content: float[M, D], what the encoder says of each region's looks; text_ids: int64[M], -1 where unknown.
        """
        known = text_ids >= 0
        if known.sum() < 2:
            return content.sum() * 0
        centred = F.normalize(content[known].float() - content[known].float().mean(0), dim=-1)
        cosine = centred @ self.targets.T
        right = cosine.gather(1, text_ids[known][:, None]).squeeze(1)
        return F.cross_entropy(cosine / TEMPERATURE, text_ids[known]) + (1 - right).mean()

    def box_error(self, embedding: torch.Tensor, boxes: list[torch.Tensor]) -> torch.Tensor:
        """Returns the mean square error of a linear read-out of (centre, size, square root of area), each in [-2, 2].

        embedding: float[M, D]; boxes: list of float[M_i, 4], xyxy in [0, 1].
        """
        facts = center_size_features(torch.cat(boxes))
        scale = embedding.detach().float().pow(2).mean().sqrt().clamp(min=1e-6)
        return F.mse_loss(self.read_box(embedding.float() / scale), 4 * facts - 2)


def align_regions(
    model: nn.Module,
    loss: AlignmentLoss,
    batches: Sequence[dict],
    epochs: int,
    learning_rate: float,
    generator: torch.Generator,
) -> dict[str, float]:
    """Trains the region encoder alone on `batches`, and returns the last epoch's mean loss and top-1 retrieval.

    batches: dicts with `feature_maps`, `boxes` (list of float[N_i, 4] in [0, 1]) and `text_ids` int64[sum N_i], which
    are taken to where the encoder is; loss: there already.
    """
    encoder = model.region_encoder
    device = next(encoder.parameters()).device
    parameters = [*encoder.parameters(), *loss.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * len(batches))
    encoder.train()
    facts = {}
    with tqdm(total=epochs * len(batches), desc="aligning regions", unit="step") as bar:
        for _ in range(epochs):
            total, right, seen = 0.0, 0, 0
            for number in torch.randperm(len(batches), generator=generator).tolist():
                batch = batches[number]
                maps = [level.to(device, torch.float32) for level in batch["feature_maps"]]
                boxes, text_ids = [rows.to(device) for rows in batch["boxes"]], batch["text_ids"].to(device)
                content = encoder.content(maps, boxes)
                whole = content + encoder.position(boxes)
                value = loss(content, text_ids) + loss.box_error(whole, boxes)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
                schedule.step()
                total += value.item()
                right += hits(loss, content, text_ids)
                seen += int((batch["text_ids"] >= 0).sum())
                bar.update()
            facts = {"loss": total / len(batches), "retrieval": right / max(seen, 1)}
            bar.set_postfix(facts)
    logger.info("Alignment: loss %.3f, top-1 retrieval of the region's text %.3f", facts["loss"], facts["retrieval"])
    return facts


@torch.no_grad()
def hits(loss: AlignmentLoss, content: torch.Tensor, text_ids: torch.Tensor) -> int:
    """Counts the regions whose own text is the nearest of all texts."""
    known = text_ids >= 0
    if not known.any():
        return 0
    centred = F.normalize(content[known].float() - content[known].float().mean(0), dim=-1)
    return int(((centred @ loss.targets.T).argmax(1) == text_ids[known]).sum())
