"""Builds or loads the model to train and says which of its modules are trainable; or builds its shape alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForImageTextToText

from gpt4roi.checkpoint.build import V1_FORMATS, build_from_parts, config_of_parts, decoder_config
from gpt4roi.checkpoint.loading import (
    add_stop_tokens,
    load_model,
    load_processor,
    load_tokenizer,
    vision_config,
    with_settings,
)
from gpt4roi.errors import InputError
from gpt4roi.io.json_files import read_json_object
from gpt4roi.io.model_folders import (
    ADAPTER,
    DELTA,
    LLAVA,
    REGIONS_ON_BASE,
    UNFINISHED,
    VISION_LANGUAGE,
    identify,
    is_gpt4roi_folder,
    is_original,
    load_failure,
)
from gpt4roi.io.weight_files import damaged_file_named
from gpt4roi.models import GPT4RoIConfig, GPT4RoIForConditionalGeneration
from gpt4roi.models.classifier_head import read_classifier_head
from gpt4roi.models.pretrained import find_tower
from gpt4roi.models.vlm_base import add_regions
from gpt4roi.models.vlm_families import require_known_family
from gpt4roi.processing.processor import GPT4RoIProcessor
from gpt4roi.processing.tokenizer import add_special_tokens
from gpt4roi.processing.vlm_processor import RegionProcessor
from gpt4roi.train import work_dir
from gpt4roi.train.adapters import check_adapters, quantization_config
from gpt4roi.train.arguments import ModelArguments, RegionArguments, TrainingArguments
from gpt4roi.train.command_line import Arguments
from gpt4roi.train.param_groups import parse_modules
from gpt4roi.train.resume import realign

logger = logging.getLogger(__name__)


def open_model(
    checkpoint: Path | None, model_args: ModelArguments, args: TrainingArguments
) -> tuple[GPT4RoIForConditionalGeneration, GPT4RoIProcessor]:
    """Opens a checkpoint, a GPT4RoI folder, or builds a model from a language model and a vision tower.

    A checkpoint whose weights are sharded is loaded by the trainer, over the model that the run began with.
    """
    source = Path(model_args.model_name_or_path)
    if checkpoint is not None and any(checkpoint.glob("model*.safetensors")):
        source = checkpoint
    else:
        work_dir.require_finished(source)
    if is_gpt4roi_folder(source):
        quantization = quantization_config(model_args)
        processor = _own_processor(source, model_args)
        model = load_model(
            str(source),
            dtype=torch.float32,
            attn_implementation=model_args.attn_implementation,
            quantization_config=quantization,
        )
    elif args.stage == 2:
        raise _not_a_start_of_stage_2(source)
    elif is_pretrained_vlm(source):
        model, processor = _add_regions(source, model_args)
    else:
        model, processor = _build(model_args)
    add_stop_tokens(model, processor)
    if args.device.type == "cpu" and not model_args.quantization:
        realign(model)
    return model, processor


def is_pretrained_vlm(source: Path) -> bool:
    """Tells whether a folder holds a vision-language model of transformers, for regions to be added to."""
    return source.is_dir() and identify(source).kind in (LLAVA, VISION_LANGUAGE)


def is_on_base(source: Path) -> bool:
    """Tells whether a folder holds a pretrained vision-language model, with regions or without."""
    return source.is_dir() and identify(source).kind in (LLAVA, VISION_LANGUAGE, REGIONS_ON_BASE)


def meta_vlm(model_args: ModelArguments) -> Any:
    """Builds a pretrained vision-language model with regions on the meta device; reads its configuration alone."""
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    shape = {"tokens_per_region": model_args.tokens_per_region, "region_shape": model_args.region_shape}
    return add_regions(model, 0, **shape).train()


def _add_regions(source: Path, model_args: ModelArguments) -> tuple[Any, GPT4RoIProcessor]:
    """Opens a pretrained vision-language model and its processor, and adds a fresh region encoder."""
    options = {"dtype": torch.float32, "attn_implementation": model_args.attn_implementation}
    given = {name: value for name, value in options.items() if value is not None}
    try:
        with damaged_file_named(source):
            model = AutoModelForImageTextToText.from_pretrained(str(source), trust_remote_code=False, **given)
        processor = RegionProcessor.from_pretrained(
            source,
            model_max_length=model_args.model_max_length,
            system_prompt=model_args.system_prompt,
            tokens_per_region=model_args.tokens_per_region,
            region_shape=model_args.region_shape,
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{source}: cannot be opened ({load_failure(source, error)})") from None
    shape = {"tokens_per_region": model_args.tokens_per_region, "region_shape": model_args.region_shape}
    return add_regions(model, processor.region_token_id, **shape), processor


def _not_a_start_of_stage_2(source: Path) -> InputError:
    return InputError(f"{source}: not a GPT4RoI folder; stage 2 starts from stage 1's: --model_name_or_path exp/stage1")


def _own_processor(folder: Path, model_args: ModelArguments) -> GPT4RoIProcessor:
    """Opens a GPT4RoI folder's processor, with the length that is asked for; refuses another prompt format."""
    processor = load_processor(str(folder))
    asked = model_args.prompt_format
    if asked not in (None, processor.prompt_format):
        raise InputError(
            f"--prompt_format {asked} does not fit the model: {folder} was trained with "
            f"{processor.prompt_format!r}; leave it out"
        )
    if model_args.model_max_length in (None, processor.model_max_length):
        return processor
    return with_settings(processor, model_max_length=model_args.model_max_length)


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
        tokens_per_region=model_args.tokens_per_region,
        region_shape=model_args.region_shape,
        classifier_head=model_args.classifier_head,
        mm_vision_select_layer=model_args.mm_vision_select_layer,
        mm_use_im_start_end=model_args.mm_use_im_start_end,
        attn_implementation=model_args.attn_implementation,
    )


