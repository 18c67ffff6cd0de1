"""Which parts of the model learn, and how fast each."""

from __future__ import annotations

from typing import Any

from torch import nn

from gpt4roi.errors import InputError

MODULES = ("region_encoder", "mm_projector", "language_model")
"""What can learn; the vision tower never does."""


def parse_modules(text: str) -> tuple[str, ...]:
    """Reads a comma-separated list of modules; raises InputError for a name that is not one of MODULES."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in MODULES]
    if unknown or not names:
        raise InputError(f"--trainable_modules: got {text!r}, expected some of {', '.join(MODULES)}")
    return names


def parse_rates(text: str | None) -> dict[str, float]:
    """Reads `region_encoder=5e-4,mm_projector=1e-4`; raises InputError where a part is not module=number."""
    rates = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, _, value = part.partition("=")
        try:
            rates[parse_modules(name)[0]] = float(value)
        except ValueError:
            raise InputError(f"--learning_rates: got {part!r}, expected module=number with one of {MODULES}") from None
    return rates


def set_trainable(model: nn.Module, modules: tuple[str, ...]) -> str:
    """Freezes all but the named modules and returns a table of parameter counts, one line a module."""
    lines = []
    for name in ("vision_tower", *MODULES):
        parameters = list(getattr(model, name).parameters())
        learns = name in modules
        for parameter in parameters:
            parameter.requires_grad_(learns)
        count = sum(parameter.numel() for parameter in parameters)
        lines.append(f"{name:16s} {count:14,d} parameters  {'learns' if learns else 'frozen'}")
    return "\n".join(lines)


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, rates: dict[str, float]
) -> list[dict[str, Any]]:
    """Returns one optimiser group for each learning rate; weight decay falls on every parameter, as in the original."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(rates.get(name.split(".")[0], learning_rate), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": weight_decay} for rate, params in groups.items()]
