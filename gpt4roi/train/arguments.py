"""Training arguments: every flag with its default, its bounds and its help text, and the defaults of each stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated, Any, get_type_hints

import torch
from torch import nn
from transformers import SchedulerType, Trainer, get_scheduler
from transformers import TrainingArguments as HFTrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.training_args import OptimizerNames

from gpt4roi.devices import QUANTIZATIONS
from gpt4roi.errors import InputError
from gpt4roi.models.compat import CHECKPOINTING
from gpt4roi.processing.templates import TEMPLATES
from gpt4roi.train.param_groups import parse_modules, parse_rates

_BOTH_STAGES = {
    "learning_rate": 2e-5,
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "save_steps": 1000,
    "save_total_limit": 2,
}
STAGE_DEFAULTS: dict[int, dict[str, Any]] = {
    1: _BOTH_STAGES
    | {
        "trainable_modules": "region_encoder",
        "global_batch_size": 4,
        "per_device_train_batch_size": 1,
        "num_train_epochs": 2,
        "weight_decay": 0.01,
        "warmup_steps": 0.003,
        "dataset_config": "gpt4roi/configs/stage1.py",
    },
    2: _BOTH_STAGES
    | {
        "trainable_modules": "region_encoder,mm_projector,language_model",
        "global_batch_size": 16,
        "per_device_train_batch_size": 2,
        "num_train_epochs": 1,
        "weight_decay": 0.0,
        "warmup_steps": 3000,
        CHECKPOINTING: True,
        "dataset_config": "gpt4roi/configs/stage2.py",
    },
}
"""The original's hyper-parameters (its two training scripts); warmup_steps below 1 is a fraction of all steps."""

TRAINER_MINIMUMS = dict.fromkeys(
    ("learning_rate", "weight_decay", "seed", "data_seed", "dataloader_num_workers"), 0
) | {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "dataloader_prefetch_factor": 1,
}
"""Lower bounds of the Trainer's own arguments."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Min:
    """Lower bound of an argument, in the annotation of its field."""

    value: float


class Choices(tuple[str, ...]):
    """Allowed values of an argument, in the annotation of its field."""


def _argument(default: Any, help_text: str, *aliases: str) -> Any:
    return field(default=default, metadata={"help": help_text, **({"aliases": list(aliases)} if aliases else {})})


def check_limits(arguments: Any, minimums: Mapping[str, float] | None = None) -> None:
    """Raises InputError for a value outside of its annotation's limits, or of `minimums`; None is always inside."""
    hints = get_type_hints(type(arguments), include_extras=True)
    limits = {name: [*getattr(hint, "__metadata__", ())] for name, hint in hints.items()}
    for name, value in (minimums or {}).items():
        limits[name].append(Min(value))
    for name, limit in ((name, limit) for name, found in limits.items() for limit in found):
        value = getattr(arguments, name)
        if value is None:
            continue
        if isinstance(limit, Min) and not (value >= limit.value and math.isfinite(value)):
            raise InputError(f"--{name}: got {value}, expected {limit.value} or more")
        if isinstance(limit, Choices) and value not in limit:
            expected = " or ".join(limit) if len(limit) == 2 else f"one of {', '.join(limit)}"
            raise InputError(f"--{name}: got {value!r}, expected {expected}")


@dataclass
class AdapterArguments:
    """Low-rank adapters (LoRA) and quantization of the language model."""

    lora_r: int = _argument(0, "rank of the language model's LoRA adapters; 0: its own weights are trained")
    lora_alpha: float | None = _argument(None, "scale of the adapters (twice the rank)")
    lora_dropout: float = _argument(0.0, "dropout before the adapters")
    lora_target_modules: str | None = _argument(
        None, "layers that get an adapter, as q_proj,v_proj (all linear layers of the decoder)"
    )
    quantization: Annotated[str | None, Choices(QUANTIZATIONS)] = _argument(
        None, "4bit or 8bit: quantizes the language model under its adapters (QLoRA)"
    )
    frozen_dtype: Annotated[str, Choices(tuple(DTYPES))] = _argument(
        "float32", "float32, bfloat16 or float16: dtype of the modules that are not trained"
    )

    def __post_init__(self) -> None:
        """Raises InputError for a value out of its limits, and for adapter settings without a rank."""
        check_limits(self)
        if self.lora_r < 0:
            raise InputError(f"--lora_r: got {self.lora_r}, expected a rank above 0, or 0 for no adapters")
        if not 0 <= self.lora_dropout < 1:
            raise InputError(f"--lora_dropout: got {self.lora_dropout}, expected 0 or more and below 1")
        if self.lora_r == 0:
            without = [name for name in ("lora_alpha", "lora_target_modules") if getattr(self, name) is not None]
            if without or self.lora_dropout:
                raise InputError(
                    f"--{(without or ['lora_dropout'])[0]} does nothing without --lora_r; give a rank, as 16"
                )