def trainable_modules(model_args: ModelArguments, args: TrainingArguments) -> tuple[str, ...]:
    """Returns the modules to train: those asked for, and the projector where this run starts it untrained."""
    modules = parse_modules(args.trainable_modules)
    source = Path(model_args.model_name_or_path)
    is_new = not (is_gpt4roi_folder(source) or is_pretrained_vlm(source))
    if is_new and model_args.pretrain_mm_mlp_adapter is None and "mm_projector" not in modules:
        logger.info("mm_projector starts untrained (no --pretrain_mm_mlp_adapter), so it is trained too")
        modules += ("mm_projector",)
    return modules


def check_choices(arguments: Arguments, planning: bool = False) -> None:
    """Raises InputError for choices about the model that contradict each other, before anything is opened.

    With `planning`, stage 2 may be planned from parts, before there is a folder of stage 1.
    """
    model_args, _, region_args, args = arguments
    source = Path(model_args.model_name_or_path)
    found = identify(source)
    if any(Path(str(args.output_dir)).glob("checkpoint-*")) and not planning:
        if model_args.lora_r and not source.is_dir():
            raise InputError(
                f"{source}: the folder that this run's adapters are for is gone; put it there again to resume"
            )
    else:  # a run that is resumed needs no start
        if found.kind in (ADAPTER, DELTA, UNFINISHED):
            found.require_model()
        found.require_unquantized("trained")
        if args.stage == 2 and not found.is_model and not planning:
            raise _not_a_start_of_stage_2(source)
        if is_pretrained_vlm(source):
            require_known_family(str(found.config.get("model_type")), None, str(source))
        elif not found.is_model and source.is_dir():  # one of the hub is looked at after the data
            decoder_config(source)
    if is_on_base(source):
        _check_for_base(arguments)
    elif not found.is_model:
        _check_new_parts(model_args, region_args)
    check_adapters(model_args, parse_modules(args.trainable_modules), found.is_model or planning)


