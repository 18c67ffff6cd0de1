"""Times one optimiser step's forward and backward of both stages against the original's way of computing it.

    python benchmarks/train_step.py [--quick]

A model in the proportions of the released one at a sixteenth of its widths and vocabulary, with all its 32 layers, its
picture and its region encoder's rounds; random weights, float32. The original's way is written out here: a graph
over the whole sequence, logits for every position, micro-batches padded in the order they come, the region encoder's
plain formulation (tests/models/plain_region_encoder.py); with and without the checkpointing of the decoder's layers.
Ours runs what precedes the first region of stage 1 without a graph, makes logits where there is a label, and sorts the
samples of a step by length before it cuts them into micro-batches. Both divide the loss by the step's labels.
Stage 1: 4 samples of 330 to 430 tokens one by one. Stage 2: 8 samples of 330 to 1090 tokens in micro-batches of 2.
--quick takes 1 sample, and for stage 2 four and 8 layers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from common import Row, devices, difference, main, rows, time_in_turn
from transformers import CLIPVisionConfig, LlamaConfig

from gpt4roi.constants import IGNORE_INDEX
from gpt4roi.models import GPT4RoIConfig, GPT4RoIForConditionalGeneration
from gpt4roi.models.loss import cross_entropy
from gpt4roi.padding import pad_features
from gpt4roi.train.grouping import longest_first

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "models"))
from plain_region_encoder import plain_region_features

TOLERANCE, GRADIENT_TOLERANCE = 1e-6, 1e-4
WIDTH, VOCABULARY, BEFORE_PICTURE, BEFORE_REGION, ROUND = 256, 2000, 38, 16, 14


def build(layers: int, modules: tuple[str, ...]) -> GPT4RoIForConditionalGeneration:
    """Builds a model of random weights in which the named modules learn."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=12,
        num_attention_heads=4,
        image_size=224,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=688, num_hidden_layers=layers, num_attention_heads=4, vocab_size=VOCABULARY
    )
    ids = {"image_token_id": 1901, "region_token_id": 1902, "image_start_token_id": 1904, "image_end_token_id": 1905}
    model = GPT4RoIForConditionalGeneration(GPT4RoIConfig(vision, text, fusion_groups=8, **ids)).train()
    for name in ("region_encoder", "mm_projector", "language_model"):
        getattr(model, name).requires_grad_(name in modules)
    return model


def sample(config: GPT4RoIConfig, rounds: int, words: int, draw: torch.Generator) -> dict:
    """Makes a sample of a picture, `rounds` questions about a region each, and answers of `words` tokens."""
    text = partial(torch.randint, 3, 1900, generator=draw)
    start, patch_, end = config.image_start_token_id, config.image_token_id, config.image_end_token_id
    picture = [start, *[patch_] * config.image_seq_length, end]
    ids = [1, *text((BEFORE_PICTURE,)).tolist(), *picture, *text((BEFORE_REGION,)).tolist()]
    labels = [IGNORE_INDEX] * len(ids)
    for _ in range(rounds):
        question, answer = text((ROUND,)).tolist(), text((words,)).tolist()
        ids += [config.region_token_id, *question, *answer]
        labels += [IGNORE_INDEX] * (1 + ROUND) + answer
    corners = torch.rand(rounds, 2, 2, generator=draw)
    boxes = torch.cat([corners.min(1).values, corners.max(1).values], dim=1)
    pixels = torch.randn(3, 224, 224, generator=draw)
    tensors = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
    return {**tensors, "pixel_values": pixels, "boxes": boxes}


def micro_batches(samples: list[dict], size: int) -> list[dict]:
    """Pads the samples of a step, `size` at a time, in their order."""
    return [pad_features(samples[start : start + size], 0) for start in range(0, len(samples), size)]


def original_loss(model: GPT4RoIForConditionalGeneration, batch: dict, labels: int) -> torch.Tensor:
    """Computes a micro-batch's loss as the original does: all logits of the whole graph, then the mask."""
    plain = partial(plain_region_features, model.region_encoder)
    with patch.object(model.region_encoder, "forward", plain):
        embeds, _, _ = model.embed(batch["input_ids"], batch["pixel_values"], batch["boxes"])
    mask = batch["attention_mask"]
    logits = model.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits.float()
    targets = batch["labels"][:, 1:].flatten()
    kept = targets != IGNORE_INDEX
    return cross_entropy(logits[:, :-1].flatten(0, 1)[kept], targets[kept], labels)


