"""Comparison of two models on one question: its token ids, logits, region features, where they stop, and the answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt4roi.checkpoint.loading import load_model, load_processor
from gpt4roi.errors import InputError
from gpt4roi.structures import RegionSample, Turn

_SEED = 0
_SIDE = 96
_BOXES = ((10, 20, 60, 70), (50, 5, 92, 88))
_QUESTION = "Which is larger, <region1> or <region2>?"
_ANSWER_TOKENS = 16


@dataclass(frozen=True)
class Observation:
    """What a model makes of a fixed question about two boxes of a fixed image.

    Attributes:
        input_ids: What the processor encodes the question to.
        stops: Stop strings and ids of the processor, and the ids at which `generate` stops.
        logits: float[T, V].
        region_features: float[2, D].
        answer: Greedy, of a few tokens.
    """

    input_ids: list[int]
    stops: list[Any]
    logits: torch.Tensor
    region_features: torch.Tensor
    answer: str


@torch.inference_mode()
def observe(model: Any, processor: Any) -> Observation:
    """Asks a model, or a peft model, the fixed question."""
    pixels = np.random.default_rng(_SEED).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    sample = RegionSample(image=pixels, boxes_px=np.array(_BOXES), turns=(Turn("user", _QUESTION),))
    encoded = processor(sample, generation=True)
    inputs = {name: encoded[name] for name in encoded if name != "masks"}
    output = model.eval()(**inputs)
    regions = output.get("region_features")
    if regions is None:  # a pretrained base returns what its class returns
        of_image = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        regions = model.get_region_features(**of_image)
    settings = model.generation_config
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=_ANSWER_TOKENS)
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    return Observation(
        input_ids=encoded["input_ids"][0].tolist(),
        stops=[processor.stop_strings, processor.stop_token_ids, ends],
        logits=output.logits[0].float(),
        region_features=regions.float(),
        answer=processor.decode(tokens[0, encoded["input_ids"].shape[1] :]),
    )


def differences(first: Observation, second: Observation) -> dict[str, float]:
    """Returns the largest differences of logits and region features, relative to the largest magnitude in `first`.

    Raises:
        InputError: The question has other token ids, or the answer another end.
    """
    for name in ("input_ids", "stops"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            what = "encode a question to other token ids" if name == "input_ids" else "end an answer otherwise"
            raise InputError(f"the two models {what}: {_around(one, other)}; their processors differ")
    pairs = {
        "logits": (first.logits, second.logits),
        "region features": (first.region_features, second.region_features),
    }
    return {name: float((one - other).abs().max() / one.abs().max()) for name, (one, other) in pairs.items()}


def _around(one: list[Any], other: list[Any]) -> str:
    """Shows two lists from a little before the first place where they differ."""
    place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start, end = max(0, place - 2), place + 6
    return f"{one[start:end]} and {other[start:end]} from place {start} of {len(one)} and {len(other)}"


def compare_models(first: str | Path, second: str | Path, vision_tower: str | None = None) -> dict[str, float]:
    """Returns `differences` between two folders that hold the same model.

    Both run in float32 on the CPU, one after the other.

    Args:
        first: Folder or hub name.
        second: Folder or hub name.
        vision_tower: Folder or hub name of the tower, for a folder that was saved without it.

    Raises:
        InputError: They encode the question, stop or answer otherwise.
    """
    one, other = _open_and_observe(first, vision_tower), _open_and_observe(second, vision_tower)
    found = differences(one, other)
    if one.answer != other.answer:
        shown = ", ".join(f"{name} by {value:.2g}" for name, value in found.items())
        raise InputError(
            f"{second} answers {other.answer!r} where {first} answers {one.answer!r} ({shown} of the largest apart); "
            "they are not the same model"
        )
    return found


def _open_and_observe(folder: str | Path, vision_tower: str | None) -> Observation:
    processor = load_processor(folder, vision_tower=vision_tower)
    return observe(load_model(folder, dtype=torch.float32, vision_tower=vision_tower), processor)
