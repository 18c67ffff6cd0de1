"""Command line of a training: from argv to checked arguments, over the defaults of its stage and its folder's run."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from packaging.requirements import Requirement
from transformers import HfArgumentParser, IntervalStrategy

from gpt4roi.errors import InputError
from gpt4roi.models.compat import CHECKPOINTING
from gpt4roi.train import sharding, work_dir
from gpt4roi.train.arguments import (
    STAGE_DEFAULTS,
    DataArguments,
    ModelArguments,
    RegionArguments,
    TrainingArguments,
)
from gpt4roi.train.work_dir import Flags, is_on, parse_flags, to_argv

logger = logging.getLogger(__name__)


class Arguments(NamedTuple):
    """All arguments of a training."""

    model: ModelArguments
    data: DataArguments
    region: RegionArguments
    training: TrainingArguments


def parse(argv: Sequence[str], planning: bool = False) -> Arguments:
    """Parses a command line; see `parse_arguments`."""
    return parse_arguments(parse_flags(argv), planning)


def parse_arguments(flags: Flags, planning: bool = False) -> Arguments:
    """Returns the checked arguments of a training, over the defaults of its stage.

    With `planning` nothing will be trained, so that flags which this machine cannot carry out are taken. Raises
    InputError for unknown and impossible arguments, before anything is loaded.
    """
    _check_packages()
    stage, _ = stage_and_folder(flags)
    if not flags.get("output_dir") and "help" not in flags and "-h" not in to_argv(flags):
        raise InputError("--output_dir is missing: the folder that the training writes to and resumes from")
    accelerated = torch.cuda.is_available() and not is_on(flags, "use_cpu")
    sharding.check_flags(flags, accelerated or planning, needed=not planning)
    if not planning:
        _check_device(flags, accelerated)
    kinds: Any = (ModelArguments, DataArguments, RegionArguments, TrainingArguments)
    parser = HfArgumentParser(kinds, prog="gpt4roi train", exit_on_error=False, allow_abbrev=False)
    parser.set_defaults(**_defaults(flags, stage, accelerated))
    arguments = _read(parser, _for_the_parser(flags, planning))
    if planning and "deepspeed" in flags:
        arguments.training.deepspeed = flags["deepspeed"][0]
    _check_together(arguments, planning)
    args = arguments.training
    args.label_names, args.prediction_loss_only = ["labels"], True
    args.global_batch_size = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    if not planning:
        if args.fsdp and args.world_size < 2:
            raise InputError("--fsdp shards over processes and there is one; start one for each GPU, or leave it out")
        if args.n_gpu > 1:
            raise InputError(
                f"{args.n_gpu} GPUs in one process: start one process for each, as train_stage{stage}.sh or torchrun "
                "does"
            )
    return arguments


def stage_and_folder(flags: Flags) -> tuple[int, Path | None]:
    """Returns the stage and the work directory that are asked for; a folder that holds a run knows its stage.

    Raises InputError for another stage than 1 and 2.
    """
    folder = next((Path(word) for word in flags.get("output_dir", ())), None)
    own = work_dir.recorded_stage(folder) if folder is not None else None
    stage = next(iter(flags.get("stage", (str(own or 1),))), "")
    if stage not in ("1", "2"):
        raise InputError(f"--stage must be 1 or 2, got {stage!r}")
    return int(stage), folder


def resumed(flags: Flags) -> Flags:
    """Returns the flags of the run in --output_dir, where there is one and only the folder was given."""
    stage, folder = stage_and_folder(flags)
    if folder is None:
        return flags
    return flags | work_dir.recorded_flags(folder, stage, run_flags(flags))


def run_flags(flags: Flags) -> Flags:
    """Returns the flags without the stage and the folder, which the work directory itself stands for."""
    return {name: values for name, values in flags.items() if name not in ("stage", "output_dir")}


def _for_the_parser(flags: Flags, planning: bool) -> list[str]:
    given = dict(flags)
    if "deepspeed" in given:
        given["deepspeed"] = tuple(str(sharding.SHIPPED.get(word, word)) for word in given["deepspeed"])
        if planning:  # the Trainer's arguments would ask for DeepSpeed's package
            del given["deepspeed"]
    if not _processes():  # one alone has no backend
        given.pop("ddp_backend", None)
    return to_argv({name.replace("activation_checkpointing", CHECKPOINTING): words for name, words in given.items()})


def _processes() -> int:
    """Returns how many processes torchrun started; 0 without it."""
    return int(os.environ.get("WORLD_SIZE", "0"))


def _defaults(flags: Flags, stage: int, accelerated: bool) -> dict[str, Any]:
    """Returns the defaults of a stage on this machine."""
    defaults = STAGE_DEFAULTS[stage] | {
        "bf16": accelerated and _defaults_to_bfloat16(flags),
        "use_cpu": not accelerated,
        "dataloader_pin_memory": accelerated,
        # Known before the rest is read, because DeepSpeed's file is completed while it is.
        "gradient_accumulation_steps": accumulation_steps(flags, stage, max(_processes(), 1)),
    }
    if accelerated:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        defaults["dataloader_num_workers"] = max(1, min(8, (os.cpu_count() or 1) // here - 1))
    if flags.get("eval_dataset"):
        defaults |= {"eval_strategy": "steps", "eval_steps": 1000, "eval_on_start": True}
    return defaults


def _read(parser: HfArgumentParser, argv: Sequence[str]) -> Arguments:
    try:
        *parts, unknown = parser.parse_args_into_dataclasses(list(argv), return_remaining_strings=True)
    except InputError:
        raise
    except (argparse.ArgumentError, ValueError) as error:
        raise InputError(f"arguments: {error}") from None
    if unknown:
        raise InputError(f"unknown arguments: {' '.join(unknown)}; {_hint(unknown, parser)}")
    return Arguments(*parts)


def _check_together(arguments: Arguments, planning: bool) -> None:
    """Raises InputError for arguments that contradict each other."""
    args, frozen, attention = arguments.training, arguments.model.frozen_dtype, arguments.model.attn_implementation
    if arguments.data.eval_dataset is None and (args.eval_strategy != "no" or args.eval_on_start):
        strategy = IntervalStrategy(args.eval_strategy).value
        flag = "eval_on_start" if strategy == "no" else f"eval_strategy {strategy}"
        raise InputError(f"--{flag} needs --eval_dataset: what is to be evaluated on")
    computed = "bfloat16" if args.bf16 else "float16" if args.fp16 else frozen
    if frozen not in ("float32", computed):
        raise InputError(
            f"--frozen_dtype {frozen} does not go with a training that computes in {computed}; give --frozen_dtype "
            f"{computed}, or --{'bf16' if args.bf16 else 'fp16'} false"
        )
    if (attention or "").startswith("flash") and args.use_cpu and not planning:
        raise InputError(
            f"--attn_implementation {attention} needs a GPU, and this training runs on the CPU; choose sdpa"
        )


def _check_packages() -> None:
    """Raises InputError where a package is older than the extra `train` says; to answer, older ones are enough."""
    try:
        wanted = [Requirement(line) for line in requires("gpt4roi") or ()]
    except PackageNotFoundError:  # run from its files, without being installed
        return
    for one in wanted:
        if one.marker is not None and not one.marker.evaluate({"extra": "train"}):
            continue
        try:
            found = version(one.name)
        except PackageNotFoundError:  # told by what needs it
            continue
        if not one.specifier.contains(found, prereleases=True):
            raise InputError(
                f"a training needs {one.name}{one.specifier}, and {found} is installed; pip install 'gpt4roi[train]'"
            )


def _check_device(flags: Flags, accelerated: bool) -> None:
    """Raises InputError for flags that this machine cannot carry out; accelerated: the training runs on GPUs."""
    for name in ("fp16", "tf32"):
        if not accelerated and "bf16" not in flags and is_on(flags, name):
            raise InputError(f"--{name} needs a GPU; leave it out, or give --bf16, which the CPU computes in too")
    attention = next(iter(flags.get("attn_implementation", ())), "")
    if accelerated and attention.startswith("flash") and find_spec("flash_attn") is None:
        raise InputError(f"--attn_implementation {attention} needs flash-attn: pip install 'gpt4roi[flash-attn]'")


def _defaults_to_bfloat16(flags: Flags) -> bool:
    """Tells whether a training on GPUs defaults to bf16: where they compute in it, and no precision is asked for."""
    if is_on(flags, "fp16") or "bf16" in flags:
        return False
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return True
    logger.info("This GPU does not compute in bfloat16: training in float32; --fp16 is faster and takes less memory")
    return False


def accumulation_steps(flags: Flags, stage: int, processes: int) -> int:
    """Returns how many batches each process puts into a step, so that a step has its `global_batch_size`."""
    numbers = []
    for name in ("global_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps"):
        word = next(iter(flags.get(name, ())), None)
        try:
            numbers.append(int(STAGE_DEFAULTS[stage].get(name, 0) if word is None else word))
        except ValueError:
            raise InputError(f"--{name}: got {word!r}, expected a whole number") from None
        if word is not None and numbers[-1] < 1:
            raise InputError(f"--{name}: got {word}, expected 1 or more")
    step_size, at_once, given = numbers
    at_once *= processes
    if given:
        if "global_batch_size" in flags and step_size != given * at_once:
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


_FROZEN_TOWER = "nothing: the vision tower stays frozen"
_REPLACED = {
    "version conv_mode template": "--prompt_format",
    "data_path dataset dataset_dir train_file": "--dataset_config",
    "image_folder image_root": "a file that names each data set's images: --dataset_config",
    "validation_data_path val_size validation_file": "--eval_dataset",
    "model model_path base_model model_base pretrained load_from": "--model_name_or_path",
    "lr": "--learning_rate",
    "epochs num_epochs": "--num_train_epochs",
    "batch_size per_device_batch_size": "--per_device_train_batch_size",
    "max_length max_seq_length cutoff_len": "--model_max_length",
    "mm_projector_lr": "--learning_rates mm_projector=2e-5",
    "freeze_backbone": "--trainable_modules region_encoder,mm_projector",
    "tune_mm_mlp_adapter mm_tunable_parts": "--trainable_modules mm_projector",
    "freeze_mm_mlp_adapter": "--trainable_modules region_encoder,language_model",
    "lora_enable use_lora finetuning_type peft use_peft train_type": "--lora_r 16",
    "lora_rank": "--lora_r",
    "lora_target lora_modules": "--lora_target_modules",
    "lora_bias": "nothing: adapters have no bias",
    "bits quant_bits load_in_4bit": "--quantization 4bit",
    "load_in_8bit": "--quantization 8bit",
    "double_quant": "--quantization 4bit alone",
    "quant_type": "--quantization 4bit, which is NF4",
    "torch_dtype": "--bf16 or --fp16; --frozen_dtype for what is not trained",
    "flash_attn use_flash_attn attn_impl": "--attn_implementation flash_attention_2",
    "group_by_modality_length": "nothing: the samples of a step are sorted by length by themselves",
    "image_aspect_ratio image_grid_pinpoints": "nothing: how images are resized follows from the data set",
    "is_multimodal": "nothing: samples with and without an image go together",
    "mm_vision_tower": "--vision_tower",
    "mm_vision_select_feature mm_use_im_patch_token": "nothing: the image's tokens are its patches",
    "unfreeze_mm_vision_tower freeze_vision_tower freeze_vit mm_vision_tower_lr vision_tower_lr": _FROZEN_TOWER,
    "mm_projector_type": "--region_encoder_type light for the small projector; the linear one is the default",
    "trust_remote_code": "nothing: code in a model's folder is never run",
    "cache_dir": "nothing: the hub's cache is where HF_HOME says",
    "no_cuda": "--use_cpu",
    "n_gpu gpu_ids device_map": "nothing: train_stage1.sh and train_stage2.sh start a process for each GPU",
    "warmup_ratio": "--warmup_steps, which takes a fraction of all steps",
    "evaluation_strategy": "--eval_strategy",
    "fsdp_transformer_layer_cls_to_wrap": "nothing: the layers are found by themselves",
    "lazy_preprocess": "nothing: samples are always made when they are needed",
    "logging_dir": "nothing: logs go to the folder of --output_dir",
    "overwrite_output_dir": "another folder",
    "resume resume_from_checkpoint": "nothing: the folder alone resumes its run",
}
REPLACED = {name: instead for names, instead in _REPLACED.items() for name in names.split()}
"""Flags of other trainings, and what does their work here."""


def _hint(unknown: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """Says what may have been meant by the first unknown argument."""
    name = next((word[2:] for word in unknown if word.startswith("--")), "")
    if name in REPLACED:
        return f"instead of --{name} give {REPLACED[name]}"
    known = [option for action in parser._actions for option in action.option_strings]
    close = difflib.get_close_matches(f"--{name}", known, n=1, cutoff=0.75)
    return f"did you mean {close[0]}? --help lists what there is" if close else "--help lists what there is"
