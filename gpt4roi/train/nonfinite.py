"""What is looked at in every step, so that no training goes on after its numbers have lost their meaning."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import nn

from gpt4roi.errors import InputError

logger = logging.getLogger(__name__)

SOURCES_SHOWN = 16


class StepGuard:
    """Watches the losses and the gradients of a training.

    max_bad_steps: steps whose loss or gradients are not finite that are left out before the training stops.
    bad_steps: how many there were.
    """

    def __init__(self, max_bad_steps: int) -> None:
        self.max_bad_steps = max_bad_steps
        self.bad_steps = 0
        self.began = False
        self.sources: list[str] = []
        self.lost: list[str] = []

    def saw_loss(self, loss: float, supervised: int, sources: list[str], step: int, model: nn.Module) -> None:
        """Takes note of a batch, before the optimiser's step.

        loss: of the batch; supervised: its tokens that are learnt; sources: its samples.
        Raises InputError where the first loss of a run is not finite, or exactly 0 though there is something to learn.
        """
        self.sources += sources
        if not math.isfinite(loss):
            self.lost += sources
        if self.began or not supervised:
            return
        if not math.isfinite(loss):
            raise InputError(f"the first loss is {loss}{_where(step, sources)}; {_reason(model)}")
        if loss == 0:
            raise InputError(
                f"the first loss is exactly 0 on {supervised} supervised tokens{_where(step, sources)}; the model "
                "gives them all probability 1, or its output layer is not the one it was trained with: look at the "
                "sample in the log, and at --model_name_or_path"
            )

    def saw_gradients(self, norm: float, step: int) -> bool:
        """Takes note of a step's gradients and returns whether they may be used.

        norm: their norm over all processes. Raises InputError once more than max_bad_steps could not be used.
        """
        self.began = True
        sources, self.sources = self.sources, []
        lost, self.lost = self.lost, []
        if math.isfinite(norm):
            return True
        self.bad_steps += 1
        what = "loss is" if lost else "gradients are"
        logger.warning("Step %d is left out: its %s not finite%s", step + 1, what, _where(None, lost or sources))
        if self.bad_steps > self.max_bad_steps:
            raise InputError(
                f"loss or gradients were not finite in {self.bad_steps} steps, more than --max_bad_steps "
                f"{self.max_bad_steps}; the last time{_where(step, lost or sources)}; look at these samples, lower "
                "--learning_rate, or train in --bf16 instead of --fp16"
            )
        return False


def _where(step: int | None, sources: list[str]) -> str:
    more = len(sources) - SOURCES_SHOWN
    named = ", ".join(sources[:SOURCES_SHOWN]) + (f" and {more} more" if more > 0 else "")
    place = "" if step is None else f" in step {step + 1}"
    return f"{place} (samples {named})" if named else place


def _reason(model: nn.Module) -> str:
    """Says which weights are not finite, else what else it may be."""
    broken = [name for name, value in model.named_parameters() if not bool(torch.isfinite(value.detach()).all())]
    if broken:
        return f"{len(broken)} tensors of the model hold values that are not finite: {', '.join(broken[:4])}"
    return "all weights are finite, so the numbers overflow on the way: try --bf16 true or --fp16 false"


class GuardedSteps:
    """Gives a Trainer a StepGuard: a step whose loss or gradients are not finite changes no weight.

    Mixed into a trainer that has `guard` and calls `self.batch_is` with what its batch consists of.
    """

    guard: StepGuard
    _batch: tuple[int, list[str]] = (0, [])

    @property
    def bad_steps(self) -> int:
        """How many steps were left out."""
        return self.guard.bad_steps

    @bad_steps.setter
    def bad_steps(self, value: int) -> None:
        self.guard.bad_steps = value

    def batch_is(self, supervised: int, sources: list[str]) -> None:
        """Takes note of what the batch at hand consists of."""
        self._batch = supervised, sources

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Runs a batch forward and back, and shows its loss to the guard."""
        loss = super().training_step(model, *args, **kwargs)
        supervised, sources = self._batch
        self.guard.saw_loss(float(loss), supervised, sources, self.state.global_step, model)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Drops the gradients of a step that cannot be used, so that the optimiser finds none."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is None:
            return norm
        if self.accelerator.scaler is not None:
            # It leaves steps out by itself, also while it looks for its scale: only losses tell of a fault.
            self.guard.saw_gradients(math.nan if self.guard.lost else 0.0, self.state.global_step)
            return norm
        if not self.guard.saw_gradients(float(norm), self.state.global_step):
            if self.is_deepspeed_enabled:
                raise InputError(f"gradients are not finite in step {self.state.global_step + 1}, under DeepSpeed")
            model.zero_grad(set_to_none=True)
        return norm
