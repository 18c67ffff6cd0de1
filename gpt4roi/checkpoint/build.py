"""New models built from parts: a language model, a vision tower and, optionally, a LLaVA projector."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from gpt4roi.checkpoint.loading import (
    add_stop_tokens,
    image_norm,
    load_tokenizer,
    tower_image_size,
    warn_of_prompts,
)
from gpt4roi.constants import IMAGE_END_TOKEN, IMAGE_PATCH_TOKEN, IMAGE_START_TOKEN, REGION_TOKEN
from gpt4roi.errors import InputError
from gpt4roi.io.model_folders import ADAPTER, DELTA, GGUF, LLAVA, UNFINISHED, identify, load_failure
from gpt4roi.io.weight_files import damaged_file_named, read_tensor_file
from gpt4roi.models import GPT4RoIConfig, GPT4RoIForConditionalGeneration
from gpt4roi.models.classifier_head import read_classifier_head
from gpt4roi.models.original_format import portable_name
from gpt4roi.models.pretrained import find_tower, load_tower, summarize_model
from gpt4roi.models.vocabulary import embed_texts, embedding_rms, grow_vocabulary, initialize_rows
from gpt4roi.processing.processor import GPT4RoIProcessor
from gpt4roi.processing.tokenizer import add_special_tokens

V1_FORMATS = ("v1", "llava_v1")

_STATE_TYPES = {"linear_attention", "mamba", "conv", "hybrid", "hybrid_sliding"}
"""Kinds of layers that keep a running state, as transformers names them."""

_PROCESSOR_SETTINGS = ("prompt_format", "system_prompt", "model_max_length")

logger = logging.getLogger(__name__)


def build_from_parts(
    language_model: str | Path,
    vision_tower: str | Path,
    region_encoder_type: str = "gpt4roi",
    projector: str | Path | None = None,
    classifier_head: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
    **settings: Any,
) -> tuple[GPT4RoIForConditionalGeneration, GPT4RoIProcessor]:
    """Joins a language model and a vision tower to a model whose region encoder is new.

    Tokens are added once, in the original's order, and initialised as the original did.

    Args:
        language_model: Folder or hub name of a decoder.
        vision_tower: Folder or hub name of a ViT or a timm backbone.
        region_encoder_type: `gpt4roi` or `light`.
        projector: A LLaVA mm_projector file.
        classifier_head: A file of save_classifier_head: what the tower's own classifier makes of its last map.
        dtype: Of the model.
        attn_implementation: Of the language model.
        **settings: Of the processor (prompt_format, system_prompt, model_max_length), and fields of GPT4RoIConfig that
            differ from its defaults, such as image_size, by default the tower's.

    Returns:
        The model and its processor.

    Raises:
        InputError: A part cannot be used.
    """
    of_processor = {name: settings.pop(name) for name in _PROCESSOR_SETTINGS if name in settings}
    prompt_format = of_processor.setdefault("prompt_format", "v0")
    tokenizer = load_tokenizer(language_model)
    warn_of_prompts(language_model, tokenizer, prompt_format)
    text_model = load_language_model(language_model, dtype, attn_implementation)
    scale = embedding_rms(text_model)
    added = _extend_vocabulary(text_model, tokenizer, pad_with_unknown=prompt_format in V1_FORMATS)

    location = find_tower(str(vision_tower))
    backbone = load_tower(location, round_to_half=region_encoder_type == "gpt4roi")
    settings |= {"region_encoder_type": region_encoder_type, "mm_vision_tower": portable_name(str(vision_tower))}
    if classifier_head is not None:
        of_head, head_tensors = read_classifier_head(Path(classifier_head))
        settings |= of_head
    config = config_of_parts(location, backbone.config, text_model.config, tokenizer, **settings)
    model: Any = GPT4RoIForConditionalGeneration(config, backbone, text_model)
    model = model.to(dtype)
    for module in (model.region_encoder, model.mm_projector):
        if hasattr(module, "init_output_rms"):
            module.init_output_rms(scale)
    if classifier_head is not None:
        model.region_encoder.head.load(head_tensors, _name_embeddings(model, tokenizer))
    if projector is not None:
        load_projector(model, Path(projector))
    model.generation_config = _generation_config(text_model, tokenizer)
    mean, std = image_norm(location, backbone.config)
    processor = GPT4RoIProcessor(
        tokenizer,
        image_size=model.config.image_size,
        image_mean=mean,
        image_std=std,
        image_seq_length=model.config.image_seq_length,
        use_image_start_end=model.config.mm_use_im_start_end,
        tokens_per_region=model.config.tokens_per_region,
        region_shape=model.config.region_shape,
        **of_processor,
    )
    add_stop_tokens(model, processor)
    summary = summarize_model(model)
    logger.info("built from %s and %s: %s; %d tokens added", language_model, vision_tower, summary, len(added))
    return model.eval(), processor


def config_of_parts(location: str, tower: Any, text: Any, tokenizer: Tokenizer, **settings: Any) -> GPT4RoIConfig:
    """Returns the configuration of a model of these parts.

    Args:
        location: Of the vision tower, which image_size follows by default.
        tower: The tower's configuration.
        text: The language model's.
        tokenizer: With the added tokens.
        **settings: Fields of GPT4RoIConfig; None leaves the default.
    """
    vocabulary = tokenizer.get_vocab()
    return GPT4RoIConfig(
        vision_config=tower,
        text_config=text,
        image_size=settings.pop("image_size", None) or tower_image_size(location, tower),
        image_token_id=vocabulary[IMAGE_PATCH_TOKEN],
        region_token_id=vocabulary[REGION_TOKEN],
        image_start_token_id=vocabulary[IMAGE_START_TOKEN],
        image_end_token_id=vocabulary[IMAGE_END_TOKEN],
        **{name: value for name, value in settings.items() if value is not None},
    )


def _extend_vocabulary(text_model: PreTrainedModel, tokenizer: Tokenizer, pad_with_unknown: bool) -> dict[str, int]:
    """Adds the special tokens to the tokenizer and their rows to the model's tables; returns the new tokens' ids."""
    known = tokenizer.get_vocab()
    add_special_tokens(tokenizer, pad_with_unknown=pad_with_unknown)
    added = {token: token_id for token, token_id in tokenizer.get_vocab().items() if token not in known}
    grow_vocabulary(text_model, len(tokenizer))
    initialize_rows(text_model, added, tokenizer.pad_token)
    return added


def decoder_config(location: str | Path) -> PreTrainedConfig:
    """Reads a decoder's configuration alone.

    Raises:
        InputError: It cannot be had, or no training can start from such a model.
    """
    if Path(location).is_dir():
        found = identify(location)
        if found.kind in (ADAPTER, DELTA, LLAVA, UNFINISHED, GGUF):
            found.require_model()
        found.require_unquantized("trained")
    try:
        config = AutoConfig.from_pretrained(str(location), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"language model {location}: cannot be opened ({load_failure(location, error)})") from None
    if getattr(config, "quantization_config", None):
        raise InputError(f"language model {location}: its weights are stored quantized; take the unquantized ones")
    decoder: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if decoder is None:
        raise InputError(f"language model {location}: {config.model_type} is no decoder language model of transformers")
    is_causal = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not is_causal:
        raise InputError(
            f"language model {location}: {config.model_type} reads in both directions, so that it sees the answers "
            "that it should learn; choose a decoder"
        )
    if decoder._is_stateful or _STATE_TYPES & {*(getattr(config, "layer_types", None) or ())}:
        raise InputError(
            f"language model {location}: {config.model_type} keeps a running state in place of attention to every "
            "token, which prompts that share an image cannot be branched from; choose a decoder with attention in "
            "every layer"
        )
    return config


def load_language_model(
    location: str | Path, dtype: torch.dtype, attn_implementation: str | None = None
) -> PreTrainedModel:
    """Opens a decoder language model; raises InputError where it cannot be had, is of no use, or lacks tensors."""
    decoder_config(location)
    chosen: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    load: Any = AutoModelForCausalLM.from_pretrained  # typed as if there were no output_loading_info
    try:
        with damaged_file_named(location):
            model, info = load(str(location), dtype=dtype, output_loading_info=True, trust_remote_code=False, **chosen)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"language model {location}: cannot be opened ({load_failure(location, error)})") from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(f"language model {location}: {len(missing)} tensors are missing: {', '.join(missing[:8])}")
    return model


def _name_embeddings(model: Any, tokenizer: Tokenizer) -> torch.Tensor:
    """Returns float[N, k * D], the class names in the language model's token space."""
    ids = [tokenizer(" " + name, add_special_tokens=False).input_ids for name in model.config.class_names]
    table, count = model.get_input_embeddings().weight.detach(), model.config.tokens_per_region
    return embed_texts(ids, table, count, cast(int, tokenizer.eos_token_id)).flatten(1)