def _check_for_base(arguments: Arguments) -> None:
    """Raises InputError for choices that a pretrained vision-language model leaves no room for."""
    model_args, data_args, region_args, _ = arguments
    for given, flag in (
        (model_args.pretrain_mm_mlp_adapter, "pretrain_mm_mlp_adapter"),
        (model_args.classifier_head, "classifier_head"),
        (model_args.image_grid_size, "image_grid_size"),
        (model_args.prompt_format not in (None, "chat"), f"prompt_format {model_args.prompt_format}"),
        (data_args.feature_cache, "feature_cache"),
        (region_args.align_regions or region_args.align_weight, "align_regions and --align_weight"),
    ):
        if given:
            raise InputError(
                f"--{flag}: {model_args.model_name_or_path} is a pretrained vision-language model, whose own tower, "
                "projector, images and chat template are used; leave it out"
            )


def _check_new_parts(model_args: ModelArguments, region_args: RegionArguments) -> None:
    """Raises InputError for choices of a new model that contradict each other."""
    if model_args.region_encoder_type == "light":
        return
    if model_args.image_grid_size is not None:
        raise InputError("--image_grid_size is for --region_encoder_type light; leave one out or give the other")
    if model_args.classifier_head is not None:
        raise InputError("--classifier_head is for --region_encoder_type light; leave one out or give the other")
    if region_args.region_mixup or region_args.region_noise:
        raise InputError("--region_mixup and --region_noise are for --region_encoder_type light")


def planned_config(given: ModelArguments) -> GPT4RoIConfig:
    """Returns the configuration that a training's model would have; reads configurations and a tokenizer alone."""
    source = Path(given.model_name_or_path)
    if not is_gpt4roi_folder(source):
        return _config_of_parts(given)
    values = read_json_object(source / "config.json")
    if not is_original(values):
        if "vision_config" not in values:
            values["vision_config"] = vision_config(find_tower(values["mm_vision_tower"], source)).to_dict()
        return GPT4RoIConfig.from_dict(values)
    names = ("model_type", "mm_hidden_size", "architectures")
    text = {name: value for name, value in values.items() if not name.startswith("mm_") and name not in names}
    tower = vision_config(find_tower(str(values.get("mm_vision_tower") or given.vision_tower), source))
    return GPT4RoIConfig(tower, {**text, "model_type": "llama"})


def _config_of_parts(given: ModelArguments) -> GPT4RoIConfig:
    text = decoder_config(given.model_name_or_path)
    tokenizer = load_tokenizer(given.model_name_or_path)
    add_special_tokens(tokenizer, pad_with_unknown=(given.prompt_format or "v0") in V1_FORMATS)
    text.vocab_size = max(text.vocab_size, len(tokenizer))
    location = find_tower(given.vision_tower)
    of_regions = ("region_encoder_type", "tokens_per_region", "region_shape", "image_grid_size")
    names = (*of_regions, "mm_vision_select_layer", "mm_use_im_start_end")
    settings = {name: getattr(given, name) for name in names}
    if given.classifier_head is not None:
        settings |= read_classifier_head(Path(given.classifier_head))[0]
    return config_of_parts(location, vision_config(location), text, tokenizer, **settings)


def meta_model(config: GPT4RoIConfig, attention: str | None = None) -> GPT4RoIForConditionalGeneration:
    """Builds a model on the meta device, where tensors have shapes and types alone, and take no memory."""
    # What only runs on a GPU saves what sdpa saves.
    config.text_config._attn_implementation = "sdpa" if (attention or "").startswith("flash") else attention
    with torch.device("meta"):
        return GPT4RoIForConditionalGeneration(config).train()


def runnable(model: nn.Module) -> FakeTensorMode:
    """Gives a meta model fake tensors that can be run in 16 bits too, and returns the mode to run it in."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                value = torch.empty(parameter.shape, dtype=parameter.dtype)
                setattr(module, name, nn.Parameter(value, requires_grad=parameter.requires_grad))
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return mode
