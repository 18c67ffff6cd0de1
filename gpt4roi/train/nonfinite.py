"""NaN and inf guard: stops training on non-finite loss or gradients, and skips single steps of them."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from gpt4roi.errors import InputError

logger = logging.getLogger(__name__)

SOURCES_SHOWN = 16


class NonFiniteGuard:
    """Checks losses and gradients; the training stops after more than `max_bad_steps` steps of non-finite ones."""

    def __init__(self, max_bad_steps: int) -> None:
        self.max_bad_steps = max_bad_steps
        self.bad_steps = 0
        self.began = False
        self.sources: list[str] = []
        self.bad_sources: list[str] = []

    def check_loss(self, loss: float, supervised: int, sources: list[str], step: int, model: nn.Module) -> None:
        """Records a batch, its supervised tokens and the sources of its samples, before the optimiser's step.

        Raises InputError where the first loss of a run is not finite, or exactly 0 though tokens are supervised.
        """
        self.sources += sources
        if not math.isfinite(loss):
            self.bad_sources += sources
        if self.began or not supervised:
            return
        if not math.isfinite(loss):
            raise InputError(f"the first loss is {loss}{_where(step, sources)}; {_reason(model)}")
        if loss == 0:
            raise InputError(
                f"the first loss is exactly 0 on {supervised} supervised tokens{_where(step, sources)}; the model "
                "gives them all probability 1, or its output layer is not the one it was trained with: check the "
                "sample in the log, and --model_name_or_path"
            )

    def check_gradients(self, norm: float, step: int) -> bool:
        """Records a step's gradient norm over all processes, and returns whether the gradients may be used.

        Raises InputError once more than max_bad_steps could not be used.
        """
        self.began = True
        sources, self.sources = self.sources, []
        bad, self.bad_sources = self.bad_sources, []
        if math.isfinite(norm):
            return True
        self.bad_steps += 1
        what = "loss is" if bad else "gradients are"
        logger.warning("Step %d is skipped: its %s not finite%s", step + 1, what, _where(None, bad or sources))
        if self.bad_steps > self.max_bad_steps:
            raise InputError(
                f"loss or gradients were not finite in {self.bad_steps} steps, more than --max_bad_steps "
                f"{self.max_bad_steps}; the last time{_where(step, bad or sources)}; check these samples, lower "
                "--learning_rate, or train in --bf16 instead of --fp16"
            )
        return False


def _where(step: int | None, sources: list[str]) -> str:
    more = len(sources) - SOURCES_SHOWN
    named = ", ".join(sources[:SOURCES_SHOWN]) + (f" and {more} more" if more > 0 else "")
    where = "" if step is None else f" in step {step + 1}"
    return f"{where} (samples {named})" if named else where


def _reason(model: nn.Module) -> str:
    """Says which weights are not finite, else what else it may be."""
    broken = [name for name, value in model.named_parameters() if not bool(torch.isfinite(value.detach()).all())]
    if broken:
        return f"{len(broken)} tensors of the model hold values that are not finite: {', '.join(broken[:4])}"
    return "all weights are finite, so the numbers overflow on the way: try --bf16 true or --fp16 false"


class NonFiniteGuardMixin(Trainer):
    """Trainer whose weights a step with non-finite loss or gradients does not change.

    A subclass sets `guard`, and calls `set_batch_info` with what its batch consists of.
    """

    guard: NonFiniteGuard
    _batch: tuple[int, list[str]] = (0, [])

    @property
    def bad_steps(self) -> int:
        """How many steps were skipped."""
        return self.guard.bad_steps

    @bad_steps.setter
    def bad_steps(self, value: int) -> None:
        self.guard.bad_steps = value

    def set_batch_info(self, supervised: int, sources: list[str]) -> None:
        """Records how many supervised tokens and which samples the current batch consists of."""
        self._batch = supervised, sources

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Runs a batch forward and back, and checks its loss."""
        loss = super().training_step(model, *args, **kwargs)
        supervised, sources = self._batch
        self.guard.check_loss(float(loss), supervised, sources, self.state.global_step, model)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Drops the gradients of a step that cannot be used, so that the optimiser finds none."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is None:
            return norm
        if self.accelerator.scaler is not None:
            # It skips steps by itself, also while it looks for its scale: only losses tell of a fault.
            self.guard.check_gradients(math.nan if self.guard.bad_sources else 0.0, self.state.global_step)
            return norm
        if not self.guard.check_gradients(float(norm), self.state.global_step):
            if self.is_deepspeed_enabled:
                raise InputError(f"gradients are not finite in step {self.state.global_step + 1}, under DeepSpeed")
            model.zero_grad(set_to_none=True)
        return norm
