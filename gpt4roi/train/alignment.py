"""Alignment: contrastive pretraining of the region encoder against the language model's text embeddings.

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

from gpt4roi.data.mixture import Mixture
from gpt4roi.data.training_dataset import EncodedDataset
from gpt4roi.devices import moved_to
from gpt4roi.distributed import broadcast_parameters, main_process_first
from gpt4roi.errors import InputError
from gpt4roi.geometry.boxes import center_size_features
from gpt4roi.processing.batch import RegionCollator
from gpt4roi.train.arguments import RegionArguments
from gpt4roi.train.saving import save_tensors

logger = logging.getLogger(__name__)

TEMPERATURE = 0.07


class RegionTexts:
    """The distinct texts that name regions, and their targets in the language model's embedding space.

    Args:
        texts: In a fixed order.
        targets: float[T, D], centred and of unit length, one row a text.
    """

    def __init__(self, texts: list[str], targets: torch.Tensor) -> None:
        self.texts, self.targets = texts, targets
        self.index = {text: number for number, text in enumerate(texts)}

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: Any, embeddings: torch.Tensor) -> RegionTexts:
        """Makes the targets: means of input embeddings, each token weighted by 1 / sqrt(document frequency).

        Args:
            texts: Those given twice count once.
            tokenizer: Of the language model.
            embeddings: float[V, D], its input embeddings.
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
        """Writes texts and targets to a safetensors file, atomically."""
        save_tensors(path, {"targets": self.targets.contiguous()}, {"texts": json.dumps(self.texts)})

    @classmethod
    def load(cls, path: Path) -> RegionTexts:
        """Reads what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            # A copy lies at the allocator's alignment, as in the run that made the file: sums are bit-identical.
            return cls(json.loads(file.metadata()["texts"]), file.get_tensor("targets").clone())


def load_region_texts(path: Path, mixture: Mixture, tokenizer: Any, model: Any) -> RegionTexts:
    """Returns the texts that name regions of a mixture, with the targets that the run began with, from its file.

    Raises InputError where the data names fewer than two regions.
    """
    if path.is_file():
        return RegionTexts.load(path)
    texts = [text for index in range(len(mixture)) for text in mixture.region_texts(index).values()]
    if len(set(texts)) < 2:
        raise InputError("--align_regions needs questions about one region each, with answers; the data sets have none")
    made = RegionTexts.of(texts, tokenizer, model.get_input_embeddings().weight.detach().cpu())
    made.save(path)
    return made


class AlignmentLoss(nn.Module):
    """Contrastive loss of region embeddings against the texts of their regions, and of the boxes read from them."""

    targets: torch.Tensor
    """float[T, D] of RegionTexts."""

    def __init__(self, targets: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("targets", targets, persistent=False)
        self.read_box = nn.Linear(targets.shape[1], 5)

    def forward(self, content: torch.Tensor, text_ids: torch.Tensor) -> torch.Tensor:
        """Returns cross-entropy over all texts plus one minus the cosine with the right one.

        Args:
            content: float[M, D], appearance embedding of each region.
            text_ids: int64[M], -1 where unknown.
        """
        known = text_ids >= 0
        if known.sum() < 2:
            return content.sum() * 0
        cosine = _centred(content, known) @ self.targets.T
        right = cosine.gather(1, text_ids[known][:, None]).squeeze(1)
        return F.cross_entropy(cosine / TEMPERATURE, text_ids[known]) + (1 - right).mean()

    def box_error(self, embedding: torch.Tensor, boxes: list[torch.Tensor]) -> torch.Tensor:
        """Returns the mean square error of a linear read-out of (centre, size, square root of area), each in [-2, 2].

        Args:
            embedding: float[M, D].
            boxes: List of float[M_i, 4], xyxy in [0, 1].
        """
        facts = center_size_features(torch.cat(boxes))
        scale = embedding.detach().float().pow(2).mean().sqrt().clamp(min=1e-6)
        return F.mse_loss(self.read_box(embedding.float() / scale), 4 * facts - 2)

    @torch.no_grad()
    def count_hits(self, content: torch.Tensor, text_ids: torch.Tensor) -> int:
        """Counts the regions whose own text is the nearest of all texts; arguments as of `forward`."""
        known = text_ids >= 0
        if not known.any():
            return 0
        return int(((_centred(content, known) @ self.targets.T).argmax(1) == text_ids[known]).sum())


def _centred(content: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    return F.normalize(content[known].float() - content[known].float().mean(0), dim=-1)


def align_regions(
    model: Any,
    loss: AlignmentLoss,
    batches: Sequence[dict],
    epochs: int,
    learning_rate: float,
    generator: torch.Generator,
) -> dict[str, float]:
    """Trains the region encoder alone, where it and the loss lie, and returns the last epoch's loss and retrieval.

    Batches hold `feature_maps`, `boxes` (list of float[N_i, 4] in [0, 1]) and `text_ids` int64[sum N_i]; their order is
    drawn from the generator, and `learning_rate` is the peak of a one-cycle schedule.
    """
    encoder = model.region_encoder
    device = next(encoder.parameters()).device
    parameters = [*encoder.parameters(), *loss.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * len(batches))
    encoder.train()
    facts: dict[str, float] = {}
    with tqdm(total=epochs * len(batches), desc="aligning regions", unit="step") as bar:
        for _ in range(epochs):
            total, hits, seen = 0.0, 0, 0
            for number in torch.randperm(len(batches), generator=generator).tolist():
                batch = batches[number]
                maps = [level.to(device, torch.float32) for level in batch["feature_maps"]]
                boxes, text_ids = [rows.to(device) for rows in batch["boxes"]], batch["text_ids"].to(device)
                content = encoder.content(maps, boxes)
                # In this order: the gradients of `content` are summed in the reverse order of its uses.
                embedding = content + encoder.position(boxes)
                value = loss(content, text_ids) + loss.box_error(embedding, boxes)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
                schedule.step()
                total += value.item()
                hits += loss.count_hits(content, text_ids)
                seen += int((batch["text_ids"] >= 0).sum())
                bar.update()
            facts = {"loss": total / len(batches), "retrieval": hits / max(seen, 1)}
            bar.set_postfix(facts)
    logger.info("Alignment: loss %.3f, top-1 retrieval of the region's text %.3f", facts["loss"], facts["retrieval"])
    return facts


def align_once(
    model: Any, loss: AlignmentLoss, dataset: EncodedDataset, options: RegionArguments, device: torch.device, seed: int
) -> None:
    """Aligns the region encoder in the first process, and broadcasts it to the others, bit-identical."""
    encoder = model.region_encoder
    with moved_to(device, encoder):
        with main_process_first("the regions are aligned with words") as first:
            if first:
                collate, size = RegionCollator(dataset.processor.tokenizer.pad_token_id), options.align_batch_size
                starts = range(0, len(dataset), size)
                batches = [collate([dataset[i] for i in range(s, min(s + size, len(dataset)))]) for s in starts]
                batches = [batch for batch in batches if "feature_maps" in batch]
                generator = torch.Generator().manual_seed(seed)
                epochs, rate = options.align_regions, options.align_learning_rate
                align_regions(model, loss.to(device), batches, epochs, rate, generator)
        broadcast_parameters([*encoder.parameters(), *encoder.buffers()], device)