def _generation_config(text_model: PreTrainedModel, tokenizer: Tokenizer) -> GenerationConfig:
    """Greedy, and ending where the language model ends."""
    own = text_model.generation_config
    return GenerationConfig(
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@torch.no_grad()
def load_projector(model: Any, path: Path) -> None:
    """Fills mm_projector from a LLaVA file, and the rows of <im_start> and <im_end> where the file has them.

    The keys' order and prefixes do not matter. Of a table of embedding rows the last two are taken: in the vocabularies
    that LLaVA projectors were trained with, <im_start> and <im_end> come last.

    Raises:
        InputError: The file holds no single linear layer of the model's sizes.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such projector file")
    tensors = read_tensor_file(path)
    wanted = model.mm_projector.state_dict()
    found: dict[str, torch.Tensor] = {}
    rows = None
    for name, tensor in tensors.items():
        if name.endswith("embed_tokens.weight"):
            rows = tensor
        elif name in wanted or name.endswith(("mm_projector.weight", "mm_projector.bias")):
            found[name.split(".")[-1]] = tensor
    shapes = {name: list(tensor.shape) for name, tensor in found.items()}
    expected = {name: list(tensor.shape) for name, tensor in wanted.items()}
    if shapes != expected:
        raise InputError(
            f"{path}: expected a linear mm_projector of {expected}, found {shapes} among {sorted(tensors)}"
        )
    model.mm_projector.load_state_dict(found)
    if rows is not None:
        table = model.get_input_embeddings().weight
        if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] != table.shape[1]:
            raise InputError(f"{path}: embedding rows are {list(rows.shape)}, expected [2 or more, {table.shape[1]}]")
        ids = [model.config.image_start_token_id, model.config.image_end_token_id]
        table[ids] = rows[-2:].to(table.dtype)