def our_loss(model: GPT4RoIForConditionalGeneration, batch: dict, labels: int) -> torch.Tensor:
    """Computes a micro-batch's loss as our training does."""
    return model(**batch, logits_at_labels_only=True, num_items_in_batch=labels).loss


class Step:
    """One step in several ways, with the same weights and samples; keeps each way's loss and gradients."""

    def __init__(self, model: GPT4RoIForConditionalGeneration, samples: list[dict], size: int, device: str) -> None:
        self.model, self.size, self.device = model.to(device), size, device
        self.samples = [{name: tensor.to(device) for name, tensor in one.items()} for one in samples]
        self.labels = sum(int((one["labels"] != IGNORE_INDEX).sum()) for one in samples)
        self.results: dict[str, tuple[float, torch.Tensor]] = {}

    def run(self, way: str, loss_of: Callable, sort: bool, checkpointing: bool) -> None:
        """Back-propagates every micro-batch of the step."""
        model, samples = self.model, self.samples
        if checkpointing:
            model.activation_checkpointing_enable()
        else:
            model.activation_checkpointing_disable()
        if sort:
            order = longest_first(range(len(samples)), lambda index: len(self.samples[index]["input_ids"]))
            samples = [samples[index] for index in order]
        model.zero_grad(set_to_none=True)
        total = 0.0
        for batch in micro_batches(samples, self.size):
            loss = loss_of(model, batch, self.labels)
            loss.backward()
            total += loss.item()
        gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
        self.results[way] = total, torch.cat(gradients)

    def equality(self, reference: str) -> str:
        """Says how far all ways are from the reference; raises AssertionError where that is more than rounding."""
        loss, gradients = self.results[reference]
        losses = max(abs(other / loss - 1) for other, _ in self.results.values())
        off = max(difference(other, gradients) for _, other in self.results.values())
        assert losses < TOLERANCE and off < GRADIENT_TOLERANCE, f"losses differ by {losses}, gradients by {off}"
        return f"losses differ by {losses:.0e}, gradients by {off:.0e} of the largest"


def measure(quick: bool) -> Iterator[Row]:
    """Compares the steps of both stages on every device."""
    draw = torch.Generator().manual_seed(1)
    original = {"original's way": (original_loss, False, False)}
    checkpointed = {"original's way, checkpointed": (original_loss, False, True)}
    for device in devices():
        model = build(32, ("region_encoder",))
        samples = [sample(model.config, rounds, 4, draw) for rounds in ((2,) if quick else (2, 6, 1, 3))]
        ways = {**original, **checkpointed, "ours": (our_loss, True, False)}
        step = Step(model, samples, 1, device)
        yield from compare(step, f"stage 1, samples: {len(samples)}", ways, 1 if quick else 3, 2)

        model = build(8 if quick else 32, ("region_encoder", "mm_projector", "language_model"))
        kinds = [(1, 4), (12, 50), (3, 9), (2, 180), (1, 6), (6, 20), (1, 260), (2, 12)]
        samples = [sample(model.config, rounds, words, draw) for rounds, words in (kinds[:4] if quick else kinds)]
        ways = {**checkpointed, "ours, checkpointed": (our_loss, True, True), "ours": (our_loss, True, False)}
        step = Step(model, samples, 2, device)
        yield from compare(step, f"stage 2, samples of mixed length: {len(samples)}", ways, 1 if quick else 2, 1)


def compare(step: Step, title: str, ways: dict[str, tuple], repeats: int, alternatives: int) -> list[Row]:
    """Times the ways in turn; the first `alternatives` are not ours."""
    calls = {way: partial(step.run, way, *how) for way, how in ways.items()}
    spent = time_in_turn(calls, repeats, warm_ups=1, device=step.device)
    return rows(title, spent, step.equality(next(iter(ways))), device=step.device, alternatives=alternatives)


if __name__ == "__main__":
    main(measure, __doc__)
