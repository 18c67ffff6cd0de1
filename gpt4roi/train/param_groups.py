"""Optimiser `param_groups`: which modules are trainable, at which learning rate and weight decay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from gpt4roi.errors import InputError

MODULES = ("region_encoder", "mm_projector", "language_model")
"""What can be trained; the vision tower never is."""
PARTS = ("vision_tower", *MODULES)


def parse_modules(text: str) -> tuple[str, ...]:
    """Parses a comma-separated list of modules, or parts of them by their path, as `region_encoder.place`.

    A `*` in a path stands for anything: `language_model.model.layers.*.self_attn`.

    Raises InputError for a name that neither is one of MODULES nor lies in one.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name.partition(".")[0] not in MODULES]
    if unknown or not names:
        raise InputError(f"--trainable_modules: got {text!r}, expected some of {', '.join(MODULES)}")
    return names


def parse_rates(text: str | None, flag: str = "--learning_rates") -> dict[str, float]:
    """Parses `region_encoder=5e-4,mm_projector=1e-4`; each module at most once, and no number below 0."""
    rates: dict[str, float] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, _, value = part.partition("=")
        name = name.strip()
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if name not in MODULES or not 0 <= number < math.inf or name in rates:
            raise InputError(f"{flag}: got {part!r}, expected module=number, once for each of {', '.join(MODULES)}")
        rates[name] = number
    return rates


OF_BASES = {
    "merger": "mm_projector",
    "deepstack_merger_list": "mm_projector",
    "visual": "vision_tower",
    "vision_model": "vision_tower",
    "text_model": "language_model",
    "lm_head": "language_model",
}
"""What families of vision-language models call their parts; a merger lies inside of a tower, and goes before it."""


def module_of(parameter: str) -> str:
    """Returns which of PARTS a parameter belongs to, by its full name, also inside a peft model.

    In a pretrained vision-language model, what is neither its tower nor its decoder is its projector.
    """
    path = parameter.split(".")
    own = next((part for part in path if part in PARTS), None)
    return own or next((OF_BASES[part] for part in OF_BASES if part in path), "mm_projector")


def set_trainable(model: nn.Module, modules: Sequence[str]) -> None:
    """Makes the named modules, or parts of them, trainable and freezes all others.

    Raises InputError for a part that the model does not have.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(module_of(name) in modules)
    for pattern in modules:
        if "." not in pattern:
            continue
        parts = [part for name, part in model.named_modules() if fnmatchcase(name, pattern)]
        if not parts:
            module = pattern.partition(".")[0]
            known = ", ".join(f"{module}.{name}" for name, _ in getattr(model, module).named_children())
            raise InputError(f"--trainable_modules: this model has no {pattern}; expected {module} or {known}")
        for part in parts:
            part.requires_grad_(True)


def param_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    rates: dict[str, float],
    decays: dict[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Returns one optimiser group for each pair of learning rate and weight decay of the trainable parameters.

    Weight decay falls on every parameter, as in the original. `rates` and `decays` are those of modules that differ.
    """
    decays = decays or {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            module = module_of(name)
            key = rates.get(module, learning_rate), decays.get(module, weight_decay)
            groups.setdefault(key, []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def trainable_table(
    model: nn.Module, learning_rate: float, weight_decay: float, rates: dict[str, float], decays: dict[str, float]
) -> str:
    """Formats one line a module: its parameters, the trainable ones, their learning rate and weight decay."""
    counts = {name: [0, 0] for name in PARTS}
    for name, parameter in model.named_parameters():
        count = counts.get(module_of(name))
        if count is not None:
            count[0] += parameter.numel()
            count[1] += parameter.numel() if parameter.requires_grad else 0
    lines = [f"{'module':16s} {'parameters':>16s} {'trainable':>16s}  rate, weight decay"]
    for name, (total, trained) in counts.items():
        how = f"{rates.get(name, learning_rate):g}, {decays.get(name, weight_decay):g}" if trained else "frozen"
        lines.append(f"{name:16s} {total:16,d} {trained:16,d}  {how}")
    return "\n".join(lines)
