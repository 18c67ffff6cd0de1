"""What can be seen to be wrong from a command line and small files alone, before anything is opened."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers import Trainer, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from gpt4roi.errors import InputError
from gpt4roi.processing.templates import TEMPLATES
from gpt4roi.train import work_dir
from gpt4roi.train.adapters import DTYPES
from gpt4roi.train.arguments import DataArguments, ModelArguments, RegionArguments, TrainingArguments

FORMATS = (*TEMPLATES, "chat")
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
ENCODERS = ("gpt4roi", "light")


def check_values(
    model_args: ModelArguments,
    data_args: DataArguments,
    region_args: RegionArguments,
    args: TrainingArguments,
    planning: bool = False,
) -> None:
    """Raises InputError for a value that no training can have; names what was expected.

    planning: nothing will be trained, so that what this machine cannot carry out is taken.
    """
    for name, value, least in (
        ("learning_rate", args.learning_rate, 0),
        ("weight_decay", args.weight_decay, 0),
        ("max_bad_steps", args.max_bad_steps, 0),
        ("global_batch_size", args.global_batch_size, 1),
        ("per_device_train_batch_size", args.per_device_train_batch_size, 1),
        ("model_max_length", model_args.model_max_length, 1),
        ("per_device_eval_batch_size", args.per_device_eval_batch_size, 1),
        ("seed", args.seed, 0),
        ("data_seed", args.data_seed, 0),
        ("dataloader_num_workers", args.dataloader_num_workers, 0),
        ("dataloader_prefetch_factor", args.dataloader_prefetch_factor, 1),
        ("watch_regions", data_args.watch_regions, 0),
        ("image_grid_size", model_args.image_grid_size, 1),
        ("align_regions", region_args.align_regions, 0),
        ("align_learning_rate", region_args.align_learning_rate, 0),
        ("align_batch_size", region_args.align_batch_size, 1),
        ("region_mixup", region_args.region_mixup, 0),
        ("region_noise", region_args.region_noise, 0),
        ("estimate_gpus", args.estimate_gpus, 1),
        ("estimate_tokens", args.estimate_tokens, 1),
        ("estimate_regions", args.estimate_regions, 1),
    ):
        if value is not None and not (value >= least and math.isfinite(value)):
            raise InputError(f"--{name}: got {value}, expected {least} or more")
    if not 0 <= data_args.max_bad_fraction <= 1:
        raise InputError(f"--max_bad_fraction: got {data_args.max_bad_fraction}, expected a share from 0 to 1")
    if model_args.prompt_format not in (None, *FORMATS):
        raise InputError(f"--prompt_format: got {model_args.prompt_format!r}, expected one of {', '.join(FORMATS)}")
    if model_args.region_encoder_type not in ENCODERS:
        raise InputError(
            f"--region_encoder_type: got {model_args.region_encoder_type!r}, expected {' or '.join(ENCODERS)}"
        )
    if args.resume_from_checkpoint:
        raise InputError("--resume_from_checkpoint: give the work directory alone, and its run goes on by itself")
    if args.max_steps == 0 or (args.max_steps < 0 and not args.num_train_epochs > 0):
        raise InputError(
            f"--max_steps {args.max_steps} and --num_train_epochs {args.num_train_epochs:g}: nothing would be learnt"
        )
    _check_trainers_flags(args)
    if args.eval_strategy != "no" and data_args.eval_dataset is None:
        raise InputError(f"--eval_strategy {args.eval_strategy.value} needs --eval_dataset: what is to be evaluated on")
    if args.eval_on_start and data_args.eval_dataset is None:
        raise InputError("--eval_on_start needs --eval_dataset: what is to be evaluated on")
    if args.save_strategy == "best" and args.metric_for_best_model is None:
        raise InputError("--save_strategy best needs --metric_for_best_model: by what, as eval_loss, the best is known")
    if args.use_liger_kernel and find_spec("liger_kernel") is None:
        raise InputError("--use_liger_kernel needs the package liger-kernel; install it, or leave the flag out")
    _check_halves(model_args.frozen_dtype, args)
    _check_optimiser(args)
    _check_attention(model_args.attn_implementation, args.use_cpu and not planning)
    _check_reports(args)


def _check_halves(frozen: str, args: TrainingArguments) -> None:
    """Raises InputError where what is frozen is kept in other 16 bits than the training computes in."""
    computed = "bfloat16" if args.bf16 else "float16" if args.fp16 else frozen
    if frozen not in ("float32", computed) and frozen in DTYPES:
        raise InputError(
            f"--frozen_dtype {frozen} does not go with a training that computes in {computed}; give --frozen_dtype "
            f"{computed}, or --{'bf16' if args.bf16 else 'fp16'} false"
        )


def _check_trainers_flags(args: TrainingArguments) -> None:
    """Raises InputError for flags of the Trainer that do nothing here, or would change what is learnt in silence."""
    for given, what in (
        (
            args.dataloader_persistent_workers,
            "dataloader_persistent_workers: workers that outlive an epoch would draw the first epoch's samples again",
        ),
        (args.save_only_model, "save_only_model: a run that goes on would begin with an empty optimiser"),
        (args.ignore_data_skip, "ignore_data_skip: a run that goes on would learn its epoch's first samples again"),
        (args.auto_find_batch_size, "auto_find_batch_size: it would change the samples in a step"),
        (
            args.train_sampling_strategy in ("group_by_length", "batch_rebalance"),
            f"train_sampling_strategy {args.train_sampling_strategy}: a run that goes on would draw another order; the "
            "samples of a step are sorted by length by themselves",
        ),
        (args.label_smoothing_factor, "label_smoothing_factor: it does nothing, because the model takes its own loss"),
    ):
        if given:
            raise InputError(f"--{what}; leave it out")


def _check_optimiser(args: TrainingArguments) -> None:
    """Raises InputError for an optimiser or a schedule that cannot be made, tried on one weight."""
    weight = nn.Parameter(torch.zeros(1))
    flag = f"--optim {args.optim.value}"
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        optimiser = kind([weight], **options)
        flag = f"--lr_scheduler_type {args.lr_scheduler_type.value}"
        get_scheduler(args.lr_scheduler_type, optimiser, 1, 2, args.lr_scheduler_kwargs)
    except (ImportError, ValueError, TypeError) as error:
        raise InputError(f"{flag} cannot be used: {' '.join(str(error).split())[:300]}") from None


def _check_attention(chosen: str | None, use_cpu: bool) -> None:
    if chosen not in (None, *ATTENTION):
        raise InputError(f"--attn_implementation: got {chosen!r}, expected one of {', '.join(ATTENTION)}")
    if chosen is not None and chosen.startswith("flash") and use_cpu:
        raise InputError(f"--attn_implementation {chosen} needs a GPU, and this training runs on the CPU; choose sdpa")


def check_device(options: Mapping[str, tuple[str, ...]], accelerated: bool) -> None:
    """Raises InputError for flags that this machine cannot carry out.

    options: the command line as name -> words; accelerated: whether the training runs on GPUs.
    """
    for name in ("fp16", "tf32"):
        if not accelerated and "bf16" not in options and work_dir.is_on(options, name):
            raise InputError(f"--{name} needs a GPU; leave it out, or give --bf16, which the CPU computes in too")
    attention = next(iter(options.get("attn_implementation", ())), "")
    if accelerated and attention.startswith("flash") and find_spec("flash_attn") is None:
        raise InputError(f"--attn_implementation {attention} needs flash-attn: pip install 'gpt4roi[flash-attn]'")


def _check_reports(args: TrainingArguments) -> None:
    try:
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"--report_to {' '.join(args.report_to)}: {' '.join(str(error).split())[:300]}") from None


def check_new_parts(model_args: ModelArguments, region_args: RegionArguments) -> None:
    """Raises InputError for choices of a new model that contradict each other."""
    if model_args.region_encoder_type == "light":
        return
    if model_args.image_grid_size is not None:
        raise InputError("--image_grid_size is for --region_encoder_type light; leave one out or give the other")
    if region_args.region_mixup or region_args.region_noise:
        raise InputError("--region_mixup and --region_noise are for --region_encoder_type light")


def refuse_adapter(folder: Path) -> None:
    """Raises InputError where a training is to start from a folder that holds an adapter alone."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} holds an adapter, not a model; join it with its base: gpt4roi merge-adapter BASE {folder} OUT"
        )