@dataclass
class ModelArguments(AdapterArguments):
    """The parts of the model; a GPT4RoI folder needs no tower."""

    model_name_or_path: str = _argument("./vicuna-7b", "a language model's folder, or a GPT4RoI folder to start from")
    vision_tower: str = _argument("openai/clip-vit-large-patch14", "folder or name of the frozen vision tower")
    pretrain_mm_mlp_adapter: str | None = _argument(None, "a LLaVA mm_projector file")
    mm_vision_select_layer: int = _argument(-2, "hidden state that the image tokens come from")
    mm_use_im_start_end: bool = _argument(True, "put <im_start> and <im_end> around the image")
    model_max_length: Annotated[int | None, Min(1)] = _argument(
        None, "longest sequence; whole turns are dropped beyond (2048, or as the GPT4RoI folder says)"
    )
    prompt_format: Annotated[str | None, Choices((*TEMPLATES, "chat"))] = _argument(
        None, "v0, v1, or chat: the tokenizer's own template (v0, or as the GPT4RoI folder says)"
    )
    system_prompt: str | None = _argument(None, "chat: the system message, instead of the template's own")
    region_encoder_type: Annotated[str, Choices(("gpt4roi", "light"))] = _argument(
        "gpt4roi", "gpt4roi, or light for timm pyramids"
    )
    tokens_per_region: Annotated[int, Min(1)] = _argument(1, "tokens that one region takes in the prompt")
    region_shape: Annotated[str, Choices(("box", "mask"))] = _argument(
        "box", "mask: what lies in a region's box counts by how much its mask covers (new encoders only)"
    )
    classifier_head: str | None = _argument(
        None, "light: file of the tower's own classifier, which names regions as a fixed part of their embeddings"
    )
    image_grid_size: Annotated[int | None, Min(1)] = _argument(
        None, "light: image tokens per side, by pooling the last map"
    )
    attn_implementation: Annotated[
        str | None, Choices(("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"))
    ] = _argument(None, "eager, sdpa or flash_attention_2")


@dataclass
class DataArguments:
    """Training data, evaluation data and the feature cache."""

    dataset_config: str = _argument("gpt4roi/configs/dataset_config.json", "list of data sets, or a unified file")
    eval_dataset: str | None = _argument(
        None, "evaluation data: list of data sets, or a unified file; evaluated every --eval_steps"
    )
    watch_regions: Annotated[int, Min(0)] = _argument(
        6, "questions of --eval_dataset whose answers are written to watch.html"
    )
    feature_cache: str | None = _argument(
        None,
        "folder to cache the frozen tower's outputs in, so that each image is encoded once",
        "--picture_features",
        "--picture-features",
    )
    max_bad_fraction: float = _argument(0.01, "stop when more than this fraction of the samples is unusable")

    def __post_init__(self) -> None:
        """Raises InputError for a value out of its limits."""
        check_limits(self)
        if not 0 <= self.max_bad_fraction <= 1:
            raise InputError(f"--max_bad_fraction: got {self.max_bad_fraction}, expected a fraction from 0 to 1")


@dataclass
class RegionArguments:
    """Alignment and regularisation of the region encoder: ours, not the original's, and off by default."""

    align_regions: Annotated[int, Min(0)] = _argument(
        0, "epochs of aligning region embeddings with words before training"
    )
    align_learning_rate: Annotated[float, Min(0)] = _argument(2e-3, "peak learning rate of the alignment")
    align_batch_size: Annotated[int, Min(1)] = _argument(16, "images in a step of the alignment")
    align_weight: float = _argument(0.0, "weight of the alignment loss during training")
    align_head_weight: Annotated[float, Min(0)] = _argument(
        4.0, "with a classifier head: how much more a region that it names right counts in whom to trust"
    )
    align_outlier_weight: Annotated[float, Min(0)] = _argument(
        0.0,
        "with a classifier head: weight of a loss by which regions that it names right resemble no text of the data",
    )
    region_mixup: Annotated[float, Min(0)] = _argument(
        0.0, "light: largest fraction of another region's features mixed in while training"
    )
    region_noise: Annotated[float, Min(0)] = _argument(
        0.0, "light: channel noise while training, in standard deviations"
    )

    def __post_init__(self) -> None:
        """Raises InputError for a value out of its limits."""
        check_limits(self)


