"""Times one optimiser step's forward and backward of both stages against the original's way of computing it.

    python benchmarks/train_step.py [--quick] [--stages 1 2] [--part 2]

Models in the proportions of the released one (vocabulary too) with random weights, float32. Stage 1: one sample of 350
tokens, half the widths (--part 2; 1 is the released model's own), 32 layers. Stage 2: 16 samples of 330 to 1090 tokens
in micro-batches of 2, a sixteenth of the widths, 8 layers. --quick: a sixteenth for both, and 4 samples in stage 2.
The original's way is written out here: a graph over the whole sequence, logits for every position, micro-batches
padded in the order they come, the region encoder's plain formulation (tests/models/plain_region_encoder.py); with and
without the checkpointing of the decoder's layers. Ours runs what precedes the first region of stage 1 without a graph,
makes logits where there is a label, and sorts the samples of a step by length before it cuts them into micro-batches.
Both divide the loss by the step's labels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from common import Row, argument_parser, devices, difference, positive, report, rows, time_in_turn
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedModel

from gpt4roi.constants import IGNORE_INDEX
from gpt4roi.models import GPT4RoIConfig, GPT4RoIForConditionalGeneration
from gpt4roi.models.loss import cross_entropy
from gpt4roi.processing.batch import pad_features
from gpt4roi.train.sampler import longest_first

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "models"))
from plain_region_encoder import plain_region_features

TOLERANCE, GRADIENT_TOLERANCE = 1e-6, 1e-3
BEFORE_IMAGE, BEFORE_REGION, ROUND = 38, 16, 14
"""Tokens before the image, between it and the first region, and of a question."""


def build(part: int, layers: int, modules: tuple[str, ...]) -> GPT4RoIForConditionalGeneration:
    """Builds a model of random weights, 1 / part as wide as the released one, in which the named modules learn.

    Where its decoder does not learn, all layers share the weights of one, which changes no time and saves memory.
    """
    shared = "language_model" not in modules
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=1024 // part,
        intermediate_size=4096 // part,
        num_hidden_layers=24,
        num_attention_heads=16 // part,
        image_size=224,
        patch_size=14,
    )
    tokens = 32000 // part
    text = LlamaConfig(
        hidden_size=4096 // part,
        intermediate_size=11008 // part,
        num_hidden_layers=1 if shared else layers,
        num_attention_heads=32 // part,
        vocab_size=tokens,
    )
    names = ("image_token_id", "region_token_id", "image_start_token_id", "image_end_token_id")
    ids = {name: tokens - 1 - number for number, name in enumerate(names)}
    config = GPT4RoIConfig(vision, text, fusion_groups=64 // part, **ids)
    model = GPT4RoIForConditionalGeneration(config)
    if shared:
        repeat_layer(model.language_model, layers)
    model.train()
    for name in ("region_encoder", "mm_projector", "language_model"):
        getattr(model, name).requires_grad_(name in modules)
    return model


def repeat_layer(language_model: PreTrainedModel, count: int) -> None:
    """Gives a decoder of one layer `count` layers with the weights of that one."""
    language_model.config.num_hidden_layers = count
    stack = language_model.model.layers
    first = dict(stack[0].named_parameters())
    for index in range(1, count):
        with torch.device("meta"):
            stack.append(type(stack[0])(language_model.config, index))
        for name, weight in first.items():
            module, _, last = name.rpartition(".")
            setattr(stack[index].get_submodule(module), last, weight)


def sample(config: GPT4RoIConfig, rounds: int, words: int, draw: torch.Generator) -> dict:
    """Makes a sample of an image, `rounds` questions about a region each, and answers of `words` tokens."""
    text = partial(torch.randint, 3, config.image_end_token_id, generator=draw)
    start, patch_, end = config.image_start_token_id, config.image_token_id, config.image_end_token_id
    image = [start, *[patch_] * config.image_seq_length, end]
    ids = [1, *text((BEFORE_IMAGE,)).tolist(), *image, *text((BEFORE_REGION,)).tolist()]
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
    plain = lambda levels, boxes, masks: plain_region_features(model.region_encoder, levels, boxes)  # noqa: E731
    with patch.object(model.region_encoder, "forward", plain):
        embeds, _, _ = model.embed(batch["input_ids"], batch["pixel_values"], batch["boxes"])
    mask = batch["attention_mask"]
    logits = model.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits.float()
    targets = batch["labels"][:, 1:].flatten()
    kept = targets != IGNORE_INDEX
    return cross_entropy(logits[:, :-1].flatten(0, 1)[kept], targets[kept], labels)


def our_loss(model: GPT4RoIForConditionalGeneration, batch: dict, labels: int) -> torch.Tensor:
    """Computes a micro-batch's loss as our training does."""
    return model(**batch, logits_at_targets_only=True, num_items_in_batch=labels).loss


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


def measure(quick: bool, stages: Sequence[int] = (1, 2), part: int = 2) -> Iterator[Row]:
    """Compares the steps of both stages on every device."""
    draw = torch.Generator().manual_seed(1)
    checkpointed = {"original's way, checkpointed": (original_loss, False, True)}
    for device in devices():
        if 1 in stages:
            model = build(16 if quick else part, 32, ("region_encoder",))
            step = Step(model, [sample(model.config, 2, 4, draw)], 1, device)
            ways = {"original's way": (original_loss, False, False), **checkpointed, "ours": (our_loss, True, False)}
            yield from compare(step, "stage 1", ways, 1, 2, warm_ups=1 if quick else 0)
        if 2 in stages:
            model = build(16, 8, ("region_encoder", "mm_projector", "language_model"))
            kinds = [(1, 4), (12, 50), (3, 9), (2, 180), (1, 6), (6, 20), (1, 260), (2, 12)]
            samples = [sample(model.config, *kind, draw) for kind in (kinds[:4] if quick else kinds * 2)]
            ways = {**checkpointed, "ours, checkpointed": (our_loss, True, True), "ours": (our_loss, True, False)}
            step = Step(model, samples, 2, device)
            yield from compare(step, f"stage 2, {len(samples)} samples of mixed length", ways, 1 if quick else 2, 1)


def compare(
    step: Step, title: str, ways: dict[str, tuple], repeats: int, alternatives: int, warm_ups: int = 1
) -> list[Row]:
    """Times the ways in turn; the first `alternatives` are not ours."""
    calls = {way: partial(step.run, way, *how) for way, how in ways.items()}
    spent = time_in_turn(calls, repeats, warm_ups, step.device)
    return rows(title, spent, step.equality(next(iter(ways))), device=step.device, alternatives=alternatives)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    parser.add_argument("--part", type=positive, default=2, help="stage 1: 1 / PART of the released widths (default 2)")
    args = parser.parse_args()
    report(measure(args.quick, args.stages, args.part), args)


if __name__ == "__main__":
    main()
