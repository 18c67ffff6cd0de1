"""Bit-identical resume: a Trainer with atomic checkpoints, the state of every process and the position in the data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Trainer

from gpt4roi.checkpoint.lora import record_base
from gpt4roi.data.training_dataset import EncodedDataset
from gpt4roi.errors import InputError
from gpt4roi.io.model_folders import ADAPTER_CONFIG, REGIONS_ON_BASE, identify
from gpt4roi.models.model_card import write_model_card
from gpt4roi.models.vlm_base import open_regions_vlm
from gpt4roi.train import saving
from gpt4roi.train.sampler import StepSampler

POSITION = "position.json"
SAMPLES_COMPARED = 16


@torch.no_grad()
def realign(model: nn.Module) -> None:
    """Moves every CPU tensor of a model to memory of its own, at the allocator's alignment.

    Tensors of a safetensors file lie wherever they stand in the file. The CPU's matrix kernels sum in another order
    where a row does not begin at a multiple of the vector's width, so that a model opened from a checkpoint would
    differ in the last bit from the one that wrote it.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)


def describe_data(dataset: EncodedDataset) -> dict[str, Any]:
    """Returns the number of samples of a data set, and a digest of some of them, drawn alike in every run."""
    digest = hashlib.sha256()
    for index in np.linspace(0, len(dataset) - 1, min(SAMPLES_COMPARED, len(dataset))).astype(int).tolist():
        try:
            sample = dataset.mixture.sample(index, np.random.default_rng([dataset.seed, index]))
        except InputError:  # training skips it
            digest.update(b"unusable")
            continue
        words = [f"{turn.role}: {turn.text}" for turn in sample.turns]
        digest.update(json.dumps([words, sample.boxes_px.round(3).tolist()]).encode())
    return {"samples": len(dataset), "digest": digest.hexdigest()[:16]}


def check_position(checkpoint: Path, data: dict[str, Any], step_size: int) -> None:
    """Raises InputError where the data (of `describe_data`) or the samples in a step are not those of a checkpoint."""
    path = checkpoint / POSITION
    if not path.is_file():
        return
    then = json.loads(path.read_text())
    for name, now in (data | {"step_size": step_size}).items():
        if then.get(name) != now:
            what = {"samples": "the number of samples", "digest": "the samples", "step_size": "the samples in a step"}
            raise InputError(
                f"{checkpoint}: {what[name]} changed since it was written ({then.get(name)} then, {now} now), so the "
                "run cannot be resumed with the right samples; restore the data, or begin a run in another folder"
            )


