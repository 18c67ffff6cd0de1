"""Conversion between our checkpoint format and the original's: names, config, tokenizer files; the same bytes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils import PROCESSOR_NAME

from gpt4roi.checkpoint.clip_tower import CLIP_MODEL_TYPE, ClipTower, export_tower, open_clip_tower, tower_name
from gpt4roi.checkpoint.tensor_files import StoredTensor, WeightFolder, chunk_buffer, dtype_name, open_weights
from gpt4roi.checkpoint.writer import DEFAULT_SHARD_SIZE, FolderPlan, PlannedTensor, Shards, plan_folder
from gpt4roi.errors import InputError
from gpt4roi.io.model_folders import ORIGINAL_MODEL_TYPE
from gpt4roi.models import original_format
from gpt4roi.models.configuration import GPT4RoIConfig
from gpt4roi.models.original_format import (
    ADDED_TOKENS_FILE,
    EMBEDDINGS,
    TOWER_PREFIX,
    portable_name,
)

OURS = "hf"
ORIGINAL = "original"

_TOKENIZERS = ("tokenizer.model", "tokenizer.json")
_COPIED = (
    *_TOKENIZERS,
    ADDED_TOKENS_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    PROCESSOR_NAME,
)
_MAX_LENGTH = 2048
_BUILT_IN = {
    "region_encoder_type": "gpt4roi",
    "tokens_per_region": 1,
    "region_shape": "box",
    "projector_type": "linear",
    "region_level_stride": 3,
    "fusion_groups": 64,
    "roi_sampling_ratio": 2,
}
_NOT_OF_TEXT = ("torch_dtype", "dtype", "transformers_version")
_TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


def plan_convert(
    source: str | Path,
    target: str | Path,
    to: str,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    vision_tower: str | None = None,
) -> FolderPlan:
    """Plans the folder `target` with the model of `source` in the format `to`, `hf` or `original`.

    Every tensor keeps its bytes and dtype; rotary buffers of old versions are left out of our format. The original's
    vision tower, found beside the source or named, goes into our format's weights, and out into a folder beside the
    original's.

    Raises:
        InputError: The folder is in that format already, or the original has no form for its model.
    """
    weights = open_weights(source)
    config = original_format.read_model_config(weights.path)
    if format_of(config) == to:
        raise InputError(f"{source} is in the format {to!r} already; use it as it is")
    sources = {"source": weights}
    if to == ORIGINAL:
        refuse_tower(vision_tower)
        tensors, files, beside = _to_original(config, weights)
        return plan_folder(Path(target), tensors, files, sources, max_shard_size, overwrite, beside)
    tower = open_clip_tower(config, weights.path, vision_tower)
    tensors, files = _to_ours(config, weights, tower)
    plan = plan_folder(Path(target), tensors, files, sources | tower.sources, max_shard_size, overwrite)
    plan.notes += tower.notes
    return plan


def refuse_tower(vision_tower: str | None) -> None:
    """Raises InputError where a tower is named for a folder in the original's format."""
    if vision_tower is not None:
        raise InputError(
            f"--vision-tower {vision_tower} is for the format hf, which holds the tower; in the original's it is a "
            "folder of its own: leave the flag out, and put the tower's folder into the result's"
        )


def _to_ours(config: dict, weights: WeightFolder, tower: ClipTower) -> tuple[list[PlannedTensor], dict[str, bytes]]:
    dtype = weights.tensors[EMBEDDINGS].dtype
    named = [(original_format.to_ours(name), stored) for name, stored in weights.tensors.items()]
    tensors = [_copied(stored, name) for name, stored in named if name is not None]
    return tensors + tower.plan_tensors(dtype), our_files(config, weights, dtype, tower)


def _to_original(config: dict, weights: WeightFolder) -> tuple[list[PlannedTensor], dict[str, bytes], Shards]:
    original = with_original_names(weights)
    tensors = [_copied(stored, name) for name, stored in original.tensors.items()]
    files = original_files(config, original, original.tensors[EMBEDDINGS].dtype)
    of_tower, tower_files, folder = export_tower(config, weights)
    if not of_tower:
        return tensors, files, {}
    files |= {f"{folder}/{name}": content for name, content in tower_files.items()}
    return tensors, files, {f"{folder}/model.safetensors": [_copied(stored, stored.name) for stored in of_tower]}


def _copied(stored: StoredTensor, name: str) -> PlannedTensor:
    """Plans a tensor whose bytes are copied as they are."""

    def chunks() -> Iterator[memoryview]:
        yield from stored.read(chunk_buffer(stored.itemsize))

    return PlannedTensor(name, stored.dtype, stored.shape, chunks)


def with_original_names(weights: WeightFolder) -> WeightFolder:
    """Lists the tensors of a folder of either format under the original's names; a tower inside is left out."""
    renamed = [
        dataclasses.replace(tensor, name=original_format.to_original(name))
        for name, tensor in weights.tensors.items()
        if not name.startswith(TOWER_PREFIX)
    ]
    return dataclasses.replace(weights, tensors={tensor.name: tensor for tensor in renamed})


def format_of(config: dict[str, Any]) -> str:
    """Tells in which of the two formats a config.json is."""
    return OURS if config["model_type"] == GPT4RoIConfig.model_type else ORIGINAL


