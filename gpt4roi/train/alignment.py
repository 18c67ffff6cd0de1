"""Alignment: contrastive pretraining of the region encoder against the language model's text embeddings.

Ours, not the original's. A region's embedding is drawn to the mean of the language model's own input embeddings of the
words that name it, each word weighted by its rarity, and away from the words of all other regions. A linear read-out
keeps the box readable from the same embedding. Seconds of this replace what a small language model cannot teach by its
loss alone. Where a region takes several tokens, each is drawn to one token of the words, in their order.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
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
from gpt4roi.models.region_texts import TEXT_TEMPERATURE, Judgement, directions, text_directions
from gpt4roi.models.vocabulary import embed_texts
from gpt4roi.processing.batch import RegionCollator
from gpt4roi.train.arguments import RegionArguments
from gpt4roi.train.saving import save_tensors

logger = logging.getLogger(__name__)


GATE_DECAY = 1e-3
"""Of the gate's weights, where all regions of one kind would make them infinite."""

SURE = 0.5
"""Probability from which a head that is right is left to speak."""


class RegionTexts:
    """The distinct texts that name regions, and their targets in the language model's embedding space.

    Args:
        texts: In a fixed order.
        targets: float[T, k * D], one row a text: k embeddings, centred and of unit length.
        centre: float[k, D] that was taken off; None for k = 1, where regions are centred among themselves.
    """

    def __init__(self, texts: list[str], targets: torch.Tensor, centre: torch.Tensor | None = None) -> None:
        self.texts, self.targets, self.centre = texts, targets, centre
        self.index = {text: number for number, text in enumerate(texts)}

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: Any, embeddings: torch.Tensor, count: int = 1) -> RegionTexts:
        """Makes the targets as vocabulary.embed_texts does.

        Args:
            texts: Those given twice count once.
            tokenizer: Of the language model.
            embeddings: float[V, D], its input embeddings.
            count: k, the tokens of a region.
        """
        distinct = sorted(set(texts))
        ids = [tokenizer(" " + text, add_special_tokens=False).input_ids for text in distinct]
        rows = embed_texts(ids, embeddings, count, tokenizer.eos_token_id)
        targets, centre = text_directions(rows)
        return cls(distinct, targets, centre if count > 1 else None)

    def save(self, path: Path) -> None:
        """Writes texts and targets to a safetensors file, atomically."""
        tensors = {"targets": self.targets.contiguous()} | ({} if self.centre is None else {"centre": self.centre})
        save_tensors(path, tensors, {"texts": json.dumps(self.texts)})

    @classmethod
    def load(cls, path: Path) -> RegionTexts:
        """Reads what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            # A copy lies at the allocator's alignment, as in the run that made the file: sums are bit-identical.
            tensors = [file.get_tensor(name).clone() for name in ("targets", "centre") if name in file.keys()]  # noqa: SIM118
            return cls(json.loads(file.metadata()["texts"]), *tensors)


def load_region_texts(path: Path, mixture: Mixture, tokenizer: Any, model: Any) -> RegionTexts:
    """Returns the texts that name regions of a mixture, with the targets that the run began with, from its file.

    Raises InputError where the data names fewer than two regions.
    """
    if path.is_file():
        return RegionTexts.load(path)
    texts = [text for index in range(len(mixture)) for text in mixture.region_texts(index).values()]
    texts += model.config.region_texts or []
    if len(set(texts)) < 2:
        raise InputError("--align_regions needs questions about one region each, with answers; the data sets have none")
    embeddings = model.get_input_embeddings().weight.detach().cpu()
    made = RegionTexts.of(texts, tokenizer, embeddings, model.config.tokens_per_region)
    made.save(path)
    return made


def alignment_loss(
    model: Any, texts: RegionTexts, tokenizer: Any, head_weight: float, outlier_weight: float = 0.0
) -> AlignmentLoss:
    """Makes the loss, and gives the texts to an encoder with a classifier head, which compares regions with them."""
    config = model.config
    if config.class_names is None:
        return AlignmentLoss(texts.targets, texts.centre)
    ids = [tokenizer(" " + text, add_special_tokens=False).input_ids for text in texts.texts]
    table = model.get_input_embeddings().weight.detach()
    before = {text: number for number, text in enumerate(config.region_texts or ())}
    known = torch.tensor([before.get(text, -1) for text in texts.texts])
    model.region_encoder.set_texts(embed_texts(ids, table, config.tokens_per_region, tokenizer.eos_token_id), known)
    config.region_texts = texts.texts
    class_texts = torch.tensor([texts.index.get(name, -1) for name in config.class_names])
    return AlignmentLoss(texts.targets, texts.centre, class_texts, head_weight, outlier_weight)


class AlignmentLoss(nn.Module):
    """Contrastive loss of region embeddings against the texts of their regions, and of the boxes read from them.

    With a classifier head, regions that it names right are left to it: they train only whom to trust.

    Args:
        targets: float[T, k * D] of RegionTexts.
        centre: Of RegionTexts.
        class_texts: int64[N], the text that each class of the head is called; -1 where it names no region.
        head_weight: How much more a region that the head names right counts in whom to trust.
        outlier_weight: Of drawing what such a region is compared with to all texts alike, so that the learned part is
            sure of nothing that it was not shown (outlier exposure, Hendrycks et al., 2019).
    """

    targets: torch.Tensor
    centre: torch.Tensor | None
    class_texts: torch.Tensor | None

    def __init__(
        self,
        targets: torch.Tensor,
        centre: torch.Tensor | None = None,
        class_texts: torch.Tensor | None = None,
        head_weight: float = 1.0,
        outlier_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("targets", targets, persistent=False)
        self.register_buffer("centre", centre, persistent=False)
        self.register_buffer("class_texts", class_texts, persistent=False)
        self.head_weight, self.outlier_weight = head_weight, outlier_weight
        self.count = 1 if centre is None else len(centre)
        self.read_box = nn.Linear(targets.shape[1] // self.count, 5)

    def forward(
        self, content: torch.Tensor, text_ids: torch.Tensor, judgement: Judgement | None = None
    ) -> torch.Tensor:
        """Returns cross-entropy over all texts plus one minus the cosine with the right one, a mean over tokens.

        A text's logit is the sum over tokens: most texts share most of them, and a mean could not tell them apart.

        Args:
            content: float[M * k, D], learned appearance embedding of each region.
            text_ids: int64[M], -1 where unknown.
            judgement: Where there is a head.
        """
        if judgement is not None:
            named = self.named(text_ids, judgement)
            contrastive = self(content, text_ids.masked_fill(named, -1))
            known = text_ids >= 0
            trust = self.trust_loss(judgement.trust[known], named[known])
            uniform = -judgement.of_texts[named].clamp(min=1e-12).log().mean(1).sum() / known.sum().clamp(min=1)
            return contrastive + trust + self.outlier_weight * uniform
        known = text_ids >= 0
        if known.sum() < 2:
            return content.sum() * 0
        cosine = self._directions(content, known) @ self.targets.T
        right = cosine.gather(1, text_ids[known][:, None]).squeeze(1)
        return F.cross_entropy(cosine / TEXT_TEMPERATURE, text_ids[known]) + (1 - right / self.count).mean()

    def trust_loss(self, trust: torch.Tensor, named: torch.Tensor) -> torch.Tensor:
        """Returns the binary cross-entropy of log-odds, float[M], that a region is none of those `named`, bool[M]."""
        weights = torch.where(named, self.head_weight, 1.0)
        entropy = F.binary_cross_entropy_with_logits(trust.float(), (~named).float(), weights, reduction="sum")
        return entropy / weights.sum().clamp(min=1)

    def named(self, text_ids: torch.Tensor, judgement: Judgement) -> torch.Tensor:
        """Tells which regions, bool[M], the head calls by their text, and is sure of it."""
        assert self.class_texts is not None
        highest, classes = judgement.of_classes.max(1)
        return (self.class_texts[classes] == text_ids) & (text_ids >= 0) & (highest >= SURE)

    def _directions(self, content: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Returns the known rows, float[M', k * D], as the targets are."""
        rows = content.unflatten(0, (-1, self.count))[known].flatten(0, 1)
        return directions(rows, self.count, self.centre)

    def box_error(self, embedding: torch.Tensor, boxes: list[torch.Tensor]) -> torch.Tensor:
        """Returns the mean square error of a linear read-out of (centre, size, square root of area), each in [-2, 2].

        Args:
            embedding: float[M * k, D], whose last token of each region is read.
            boxes: List of float[M_i, 4], xyxy in [0, 1].
        """
        embedding = embedding.unflatten(0, (-1, self.count))[:, -1]
        facts = center_size_features(torch.cat(boxes))
        scale = embedding.detach().float().pow(2).mean().sqrt().clamp(min=1e-6)
        return F.mse_loss(self.read_box(embedding.float() / scale), 4 * facts - 2)

    @torch.no_grad()
    def count_hits(self, content: torch.Tensor, text_ids: torch.Tensor, judgement: Judgement | None = None) -> int:
        """Counts the regions whose own text is the nearest of all, or the head's; arguments as of `forward`."""
        known = text_ids >= 0
        if not known.any():
            return 0
        hits = (self._directions(content, known) @ self.targets.T).argmax(1) == text_ids[known]
        if judgement is not None:
            hits |= self.named(text_ids, judgement)[known]
        return int(hits.sum())


