"""GPT4RoITrainer: the HF Trainer with param groups by module, the alignment loss, skipped samples and throughput."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather_object

from gpt4roi.data.base import exceeds_bad_fraction, joint_loss
from gpt4roi.errors import InputError
from gpt4roi.train.alignment import AlignmentLoss
from gpt4roi.train.arguments import TrainingArguments
from gpt4roi.train.nonfinite import NonFiniteGuard, NonFiniteGuardMixin
from gpt4roi.train.param_groups import param_groups
from gpt4roi.train.resume import ResumableTrainer, describe_data
from gpt4roi.train.sampler import StepSampler
from gpt4roi.train.throughput import ThroughputMeter

logger = logging.getLogger(__name__)

ENOUGH_SEEN = 100
"""Samples after which the fraction that cannot be used is judged."""
_BATCH_INFO = ("skipped", "sources", "n_dropped_rounds", "n_tokens", "n_supervised", "text_ids")
"""What a batch holds for the trainer, not for the model."""


class GPT4RoITrainer(NonFiniteGuardMixin, ResumableTrainer):
    """Trains a GPT4RoI model on batches of RegionCollator.

    Args:
        args: The training arguments.
        rates: Learning rates of modules that differ from the rest.
        decays: Weight decays of modules that differ from the rest.
        alignment: The alignment loss during training, None for none.
        align_weight: Its weight.
        max_bad_fraction: The training stops once more than this fraction of the data could not be used (samples that
            are skipped and annotations that are left out, as the data check counts them), after ENOUGH_SEEN samples;
            one bad sample never aborts the run, in however many epochs. Several processes judge by the sums of all
            whenever a line is logged, so that they stop together.
        faults: How many annotations are left out because they are wrong, and of how many.
        kwargs: As of the HF Trainer, with an EncodedDataset as `train_dataset`.
    """

    saved_counts = ("seen", "skipped", "dropped_turns", "bad_steps")
    common_counts = ("bad_steps",)

    def __init__(
        self,
        args: TrainingArguments,
        *,
        rates: dict[str, float],
        decays: dict[str, float],
        alignment: AlignmentLoss | None = None,
        align_weight: float = 0.0,
        max_bad_fraction: float = 0.01,
        faults: tuple[int, int] = (0, 1),
        **kwargs: Any,
    ) -> None:
        super().__init__(args=args, **kwargs)
        self.rates, self.decays, self.align_weight = rates, decays, align_weight
        self.alignment = None if alignment is None else alignment.to(self.args.device)
        self.max_bad_fraction, self.faults = max_bad_fraction, faults
        self.seen = self.skipped = self.dropped_turns = 0
        self._reasons: list[str] = []
        self.guard = NonFiniteGuard(args.max_bad_steps)
        self.throughput = ThroughputMeter(self.args.world_size)
        self.data = describe_data(kwargs["train_dataset"])

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Sorts the samples of a step by length where it consists of several batches of several samples."""
        several = 1 < self.args.train_batch_size < self.step_size
        if several and self.args.train_sampling_strategy == "random":
            dataset: Any = self.train_dataset
            self.step_sampler = StepSampler(dataset, self.step_size, self.args.data_seed)
            return self.step_sampler
        return super()._get_train_sampler(train_dataset)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Builds the optimiser with one group for each learning rate and weight decay."""
        if self.optimizer is None:
            trained: Any = self.model
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args, trained)
            rate, decay = self.args.learning_rate, self.args.weight_decay
            self.optimizer = kind(param_groups(trained, rate, decay, self.rates, self.decays), **arguments)
        return self.optimizer

    def _prepare_input(self, data: Any) -> Any:
        """Moves a batch to the device; boxes keep their dtype where DeepSpeed's 16 bits would move their corners."""
        prepared: Any = super()._prepare_input(data)
        for name in ("boxes", "view_frames") if isinstance(data, Mapping) else ():
            if name in data:
                prepared[name] = [rows.to(self.args.device) for rows in data[name]]
        return prepared

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns the language model's loss on the answers, plus the weighted alignment loss where there is one."""
        info = {key: inputs.pop(key) for key in _BATCH_INFO if key in inputs}
        if model.training:
            self._record_batch(info, sum(len(rows) for rows in inputs.get("boxes", ())))
            if getattr(self.train_dataset, "features", None) is not None:
                # Also for a batch without image, which shall not call the tower that no other process calls.
                inputs.setdefault("feature_maps", [])
        outputs = model(**inputs, logits_at_targets_only=True, num_items_in_batch=num_items_in_batch)
        loss = outputs.loss
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The sum was divided by the answers of all processes, whose gradients are then averaged.
            loss = loss * self.accelerator.num_processes
        if self.alignment is not None and self.align_weight and model.training and inputs.get("feature_maps"):
            encoder = self.accelerator.unwrap_model(model).region_encoder
            maps = [level.to(loss.dtype) for level in inputs["feature_maps"]]
            boxes = inputs["boxes"]
            cells = encoder.mask_cells(boxes, inputs.get("masks"), encoder.output_size)
            content, judgement = encoder.learned(encoder.pool(maps, boxes), cells)
            aligned = self.alignment(content, info["text_ids"].to(content.device), judgement)
            loss = loss + self.align_weight * aligned / self.args.gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def _record_batch(self, info: dict[str, Any], regions: int) -> None:
        """Counts a batch's tokens and regions, and its samples, skipped samples and dropped turns."""
        self.set_batch_info(info["n_supervised"], info["sources"])
        self.throughput.update(info["n_tokens"], regions)
        reasons = info.get("skipped", [])
        dropped = info.get("n_dropped_rounds", [])  # one number for each sample used
        self.seen += len(dropped) + len(reasons)
        self.skipped += len(reasons)
        self.dropped_turns += int(sum(dropped))
        for reason in reasons:
            logger.warning("Skipped a sample: %s", reason)
            if reason not in self._reasons:
                self._reasons = [*self._reasons[:1], reason]
        if self.args.world_size == 1:
            self._check_bad_fraction(self.seen, self.skipped)

    def _check_bad_fraction(self, seen: int, skipped: int) -> None:
        """Raises InputError where too many samples were skipped; all processes must call it, with the sums of all."""
        faults, annotations = self.faults
        bad = joint_loss(faults, annotations, skipped, seen)
        if not skipped or seen < ENOUGH_SEEN or not exceeds_bad_fraction(*bad, self.max_bad_fraction):
            return
        reasons = gather_object(self._reasons)
        # One sample that is skipped in every epoch is a single one still.
        if faults + len(set(reasons)) > 1:
            left_out = f" and {faults} of {annotations} annotations" if faults else ""
            raise InputError(
                f"{skipped} of {seen} samples{left_out} could not be used, more than --max_bad_fraction "
                f"{self.max_bad_fraction}; one of the last: {reasons[-1]}"
            )

    def _sum_counts(self) -> dict[str, int]:
        """Sums the counts over all processes, which must all call it at the same steps."""
        own = {name: getattr(self, name) for name in self.saved_counts if name not in self.common_counts}
        if self.args.world_size > 1:
            sums: Any = self.accelerator.reduce(torch.tensor(list(own.values()), device=self.args.device), "sum")
            own = dict(zip(own, sums.tolist(), strict=True))
        return own

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds throughput, memory, ETA, and the counts of skipped samples, dropped turns and bad steps, if any.

        All processes log at the same steps. Raises InputError, in all of them, where too many samples were skipped.
        """
        counts = self._sum_counts() | {"bad_steps": self.bad_steps}
        logs |= {name: count for name, count in counts.items() if count and name != "seen"}
        if "loss" in logs:
            logs |= self.throughput.metrics(self.state.global_step, self.state.max_steps)
        if self.bad_steps and logs.get("loss") == 0:
            # The Trainer counts a loss that is not finite as the mean of those since the last line, here of none.
            del logs["loss"]
        super().log(logs, *args, **kwargs)
        if self.args.world_size > 1:
            self._check_bad_fraction(counts["seen"], counts["skipped"])