def our_files(config: dict[str, Any], weights: WeightFolder, dtype: str, tower: ClipTower) -> dict[str, bytes]:
    """Makes the small files of our format.

    Args:
        config: The source's config.json, in the original's format.
        weights: The source's, under the original's names.
        dtype: Of the result's weights.
        tower: Decides the image's size.
    """
    files = _copied_files(weights.path, OURS)
    files["config.json"] = _our_config(config, weights, dtype, tower.config)
    of_tokenizer = files.get("tokenizer_config.json")
    files.setdefault(PROCESSOR_NAME, _processor_config(config, tower.config, of_tokenizer))
    return files


def original_files(config: dict[str, Any], weights: WeightFolder, dtype: str) -> dict[str, bytes]:
    """Makes the small files of the original's format; arguments as our_files takes them.

    Raises:
        InputError: The original has no form for the model.
    """
    files = _copied_files(weights.path, ORIGINAL)
    files["config.json"] = _original_config(config, weights, dtype)
    return files


def _copied_files(folder: Path, to: str) -> dict[str, bytes]:
    """Collects the tokenizer and generation files of `folder` for a folder in the format `to`, by name.

    Without a tokenizer this is an InputError: a model without the ids of its added tokens is of no use.
    """
    files = {name: (folder / name).read_bytes() for name in _COPIED if (folder / name).is_file()}
    if not any(name in files for name in _TOKENIZERS):
        raise InputError(
            f"{folder} has no tokenizer (neither {' nor '.join(_TOKENIZERS)}); download it into the folder, with "
            f"{ADDED_TOKENS_FILE} and tokenizer_config.json"
        )
    if to == ORIGINAL and ADDED_TOKENS_FILE not in files and (ids := original_format.added_tokens(folder)):
        files[ADDED_TOKENS_FILE] = _json_bytes(ids)
    return files


def _our_config(
    config: dict[str, Any], weights: WeightFolder, dtype: str, vision_config: dict[str, Any] | None
) -> bytes:
    shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
    rows = shapes[EMBEDDINGS][0]
    values = original_format.config_values(config, shapes, original_format.token_ids(weights.path, rows))
    values["text_config"] = {key: v for key, v in values["text_config"].items() if key not in _NOT_OF_TEXT}
    values |= {
        "model_type": GPT4RoIConfig.model_type,
        "architectures": ["GPT4RoIForConditionalGeneration"],
        "dtype": dtype_name(dtype),
        "mm_vision_tower": portable_name(config.get("mm_vision_tower")),
    }
    return _json_bytes(values | ({} if vision_config is None else {"vision_config": vision_config}))


def _processor_config(config: dict[str, Any], vision_config: dict[str, Any] | None, tokenizer: bytes | None) -> bytes:
    max_length = json.loads(tokenizer or b"{}").get("model_max_length") or _MAX_LENGTH
    values = {
        "processor_class": "GPT4RoIProcessor",
        "prompt_format": "v0",
        "model_max_length": int(min(max_length, config.get("max_position_embeddings", _MAX_LENGTH))),
        "use_image_start_end": config.get("mm_use_im_start_end", True),
        "image_first": config.get("sep_image_conv_front", False),
    }
    if vision_config is not None:
        side = vision_config["image_size"]
        values |= {"image_size": side, "image_seq_length": (side // vision_config["patch_size"]) ** 2}
    return _json_bytes(values)


def _original_config(config: dict[str, Any], weights: WeightFolder, dtype: str) -> bytes:
    if format_of(config) == ORIGINAL:
        values = {name: value for name, value in config.items() if name != "_name_or_path"}
        values["mm_vision_tower"] = portable_name(config.get("mm_vision_tower"))
        return _json_bytes(values | {"torch_dtype": dtype_name(dtype)})
    _check_has_original_form(config)
    text, projector = config["text_config"], weights.tensors["model.mm_projector.weight"]
    values = {key: text[key] for key in _TEXT_KEYS if key in text}
    theta = text.get("rope_theta", (text.get("rope_parameters") or {}).get("rope_theta", 10000.0))
    values |= {} if theta == 10000.0 else {"rope_theta": theta}
    values |= {
        "model_type": ORIGINAL_MODEL_TYPE,
        "architectures": ["SPILlavaMPTForCausalLM"],
        "torch_dtype": dtype_name(dtype),
        "mm_hidden_size": projector.shape[1],
        "mm_use_im_start_end": config.get("mm_use_im_start_end", True),
        "mm_vision_select_layer": config.get("mm_vision_select_layer", -2),
        "mm_vision_tower": tower_name(config),
        "use_mm_proj": True,
    }
    return _json_bytes(values)


def _check_has_original_form(config: dict[str, Any]) -> None:
    """Raises InputError when a model of ours differs from what the original's code has built in."""
    found = {name: config.get(name, value) for name, value in _BUILT_IN.items()}
    found["text_config"] = (config.get("text_config") or {}).get("model_type")
    found["vision_config"] = (config.get("vision_config") or {}).get("model_type", CLIP_MODEL_TYPE)
    wanted = _BUILT_IN | {"text_config": "llama", "vision_config": CLIP_MODEL_TYPE}
    other = [f"{name} is {found[name]!r} and not {wanted[name]!r}" for name in wanted if found[name] != wanted[name]]
    if other:
        raise InputError(f"the original's format has no form for this model: {', '.join(other)}; keep it as it is")


def _json_bytes(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True).encode() + b"\n"