class ResumableTrainer(Trainer):
    """HF Trainer with atomic checkpoints that hold all that a bit-identical resume needs.

    The position in the data is the step: samples are drawn by seed, epoch and index, so nothing is read to get there.

    Attributes:
        saved_counts: Names of this trainer's counters that a resumed run continues.
        common_counts: Those among them that every process counts alike.
        data: As of `describe_data`.
        step_sampler: The sampler of the training data, where it sorts them.
    """

    saved_counts: tuple[str, ...] = ()
    common_counts: tuple[str, ...] = ()
    data: dict[str, Any]
    step_sampler: StepSampler | None = None
    _staging: Path | None = None
    _restored: dict[str, Any] | None = None

    @property
    def step_size(self) -> int:
        """Samples in a step over all processes."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    @property
    def work_dir(self) -> Path:
        """The folder that checkpoints and the model are written to."""
        return Path(str(self.args.output_dir))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes a checkpoint beside its path, then renames it; raises InputError where the disk is full."""
        folder, name = self.work_dir, f"{saving.PREFIX}{self.state.global_step}"
        staging = folder / f"{saving.PARTIAL}{name}"
        with saving.disk_full_message(f"checkpoint {self.state.global_step}", folder, staging):
            if self.args.should_save:
                staging.mkdir(parents=True, exist_ok=True)
            self.accelerator.wait_for_everyone()
            self._staging = staging
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            self._save_own_state(staging / name)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._name_best(staging / name)
                saving.publish(staging / name, folder / name)
                staging.rmdir()
                saving.rotate_checkpoints(folder, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Writes the model; beside adapters also which model they belong to, and a card in place of peft's."""
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.work_dir)
        if (folder / ADAPTER_CONFIG).is_file():
            adapted: Any = self.accelerator.unwrap_model(self.model)
            record_base(folder, adapted.active_peft_config.base_model_name_or_path)
            write_model_card(folder, adapted.config.to_dict(), "adapter")

    def _load_best_model(self) -> None:
        if not self._load_base(str(self.state.best_model_checkpoint)):
            super()._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._load_base(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_base(self, folder: str) -> bool:
        """Loads a pretrained base and its region encoder from a checkpoint; returns False where it holds no such.

        A base's tensors have other names in its files than in the model, by which the Trainer would find none of them.
        """
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if sharded or identify(folder).kind != REGIONS_ON_BASE:
            return False
        self.accelerator.unwrap_model(self.model).load_state_dict(open_regions_vlm(folder).state_dict())
        return True

    def save_final_model(self) -> None:
        """Writes the trained model, unsharded, into the work directory, every file by a rename."""
        if self.is_fsdp_enabled:  # checkpoints may be sharded, the trained model never is
            self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        staging = self.work_dir / f"{saving.PARTIAL}model"
        with saving.disk_full_message("the trained model", self.work_dir, staging):
            self.save_model(str(staging))
            if self.args.should_save:
                saving.publish_files(staging, self.work_dir)
        self.accelerator.wait_for_everyone()

    def _name_best(self, staged: Path) -> None:
        """Names the best checkpoint by its final path, not by where it was written."""
        if not self.state.best_global_step:
            return
        best = self.work_dir / f"{saving.PREFIX}{self.state.best_global_step}"
        if best.exists() or best.name == staged.name:
            self.state.best_model_checkpoint = str(best)
            self.state.save_to_json(str(staged / "trainer_state.json"))

    def _save_own_state(self, staged: Path) -> None:
        """Adds this process's counts and running loss, and the position in the data."""
        own: dict[str, Any] = {name: getattr(self, name) for name in self.saved_counts}
        own |= {"loss": float(self._tr_loss), "last_logged": self._globalstep_last_logged}
        (staged / f"rank_{self.args.process_index}.json").write_text(json.dumps(own))
        if self.args.should_save:
            if not any(staged.glob("*config.json")):  # where weights are sharded, the Trainer leaves these out
                processor: Any = self.processing_class
                self.accelerator.unwrap_model(self.model).config.save_pretrained(staged)
                processor.save_pretrained(staged)
            (staged / POSITION).write_text(json.dumps(self.data | {"step_size": self.step_size}))

    def load_own_state(self, checkpoint: Path) -> None:
        """Loads what `_save_own_state` added; of another number of processes, the first continues the sums."""
        files = {path.name: path for path in checkpoint.glob("rank_*.json")}
        if not files:
            return
        rank = self.args.process_index
        if len(files) == self.args.world_size:
            state = json.loads(files[f"rank_{rank}.json"].read_text())
        else:
            states = [json.loads(path.read_text()) for path in files.values()]
            state = {name: sum(s.get(name, 0) for s in states) if rank == 0 else 0 for name in self.saved_counts}
            state |= {name: max(s.get(name, 0) for s in states) for name in self.common_counts}
            loss = sum(one["loss"] for one in states) / len(states)
            state |= {"loss": loss, "last_logged": states[0]["last_logged"]}
        for name in self.saved_counts:
            setattr(self, name, state.get(name, 0))
        self._restored = state

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self._restored is not None:
            self._tr_loss.fill_(self._restored["loss"])
            self._globalstep_last_logged = self._restored["last_logged"]
            self._restored = None
            # The Trainer takes the checkpoint's intervals, whatever its arguments are now.
            self.state.compute_steps(self.args, self.state.max_steps)
        if self.state.global_step >= self.state.max_steps:  # killed between the last checkpoint and the end
            self.control.should_training_stop = True
            return
        if self.step_sampler is not None and kwargs["epoch"] == kwargs["epochs_trained"]:
            done = kwargs["steps_trained_in_current_epoch"]  # batches of this process
            self.step_sampler.passed = done // self.args.gradient_accumulation_steps
        # accelerate hands the epoch on to a data set only where one process trains.
        dataset: Any = self.train_dataset
        dataset.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)
