"""From words on a command line to the arguments of a training, over the defaults of its stage and its folder's own."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from transformers import HfArgumentParser

from gpt4roi.errors import InputError
from gpt4roi.train import sharding, work_dir
from gpt4roi.train.arguments import DataArguments, ModelArguments, RegionArguments, TrainingArguments
from gpt4roi.train.defaults import STAGE_DEFAULTS
from gpt4roi.train.refusals import check_device, check_values
from gpt4roi.train.trainable import parse_modules, parse_rates
from gpt4roi.train.work_dir import SWITCH

logger = logging.getLogger(__name__)


def parse(
    argv: Sequence[str], planning: bool = False
) -> tuple[ModelArguments, DataArguments, RegionArguments, TrainingArguments]:
    """Reads arguments over the defaults of their stage.

    planning: nothing will be trained, so that flags which this machine cannot carry out are taken.
    Raises InputError for unknown or impossible arguments, before anything is loaded.
    """
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
    options = work_dir.options(list(argv))
    accelerated = torch.cuda.is_available() and not work_dir.is_on(options, "use_cpu")
    sharding.check_flags(options, accelerated or planning, needed=not planning)
    if not planning:
        check_device(options, accelerated)
    argv = list(sharding.shipped_files(list(argv)))
    if planning:  # the Trainer's arguments would ask for DeepSpeed's package
        argv = _without(argv, "--deepspeed")
    processes = int(os.environ.get("WORLD_SIZE", "0"))  # torchrun's word for how many train together
    if not processes:  # one alone has no backend
        argv = _without(argv, "--ddp_backend")
    bf16 = accelerated and _takes_bfloat16(options)
    parser.set_defaults(**STAGE_DEFAULTS[int(stage)], bf16=bf16, use_cpu=not accelerated)
    if accelerated:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        parser.set_defaults(dataloader_num_workers=max(1, min(8, (os.cpu_count() or 1) // here - 1)))
    parser.set_defaults(dataloader_pin_memory=accelerated)
    if _value(argv, "--eval_dataset") is not None:
        parser.set_defaults(eval_strategy="steps", eval_steps=1000, eval_on_start=True)
    # Known before the rest is read, because DeepSpeed's file is completed while it is.
    parser.set_defaults(gradient_accumulation_steps=accumulation(options, int(stage), max(processes, 1)))
    try:
        *parts, unknown = parser.parse_args_into_dataclasses(list(argv), return_remaining_strings=True)
    except (argparse.ArgumentError, ValueError) as error:
        raise InputError(f"arguments: {error}") from None
    if unknown:
        raise InputError(f"unknown arguments: {' '.join(unknown)}; {_hint(unknown, parser)}")
    model_args, data_args, region_args, args = parts
    if planning and "deepspeed" in options:
        args.deepspeed = options["deepspeed"][0]
    check_values(model_args, data_args, region_args, args, planning)
    parse_modules(args.trainable_modules)
    parse_rates(args.learning_rates)
    parse_rates(args.weight_decays, "--weight_decays")
    args.label_names, args.prediction_loss_only = ["labels"], True
    args.global_batch_size = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    if not planning:
        sharding.check_processes(args)
        if args.n_gpu > 1:
            raise InputError(
                f"{args.n_gpu} GPUs in one process: start one process for each, as train_stage{stage}.sh or torchrun "
                "does"
            )
    return model_args, data_args, region_args, args


def _takes_bfloat16(options: Mapping[str, tuple[str, ...]]) -> bool:
    """Tells whether a training on GPUs computes in bfloat16 when nobody says: where they do, and fp16 is not asked for.

    options: the command line as name -> words. Says in the log what is used instead where they do not.
    """
    if work_dir.is_on(options, "fp16") or "bf16" in options:
        return False
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return True
    logger.info("This GPU does not compute in bfloat16: training in float32; --fp16 is faster and takes less memory")
    return False


def accumulation(options: Mapping[str, tuple[str, ...]], stage: int, processes: int) -> int:
    """Returns how many batches each process puts into a step, so that a step keeps its samples.

    options: the command line as name -> words. Raises InputError where the numbers do not fit each other.
    """
    numbers = {}
    for name in ("global_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps"):
        word = next(iter(options.get(name, ())), None)
        try:
            numbers[name] = int(STAGE_DEFAULTS[stage].get(name, 0) if word is None else word)
        except ValueError:
            raise InputError(f"--{name}: got {word!r}, expected a whole number") from None
        if word is not None and numbers[name] < 1:
            raise InputError(f"--{name}: got {word}, expected 1 or more")
    step_size, at_once, given = numbers.values()
    at_once *= processes
    if given:
        if "global_batch_size" in options and step_size != given * at_once:
            raise InputError(
                f"--global_batch_size {step_size} and --gradient_accumulation_steps {given} contradict each other: "
                f"{given} x {at_once} samples at once are {given * at_once}; give one of them"
            )
        return given
    if step_size % at_once:
        raise InputError(
            f"--global_batch_size {step_size} is not a multiple of the {at_once} samples that {processes} processes "
            "take at once; change --per_device_train_batch_size"
        )
    return step_size // at_once


REPLACED = {
    "version": "--prompt_format",
    "load_from": "--model_name_or_path",
    "warmup_ratio": "--warmup_steps, which takes a fraction of all steps",
    "evaluation_strategy": "--eval_strategy",
    "fsdp_transformer_layer_cls_to_wrap": "nothing: the layers are found by themselves",
    "lazy_preprocess": "nothing: samples are always made when they are needed",
    "overwrite_output_dir": "another folder",
    "resume_from_checkpoint": "nothing: the folder alone resumes its run",
}
"""Flags that people bring along, and what does their work here."""


def _hint(unknown: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """Says what may have been meant by the first unknown argument."""
    name = next((word[2:] for word in unknown if word.startswith("--")), "")
    if name in REPLACED:
        return f"instead of --{name} give {REPLACED[name]}"
    known = [option for action in parser._actions for option in action.option_strings]
    close = difflib.get_close_matches(f"--{name}", known, n=1, cutoff=0.75)
    return f"did you mean {close[0]}? --help lists what there is" if close else "--help lists what there is"


def remembered(argv: list[str]) -> list[str]:
    """Returns the arguments of the run in --output_dir, where there is one and only the folder was given."""
    stage, folder = _value(argv, "--stage") or "1", _value(argv, "--output_dir")
    if folder is None or stage not in ("1", "2"):
        return argv
    given = arguments_to_remember(argv)
    return [
        "--stage", stage, "--output_dir", folder, *work_dir.remembered_arguments(Path(folder), int(stage), given)
    ]  # fmt: skip


def arguments_to_remember(argv: Sequence[str]) -> list[str]:
    """Returns the arguments without the stage and the folder, which the work directory itself stands for."""
    return _without(argv, "--stage", "--output_dir")


def without_estimate(argv: Sequence[str]) -> list[str]:
    """Returns the words of a command line without `--estimate` and the word that switches it on or off."""
    kept: list[str] = []
    for word in reversed(work_dir.words(argv)):
        if word == "--estimate" and kept and kept[-1].lower() in SWITCH:
            kept.pop()
        elif word != "--estimate" or (kept and not kept[-1].startswith("--")):  # other words are refused with it
            kept.append(word)
    return kept[::-1]


def _without(argv: Sequence[str], *flags: str) -> list[str]:
    """Returns the words without some flags and the word after each."""
    kept, skip = [], False
    for word in argv:
        if not skip and word not in flags:
            kept.append(word)
        skip = not skip and word in flags
    return kept


def _value(argv: Sequence[str], flag: str) -> str | None:
    """Returns the word after a flag, the last one where it is given twice."""
    found = [after for word, after in pairwise(argv) if word == flag]
    return found[-1] if found else None