@dataclass
class TrainingArguments(HFTrainingArguments):
    """The Trainer's own arguments, and those of the stages."""

    stage: int = _argument(1, "1: region encoder; 2: everything but the vision tower")
    trainable_modules: str = _argument(
        "region_encoder",
        "comma-separated: region_encoder, mm_projector, language_model, or parts (region_encoder.place, "
        "language_model.model.layers.*.self_attn)",
    )
    learning_rates: str | None = _argument(None, "learning rates that differ, as region_encoder=5e-4,mm_projector=5e-4")
    weight_decays: str | None = _argument(None, "weight decays that differ, as region_encoder=0.01,language_model=0")
    max_bad_steps: Annotated[int, Min(0)] = _argument(
        3, "steps of non-finite loss or gradients that are skipped before the run stops"
    )
    global_batch_size: Annotated[int | None, Min(1)] = _argument(
        None, "samples in a step over all devices; gradients are accumulated to reach it"
    )
    estimate: bool = _argument(False, "print the memory that this training takes on each GPU, and end")
    estimate_gpus: Annotated[int | None, Min(1)] = _argument(None, "GPUs to estimate for (those of this machine)")
    estimate_tokens: Annotated[int | None, Min(1)] = _argument(
        None, "tokens of a sample to estimate for (--model_max_length)"
    )
    estimate_regions: Annotated[int, Min(1)] = _argument(8, "regions of a sample to estimate for")
    remove_unused_columns: bool = _argument(False, "kept off: the model reads every column")

    def __post_init__(self) -> None:
        """Raises InputError for a value that no training can have."""
        super().__post_init__()
        check_limits(self, TRAINER_MINIMUMS)
        parse_modules(self.trainable_modules)
        parse_rates(self.learning_rates)
        parse_rates(self.weight_decays, "--weight_decays")
        if self.resume_from_checkpoint:
            raise InputError("--resume_from_checkpoint: give the work directory alone, and its run resumes by itself")
        if self.max_steps == 0 or (self.max_steps < 0 and not self.num_train_epochs > 0):
            raise InputError(
                f"--max_steps {self.max_steps} and --num_train_epochs {self.num_train_epochs:g}: nothing would be "
                "trained"
            )
        self._refuse_trainer_flags()
        if self.save_strategy == "best" and self.metric_for_best_model is None:
            raise InputError(
                "--save_strategy best needs --metric_for_best_model: by what, as eval_loss, the best is known"
            )
        if self.use_liger_kernel and find_spec("liger_kernel") is None:
            raise InputError("--use_liger_kernel needs the package liger-kernel; install it, or leave the flag out")
        self._try_optimizer()
        try:
            for callback in get_reporting_integration_callbacks(self.report_to):
                callback()
        except (ValueError, RuntimeError, ImportError) as error:
            asked = self.report_to if isinstance(self.report_to, str) else " ".join(self.report_to or ())
            raise InputError(f"--report_to {asked}: {' '.join(str(error).split())[:300]}") from None

    def _refuse_trainer_flags(self) -> None:
        """Raises InputError for flags of the Trainer that do nothing here, or would silently change the training."""
        for given, what in (
            (
                self.dataloader_persistent_workers,
                "dataloader_persistent_workers: workers that outlive an epoch would draw the first epoch's samples "
                "again",
            ),
            (self.save_only_model, "save_only_model: a resumed run would begin with an empty optimiser"),
            (self.ignore_data_skip, "ignore_data_skip: a resumed run would train on its epoch's first samples again"),
            (self.auto_find_batch_size, "auto_find_batch_size: it would change the samples in a step"),
            (
                self.train_sampling_strategy in ("group_by_length", "batch_rebalance"),
                f"train_sampling_strategy {self.train_sampling_strategy}: a resumed run would draw another order; the "
                "samples of a step are sorted by length by themselves",
            ),
            (
                self.label_smoothing_factor,
                "label_smoothing_factor: it does nothing, because the model takes its own loss",
            ),
        ):
            if given:
                raise InputError(f"--{what}; leave it out")

    def _try_optimizer(self) -> None:
        """Raises InputError for an optimiser or a schedule that cannot be made, tried on one weight."""
        flag = f"--optim {OptimizerNames(self.optim).value}"
        scheduler = SchedulerType(self.lr_scheduler_type)
        try:
            kind, options = Trainer.get_optimizer_cls_and_kwargs(self)
            optimizer = kind([nn.Parameter(torch.zeros(1))], **options)
            flag = f"--lr_scheduler_type {scheduler.value}"
            options = self.lr_scheduler_kwargs if isinstance(self.lr_scheduler_kwargs, dict) else {}
            get_scheduler(scheduler, optimizer, 1, 2, options)
        except (ImportError, ValueError, TypeError) as error:
            raise InputError(f"{flag} cannot be used: {' '.join(str(error).split())[:300]}") from None