def align_regions(
    model: Any,
    loss: AlignmentLoss,
    batches: Sequence[dict],
    epochs: int,
    learning_rate: float,
    generator: torch.Generator,
) -> dict[str, float]:
    """Trains the region encoder alone, where it and the loss lie, and returns the last epoch's loss and retrieval.

    Batches hold `feature_maps`, `boxes` (list of float[N_i, 4] in [0, 1]), `text_ids` int64[sum N_i] and for
    region_shape `mask` also `masks`; their order is drawn from the generator, and `learning_rate` is the peak of a
    one-cycle schedule.
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
                cells = encoder.mask_cells(boxes, batch.get("masks"), encoder.output_size)
                content, judgement = encoder.learned(encoder.pool(maps, boxes), cells)
                # In this order: the gradients of `content` are summed in the reverse order of its uses.
                embedding = content + encoder.position(boxes, cells)
                value = loss(content, text_ids, judgement) + loss.box_error(embedding, boxes)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
                schedule.step()
                total += value.item()
                hits += loss.count_hits(content, text_ids, judgement)
                seen += int((batch["text_ids"] >= 0).sum())
                bar.update()
            facts = {"loss": total / len(batches), "retrieval": hits / max(seen, 1)}
            bar.set_postfix(facts)
    logger.info("Alignment: loss %.3f, top-1 retrieval of the region's text %.3f", facts["loss"], facts["retrieval"])
    return facts


def fit_in_closed_form(encoder: Any, loss: AlignmentLoss, batches: Sequence[dict], device: torch.device) -> None:
    """Fits the encoder's `discriminant` to all regions that its head does not name, and then its gate to all.

    The gate sees disturbed regions, as the discriminant is surer of those that it was fitted to than of others.
    Batches are as of align_regions.
    """

    def regions(training: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, Judgement]]:
        for batch in batches:
            boxes, text_ids = [rows.to(device) for rows in batch["boxes"]], batch["text_ids"].to(device)
            pooled = encoder.pool([level.to(device, torch.float32) for level in batch["feature_maps"]], boxes)
            cells = encoder.mask_cells(boxes, batch.get("masks"), encoder.output_size)
            _, judgement = encoder.train(training).learned(pooled, cells)
            coarse = encoder.coarse(pooled if cells is None else pooled * cells)
            yield coarse, text_ids, loss.named(text_ids, judgement), judgement

    with torch.no_grad():
        seen = ((coarse, ids.masked_fill(named, -1)) for coarse, ids, named, _ in regions(training=False))
        encoder.discriminant.fit(seen, len(loss.targets))
        judged = [(judgement.facts[ids >= 0], named[ids >= 0]) for _, ids, named, judgement in regions(training=True)]
    facts, named = (torch.cat(rows) for rows in zip(*judged, strict=True))
    optimizer = torch.optim.LBFGS(encoder.gate.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss.trust_loss(encoder.gate(facts)[:, 0], named) + GATE_DECAY * encoder.gate.weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    logger.info(
        "Regions: the gate tells %.3f of them right", float(((encoder.gate(facts)[:, 0] < 0) == named).float().mean())
    )


def align_once(
    model: Any, loss: AlignmentLoss, dataset: EncodedDataset, options: RegionArguments, device: torch.device, seed: int
) -> None:
    """Aligns the region encoder in the first process, and broadcasts it to the others, bit-identical."""
    encoder = model.region_encoder
    with moved_to(device, encoder):
        with main_process_first("the regions are aligned with words") as first:
            if first:
                collate, size = RegionCollator(dataset.processor.tokenizer.pad_token_id), options.align_batch_size
                generator = torch.Generator().manual_seed(seed)
                order = list(range(len(dataset)))
                if loss.class_texts is not None:
                    # Whom to trust shows where a step holds both what the head names and what it does not.
                    order = torch.randperm(len(order), generator=generator).tolist()
                starts = range(0, len(order), size)
                batches = [collate([dataset[i] for i in order[start : start + size]]) for start in starts]
                batches = [batch for batch in batches if "feature_maps" in batch]
                epochs, rate = options.align_regions, options.align_learning_rate
                align_regions(model, loss.to(device), batches, epochs, rate, generator)
                if loss.class_texts is not None:
                    fit_in_closed_form(encoder, loss, batches, device)
        broadcast_parameters([*encoder.parameters(), *encoder.buffers()], device)
