"""What lies in a folder besides the numbers, in our format and in the original's: names, config, tokenizer files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from gpt4roi.checkpoint.streams import WeightFolder
from gpt4roi.errors import InputError
from gpt4roi.models import original_format

OURS = "hf"
ORIGINAL = "original"

OUR_MODEL_TYPE = "gpt4roi"
TOWER_PREFIX = "vision_tower."
ADDED_TOKENS_FILE = "added_tokens.json"

PROCESSOR_FILE = "processor_config.json"

_TOKENIZERS = ("tokenizer.model", "tokenizer.json")
_COPIED = (
    *_TOKENIZERS,
    ADDED_TOKENS_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    PROCESSOR_FILE,
)
_TORCH_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_LONGEST = 2048
_TOWER_FOLDER = "clip"
_CLIP = "clip_vision_model"
_BUILT_IN = {
    "region_encoder_type": "gpt4roi",
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


def name_in(layout: str, original_name: str) -> str | None:
    """Returns the name that a tensor of the original has in `layout`, None where it has no place there."""
    return original_format.to_ours(original_name) if layout == OURS else original_name


def with_original_names(weights: WeightFolder) -> WeightFolder:
    """Lists the tensors of a folder of either format under the original's names; a tower inside is left out."""
    renamed = [
        dataclasses.replace(tensor, name=original_format.to_original(name))
        for name, tensor in weights.tensors.items()
        if not name.startswith(TOWER_PREFIX)
    ]
    return dataclasses.replace(weights, tensors={tensor.name: tensor for tensor in renamed})


def read_config(folder: Path) -> dict[str, Any]:
    """Reads config.json of a folder; raises InputError when it is missing or of another kind of model."""
    config = original_format.read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in (OUR_MODEL_TYPE, original_format.LEGACY_MODEL_TYPE):
        raise InputError(
            f"{folder / 'config.json'} is of a {kind!r} model; expected {OUR_MODEL_TYPE!r} or the original's "
            f"{original_format.LEGACY_MODEL_TYPE!r}: give a folder of GPT4RoI"
        )
    return config


def layout_of(config: dict[str, Any]) -> str:
    """Says in which of the two formats a config.json is."""
    return OURS if config["model_type"] == OUR_MODEL_TYPE else ORIGINAL


def main_dtype(weights: WeightFolder) -> str:
    """Returns the type of the embedding table, which stands for the whole model's."""
    return weights.tensors["model.embed_tokens.weight"].dtype


def our_config(
    config: dict[str, Any], weights: WeightFolder, dtype: str, vision_config: dict[str, Any] | None
) -> bytes:
    """Translates the original's config.json for `weights` under the original's names, which settle every size.

    dtype: type of the result's weights. vision_config: the tower's, None when it stays outside.
    """
    shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
    rows = shapes["model.embed_tokens.weight"][0]
    values = original_format.config_values(config, shapes, original_format.token_ids(weights.path, rows))
    values["text_config"] = {key: v for key, v in values["text_config"].items() if key not in _NOT_OF_TEXT}
    values |= {
        "model_type": OUR_MODEL_TYPE,
        "architectures": ["GPT4RoIForConditionalGeneration"],
        "dtype": _TORCH_NAMES[dtype],
        "mm_vision_tower": portable_name(config.get("mm_vision_tower")),
    }
    return _json_bytes(values | ({} if vision_config is None else {"vision_config": vision_config}))


def processor_config(config: dict[str, Any], vision_config: dict[str, Any] | None, tokenizer: bytes | None) -> bytes:
    """Makes the processor's file for a model that comes from the original.

    The tower decides the image's size, config.json and tokenizer_config.json the longest sequence.
    """
    longest = json.loads(tokenizer or b"{}").get("model_max_length") or _LONGEST
    values = {
        "processor_class": "GPT4RoIProcessor",
        "prompt_format": "v0",
        "model_max_length": int(min(longest, config.get("max_position_embeddings", _LONGEST))),
        "use_image_start_end": config.get("mm_use_im_start_end", True),
    }
    if vision_config is not None:
        side = vision_config["image_size"]
        values |= {"image_size": side, "image_seq_length": (side // vision_config["patch_size"]) ** 2}
    return _json_bytes(values)


def original_config(config: dict[str, Any], weights: WeightFolder, dtype: str) -> bytes:
    """Makes the original's config.json for `weights` under the original's names; `dtype` is that of the result.

    Raises InputError for a model that the original has no form for.
    """
    if layout_of(config) == ORIGINAL:
        values = {name: value for name, value in config.items() if name != "_name_or_path"}
        values["mm_vision_tower"] = portable_name(config.get("mm_vision_tower"))
        return _json_bytes(values | {"torch_dtype": _TORCH_NAMES[dtype]})
    _check_has_original_form(config)
    text, projector = config["text_config"], weights.tensors["model.mm_projector.weight"]
    values = {key: text[key] for key in _TEXT_KEYS if key in text}
    theta = text.get("rope_theta", (text.get("rope_parameters") or {}).get("rope_theta", 10000.0))
    values |= {} if theta == 10000.0 else {"rope_theta": theta}
    values |= {
        "model_type": original_format.LEGACY_MODEL_TYPE,
        "architectures": ["SPILlavaMPTForCausalLM"],
        "torch_dtype": _TORCH_NAMES[dtype],
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
    found["vision_config"] = (config.get("vision_config") or {}).get("model_type", _CLIP)
    wanted = _BUILT_IN | {"text_config": "llama", "vision_config": _CLIP}
    other = [f"{name} is {found[name]!r} and not {wanted[name]!r}" for name in wanted if found[name] != wanted[name]]
    if other:
        raise InputError(f"the original's format has no form for this model: {', '.join(other)}; keep it as it is")


def side_files(folder: Path, layout: str) -> dict[str, bytes]:
    """Collects the tokenizer and generation files of `folder` for a folder in `layout`, by name.

    Raises InputError when there is no tokenizer: a model without the ids of its added tokens is of no use.
    """
    files = {name: (folder / name).read_bytes() for name in _COPIED if (folder / name).is_file()}
    if not any(name in files for name in _TOKENIZERS):
        raise InputError(
            f"{folder} has no tokenizer (neither {' nor '.join(_TOKENIZERS)}); download it into the folder, with "
            f"{ADDED_TOKENS_FILE} and tokenizer_config.json"
        )
    if layout == ORIGINAL and ADDED_TOKENS_FILE not in files and (ids := original_format.added_tokens(folder)):
        files[ADDED_TOKENS_FILE] = _json_bytes(ids)
    return files


def tower_name(config: dict[str, Any]) -> str:
    """Returns the name under which a folder in the original's format looks for its tower."""
    return portable_name(config.get("mm_vision_tower")) or _TOWER_FOLDER


def portable_name(tower: str | None) -> str | None:
    """Returns a tower's name without the folders of the machine that wrote it."""
    return None if tower is None else original_format.relative_name(tower)


def _json_bytes(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True).encode() + b"\n"
