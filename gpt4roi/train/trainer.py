"""The HF Trainer with what is particular to regions: learning rates by module, the alignment loss, skipped samples."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather_object

from gpt4roi.data.base import exceeds_bad_fraction
from gpt4roi.errors import InputError
from gpt4roi.train.alignment import AlignmentLoss
from gpt4roi.train.nonfinite import GuardedSteps, StepGuard
from gpt4roi.train.resume import ResumableTrainer
from gpt4roi.train.sampler import StepSampler
from gpt4roi.train.throughput import Rates
from gpt4roi.train.trainable import parameter_groups

logger = logging.getLogger(__name__)

ENOUGH_SEEN = 100
"""Samples after which their share that cannot be used is judged."""
_FOR_THE_TRAINER = ("skipped", "sources", "n_dropped_turns", "n_tokens", "n_supervised", "text_ids")


class GPT4RoITrainer(GuardedSteps, ResumableTrainer):
    """Trains a GPT4RoI model on batches of RegionCollator.

    rates, decays: learning rates and weight decays of modules that differ from the rest.
    alignment, align_weight: the alignment loss that is kept during training, and its weight; None and 0 for none.
    max_bad_fraction: the training stops once more than this share of the samples could not be used, after ENOUGH_SEEN
    of them; a single one, in whatever epoch, never stops it. Several processes judge by the sums of all whenever a line
    is logged, so that they stop together.
    """

    kept_counts = ("seen", "skipped", "dropped_turns", "bad_steps")
    common_counts = ("bad_steps",)

    def __init__(
        self,
        *args: Any,
        rates: dict[str, float],
        decays: dict[str, float],
        alignment: AlignmentLoss | None = None,
        align_weight: float = 0.0,
        max_bad_fraction: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.rates, self.decays, self.align_weight = rates, decays, align_weight
        self.alignment = None if alignment is None else alignment.to(self.args.device)
        self.max_bad_fraction = max_bad_fraction
        self.seen = self.skipped = self.dropped_turns = 0
        self._reasons: list[str] = []
        self.guard = StepGuard(self.args.max_bad_steps)
        self.rates_seen = Rates(self.args.world_size)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Sorts the samples of a step by length where it consists of several batches of several samples."""
        several = 1 < self.args.train_batch_size < self.step_size
        if several and self.args.train_sampling_strategy == "random":
            self.step_sampler = StepSampler(self.train_dataset, self.step_size, self.args.data_seed)
            return self.step_sampler
        return super()._get_train_sampler(train_dataset)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Builds the optimiser with one group for each learning rate and weight decay."""
        if self.optimizer is None:
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            rate, decay = self.args.learning_rate, self.args.weight_decay
            groups = parameter_groups(self.model, rate, decay, self.rates, self.decays)
            self.optimizer = kind(groups, **arguments)
        return self.optimizer

    def _prepare_input(self, data: Any) -> Any:
        """Moves a batch to the device; boxes stay as they are where DeepSpeed's 16 bits would move their corners."""
        prepared = super()._prepare_input(data)
        if isinstance(data, Mapping) and "boxes" in data:
            prepared["boxes"] = [rows.to(self.args.device) for rows in data["boxes"]]
        return prepared

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns the language model's loss on the answers, plus the alignment loss where it is kept."""
        extra = {key: inputs.pop(key) for key in _FOR_THE_TRAINER if key in inputs}
        if model.training:
            self._count(extra)
            self.batch_is(extra["n_supervised"], extra["sources"])
            regions = sum(len(rows) for rows in inputs.get("boxes", ()))
            self.rates_seen.saw(extra["n_tokens"], regions)
            if getattr(self.train_dataset, "features", None) is not None:
                # Also of a batch without image, which shall not call the tower that no other process calls.
                inputs.setdefault("feature_maps", [])
        outputs = model(**inputs, logits_at_labels_only=True, num_items_in_batch=num_items_in_batch)
        loss = outputs.loss
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The sum was divided by the answers of all processes, whose gradients are then averaged.
            loss = loss * self.accelerator.num_processes
        if self.alignment is not None and self.align_weight and model.training and inputs.get("feature_maps"):
            encoder = self.accelerator.unwrap_model(model).region_encoder
            maps = [level.to(loss.dtype) for level in inputs["feature_maps"]]
            content = encoder.content(maps, inputs["boxes"])
            aligned = self.alignment(content, extra["text_ids"].to(content.device))
            loss = loss + self.align_weight * aligned / self.args.gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def _count(self, extra: dict[str, Any]) -> None:
        reasons = extra.get("skipped", [])
        for reason in reasons:
            logger.warning("Skipped a sample: %s", reason)
        dropped = extra.get("n_dropped_turns", [])  # one number for each sample used
        self.seen += len(dropped) + len(reasons)
        self.skipped += len(reasons)
        self.dropped_turns += int(sum(dropped))
        for reason in reasons:
            if reason not in self._reasons:
                self._reasons = [*self._reasons[:1], reason]
        if self.args.world_size == 1:
            self._judge(self.seen, self.skipped)

    def _judge(self, seen: int, skipped: int) -> None:
        """Raises InputError where too many samples were lost; several processes all ask, with the sums of all."""
        if seen < ENOUGH_SEEN or not exceeds_bad_fraction(skipped, seen, self.max_bad_fraction):
            return
        reasons = gather_object(self._reasons)
        # One sample that is skipped in every epoch is a single one still.
        if len(set(reasons)) > 1:
            raise InputError(
                f"{skipped} of {seen} samples could not be used, more than --max_bad_fraction "
                f"{self.max_bad_fraction}; one of the last: {reasons[-1]}"
            )

    def _counts_of_all(self) -> dict[str, int]:
        """Sums the counts over all processes, which must all ask at the same steps."""
        own = {name: getattr(self, name) for name in self.kept_counts if name not in self.common_counts}
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(torch.tensor(list(own.values()), device=self.args.device), "sum")
            own = dict(zip(own, sums.tolist(), strict=True))
        return own

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds rates, memory and time left, and the counts of skipped samples, dropped turns and bad steps, if any.

        All processes log at the same steps. Raises InputError, in all of them, where too many samples were lost.
        """
        counts = self._counts_of_all() | {"bad_steps": self.bad_steps}
        logs |= {name: count for name, count in counts.items() if count and name != "seen"}
        if "loss" in logs:
            logs |= self.rates_seen.line(self.state.global_step, self.state.max_steps)
        if self.bad_steps and logs.get("loss") == 0:
            # The Trainer counts a loss that is not finite as the mean of those since the last line, here of none.
            del logs["loss"]
        super().log(logs, *args, **kwargs)
        if self.args.world_size > 1:
            self._judge(counts["seen"], counts["skipped"])
