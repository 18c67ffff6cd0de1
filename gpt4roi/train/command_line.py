"""From words on a command line to the arguments of a training, over the defaults of its stage and its folder's own."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import HfArgumentParser

from gpt4roi.errors import InputError
from gpt4roi.train import run
from gpt4roi.train.arguments import STAGE_DEFAULTS, DataArguments, ModelArguments, RegionArguments, TrainingArguments
from gpt4roi.train.refusals import check_values
from gpt4roi.train.trainable import parse_modules, parse_rates


def parse(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, RegionArguments, TrainingArguments]:
    """Reads arguments over the defaults of their stage; raises InputError for unknown or impossible ones."""
    stage = _value(argv, "--stage") or "1"
    if stage not in ("1", "2"):
        raise InputError(f"--stage must be 1 or 2, got {stage!r}")
    if _value(argv, "--output_dir") is None and not {"-h", "--help"} & set(argv):
        raise InputError("--output_dir is missing: the folder that the training writes to and resumes from")
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, RegionArguments, TrainingArguments),
        prog="gpt4roi train",
        exit_on_error=False,
        allow_abbrev=False,
    )
    accelerated = torch.cuda.is_available()
    parser.set_defaults(**STAGE_DEFAULTS[int(stage)], bf16=accelerated, use_cpu=not accelerated)
    if accelerated:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        parser.set_defaults(dataloader_num_workers=max(1, min(8, (os.cpu_count() or 1) // processes - 1)))
    parser.set_defaults(dataloader_pin_memory=accelerated)
    if _value(argv, "--eval_dataset") is not None:
        parser.set_defaults(eval_strategy="steps", eval_steps=1000, eval_on_start=True)
    try:
        *parts, unknown = parser.parse_args_into_dataclasses(list(argv), return_remaining_strings=True)
    except (argparse.ArgumentError, ValueError) as error:
        raise InputError(f"arguments: {error}") from None
    if unknown:
        raise InputError(f"unknown arguments: {' '.join(unknown)}; --help lists what there is")
    model_args, data_args, region_args, args = parts
    check_values(model_args, data_args, region_args, args)
    parse_modules(args.trainable_modules)
    parse_rates(args.learning_rates)
    parse_rates(args.weight_decays, "--weight_decays")
    args.label_names, args.prediction_loss_only = ["labels"], True
    if args.n_gpu > 1:
        raise InputError(
            f"{args.n_gpu} GPUs in one process: start one process for each, as train_stage{stage}.sh or torchrun does"
        )
    if args.global_batch_size:
        at_once = args.per_device_train_batch_size * args.world_size
        if args.global_batch_size % at_once:
            raise InputError(
                f"--global_batch_size {args.global_batch_size} is not a multiple of the {at_once} samples that "
                f"{args.world_size} processes take at once; change --per_device_train_batch_size"
            )
        args.gradient_accumulation_steps = args.global_batch_size // at_once
    return model_args, data_args, region_args, args


def remembered(argv: list[str]) -> list[str]:
    """Returns the arguments of the run in --output_dir, where there is one and only the folder was given."""
    stage, folder = _value(argv, "--stage") or "1", _value(argv, "--output_dir")
    if folder is None or stage not in ("1", "2"):
        return argv
    given = arguments_to_remember(argv)
    return [
        "--stage", stage, "--output_dir", folder, *run.remembered_arguments(Path(folder), int(stage), given)
    ]  # fmt: skip


def arguments_to_remember(argv: Sequence[str]) -> list[str]:
    """Returns the arguments without the stage and the folder, which the work directory itself stands for."""
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word in ("--stage", "--output_dir"):
            skip = True
        else:
            kept.append(word)
    return kept


def words(argv: Sequence[str]) -> list[str]:
    """Returns every word, `--some-flag=value` as `--some_flag` and `value`."""
    return [part for word in argv for part in _apart(word)]


def _apart(word: str) -> list[str]:
    """Returns `--some-flag=value` as `--some_flag` and `value`, and any other word as it is."""
    if not word.startswith("--"):
        return [word]
    flag, *value = word.split("=", 1)
    return ["--" + flag[2:].replace("-", "_"), *value]


def _value(argv: Sequence[str], flag: str) -> str | None:
    argv = list(argv)
    return argv[argv.index(flag) + 1] if flag in argv and argv.index(flag) + 1 < len(argv) else None
