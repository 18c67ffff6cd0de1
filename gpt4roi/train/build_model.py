"""The model that a training begins or goes on with, and which of its parts learn."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from gpt4roi.checkpoint.loading import build_from_parts, load_model, load_processor
from gpt4roi.errors import InputError
from gpt4roi.processing.processor import GPT4RoIProcessor
from gpt4roi.train import work_dir
from gpt4roi.train.adapters import check_adapters, quantization_config
from gpt4roi.train.arguments import ModelArguments, RegionArguments, TrainingArguments
from gpt4roi.train.refusals import check_new_parts, refuse_adapter
from gpt4roi.train.resume import realign
from gpt4roi.train.trainable import parse_modules

logger = logging.getLogger(__name__)


def open_model(
    checkpoint: Path | None, model_args: ModelArguments, args: TrainingArguments
) -> tuple[Any, GPT4RoIProcessor]:
    """Opens a checkpoint, a GPT4RoI folder, or builds a model from a language model and a vision tower.

    A checkpoint whose weights are sharded is loaded by the trainer, over the model that the run began with.
    """
    holds_weights = checkpoint is not None and any(checkpoint.glob("model*.safetensors"))
    source = checkpoint if holds_weights else Path(model_args.model_name_or_path)
    if not holds_weights:
        work_dir.require_finished(source)
    if is_ours(source):
        chosen = {
            "dtype": torch.float32,
            "attn_implementation": model_args.attn_implementation,
            "quantization_config": quantization_config(model_args),
        }
        processor = _own_processor(source, model_args)
        model = load_model(str(source), **chosen)
    elif args.stage == 2:
        raise InputError(
            f"{source}: not a GPT4RoI folder; stage 2 starts from stage 1's: --model_name_or_path exp/stage1"
        )
    else:
        model, processor = _build(model_args)
    if args.device.type == "cpu" and not model_args.quantization:
        realign(model)
    return model, processor


def _own_processor(folder: Path, model_args: ModelArguments) -> GPT4RoIProcessor:
    """Opens a GPT4RoI folder's processor, with the length that is asked for.

    Raises InputError where another prompt format is asked for than the one that the model was trained with.
    """
    processor = load_processor(str(folder))
    asked = model_args.prompt_format
    if asked not in (None, processor.prompt_format):
        raise InputError(
            f"--prompt_format {asked} does not fit the model: {folder} was trained with "
            f"{processor.prompt_format!r}; leave it out"
        )
    if model_args.model_max_length in (None, processor.model_max_length):
        return processor
    saved = {name: value for name, value in processor.to_dict().items() if name != "processor_class"}
    return GPT4RoIProcessor(processor.tokenizer, **saved | {"model_max_length": model_args.model_max_length})


def _build(model_args: ModelArguments) -> tuple[Any, GPT4RoIProcessor]:
    return build_from_parts(
        language_model=model_args.model_name_or_path,
        vision_tower=model_args.vision_tower,
        region_encoder_type=model_args.region_encoder_type,
        projector=model_args.pretrain_mm_mlp_adapter,
        prompt_format=model_args.prompt_format or "v0",
        system_prompt=model_args.system_prompt,
        model_max_length=model_args.model_max_length or 2048,
        image_grid_size=model_args.image_grid_size,
        mm_vision_select_layer=model_args.mm_vision_select_layer,
        mm_use_im_start_end=model_args.mm_use_im_start_end,
        attn_implementation=model_args.attn_implementation,
    )


def learning_modules(model_args: ModelArguments, args: TrainingArguments) -> tuple[str, ...]:
    """Returns which modules learn: those asked for, and the projector where the run started it untrained."""
    modules = parse_modules(args.trainable_modules)
    begun_here = not is_ours(Path(model_args.model_name_or_path))
    if begun_here and model_args.pretrain_mm_mlp_adapter is None and "mm_projector" not in modules:
        logger.info("mm_projector started untrained (no --pretrain_mm_mlp_adapter), so it learns too")
        modules += ("mm_projector",)
    return modules


def check_choices(model_args: ModelArguments, region_args: RegionArguments, args: TrainingArguments) -> None:
    """Raises InputError for choices about the model that contradict each other, before anything is opened."""
    source = Path(model_args.model_name_or_path)
    starts_from_ours = is_ours(source)
    if not any(Path(args.output_dir).glob("checkpoint-*")):  # a run that goes on needs no start
        refuse_adapter(source)
        work_dir.require_finished(source)
        if args.stage == 2 and not starts_from_ours:
            raise InputError(
                f"{source}: not a GPT4RoI folder; stage 2 starts from stage 1's: --model_name_or_path exp/stage1"
            )
    if not starts_from_ours:
        check_new_parts(model_args, region_args)
    check_adapters(model_args, parse_modules(args.trainable_modules), starts_from_ours)


def is_ours(folder: Path) -> bool:
    """Tells whether a folder holds a GPT4RoI model, in our format or the original's."""
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, json.JSONDecodeError):
        return False
    return kind in ("gpt4roi", "llava")
