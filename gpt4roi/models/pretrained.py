"""Opening a folder: one of ours, or one in the original's format."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, GenerationConfig, PreTrainedConfig, PreTrainedModel

from gpt4roi.errors import InputError
from gpt4roi.io.hub import ACCESS, is_hub_name, local_folder
from gpt4roi.models import original_format
from gpt4roi.models.configuration import GPT4RoIConfig

logger = logging.getLogger(__name__)

NAMES_SHOWN = 8
TOWER_PREFIX = "vision_tower."

UNQUANTIZED = ("vision_tower", "mm_projector", "region_encoder")
"""What stays in its precision when the language model is quantized."""

HOW_TO_NAME = (
    "give the tower's folder or its hub name (as openai/clip-vit-large-patch14) as vision_tower=, on the command line "
    "as --vision-tower"
)


class OpensFolders:
    """Gives a model class a `from_pretrained` that opens both formats and leaves no tensor to chance."""

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *args: Any, vision_tower: str | Path | None = None, **kwargs: Any
    ) -> Any:
        """Opens a folder or a hub name, in our format or the original's.

        vision_tower: folder or hub name of the tower, for a folder that lies without it.
        Other arguments are those of transformers; `torch_dtype` is `dtype`. A quantization_config leaves UNQUANTIZED
        as they are. Raises InputError where the folder is of another kind, the tower is not found, or any tensor is
        missing, unexpected or of another shape.
        """
        if path is None:
            return super().from_pretrained(path, *args, **kwargs)
        folder = Path(local_folder(path, **{name: kwargs.get(name) for name in ACCESS}), kwargs.pop("subfolder", ""))
        values = _config_values(folder)
        wants_info = kwargs.pop("output_loading_info", False)
        tolerant = kwargs.get("ignore_mismatched_sizes", False)
        # Mismatches are collected, so that all of them can be named at once.
        kwargs = {**kwargs, "ignore_mismatched_sizes": True, "output_loading_info": True}
        if "torch_dtype" in kwargs:
            kwargs["dtype"] = kwargs.pop("torch_dtype")
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = spare_our_modules(kwargs["quantization_config"])
        if original_format.is_original(values):
            model, info = _open_original(super().from_pretrained, folder, values, vision_tower, kwargs)
        elif _lacks_tower(folder, kwargs):
            model, info = _open_without_tower(super().from_pretrained, folder, values, vision_tower, kwargs)
        else:
            model, info = super().from_pretrained(str(folder), *args, **kwargs)
        model.name_or_path = str(path)
        if not tolerant:
            _refuse_gaps(str(path), info)
        model.vision_tower.requires_grad_(False)
        kind = "the original's format" if original_format.is_original(values) else "our format"
        logger.info("opened %s, in %s: %s", path, kind, describe(model))
        return (model, info) if wants_info else model


def _config_values(folder: Path) -> dict[str, Any]:
    """Reads a folder's config.json; raises InputError where it is none of GPT4RoI."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} holds an adapter, not a model; join it with its base: gpt4roi merge-adapter BASE {folder} OUT"
        )
    values = original_format.read_json(folder / "config.json")
    if not original_format.is_original(values) and values.get("model_type") != GPT4RoIConfig.model_type:
        raise InputError(
            f"{folder}: model_type is {values.get('model_type')!r}, expected gpt4roi or the original's llava; "
            "to start a training from a language model, name it as --model_name_or_path"
        )
    return values


def spare_our_modules(quantization: Any) -> Any:
    """Returns a copy of a quantization's configuration, object or dict, that leaves UNQUANTIZED in their precision."""
    quantization = copy.deepcopy(quantization)
    is_dict = isinstance(quantization, dict)
    for name in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if name in quantization if is_dict else hasattr(quantization, name):
            own = (quantization[name] if is_dict else getattr(quantization, name)) or ["lm_head"]
            spared = list(dict.fromkeys([*own, *UNQUANTIZED]))
            if is_dict:
                quantization[name] = spared
            else:
                setattr(quantization, name, spared)
            return quantization
    if is_dict:
        return quantization | {"llm_int8_skip_modules": ["lm_head", *UNQUANTIZED]}
    return quantization


def _lacks_tower(folder: Path, kwargs: dict[str, Any]) -> bool:
    """Tells whether the weights of a folder of ours are without the tower's."""
    if kwargs.get("variant") or kwargs.get("state_dict") is not None:
        return False
    return not any(name.startswith(TOWER_PREFIX) for name in original_format.tensor_names(folder))


def _refuse_gaps(path: str, info: dict[str, Any]) -> None:
    """Raises InputError that lists missing, unexpected and mis-shaped tensors."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            problems.append(f"{len(info[kind])} {kind.split('_')[0]}: {_some(sorted(info[kind]))}")
    if info["mismatched_keys"]:
        wrong = [f"{name} is {list(got)}, expected {list(wanted)}" for name, got, wanted in info["mismatched_keys"]]
        problems.append(f"{len(wrong)} of another shape: {_some(sorted(wrong))}")
    if problems:
        raise InputError(f"{path}: the weights do not fit the configuration; {'; '.join(problems)}")


def _some(names: list[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _open_original(open_ours: Any, folder: Path, values: dict[str, Any], tower: str | Path | None, kwargs: dict) -> Any:
    """Translates an original-format folder and opens it as one of ours."""
    tensors = original_format.read_tensors(folder)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    rows = next(iter(shapes.get(original_format.EMBEDDINGS, ())), None)
    ids = (
        {} if rows is None else original_format.token_ids(folder, rows)
    )  # without a table, config_values says what is missing
    arguments = original_format.config_values(values, shapes, ids)
    name, backbone = _tower_of(folder, values, tower, round_to_half=True)
    config = GPT4RoIConfig(
        **arguments, vision_config=backbone.config, mm_vision_tower=original_format.relative_name(name)
    )
    return _join(open_ours, folder, config, original_format.rename(tensors), backbone, kwargs)


def _open_without_tower(
    open_ours: Any, folder: Path, values: dict[str, Any], tower: str | Path | None, kwargs: dict
) -> Any:
    """Opens a folder of ours whose weights lack the tower, with the one that its config or the caller names."""
    half = values.get("region_encoder_type", "gpt4roi") == "gpt4roi"
    name, backbone = _tower_of(folder, values, tower, round_to_half=half)
    if "vision_config" not in values:
        values = {key: value for key, value in values.items() if key not in ("image_size", "image_seq_length")}
    named = {"vision_config": backbone.config, "mm_vision_tower": original_format.relative_name(name)}
    config = GPT4RoIConfig.from_dict({**values, **named})
    if kwargs.get("dtype") is None and isinstance(values.get("dtype"), str):
        kwargs = {**kwargs, "dtype": getattr(torch, values["dtype"])}
    return _join(open_ours, folder, config, original_format.read_tensors(folder), backbone, kwargs)


def _tower_of(
    folder: Path, values: dict[str, Any], tower: str | Path | None, round_to_half: bool
) -> tuple[str, PreTrainedModel]:
    """Returns name and tower of a folder that lies without it."""
    name = values.get("mm_vision_tower") if tower is None else str(tower)
    if not name:
        raise InputError(f"{folder}: it holds no vision tower and its config names none; {HOW_TO_NAME}")
    return name, load_tower(find_tower(name, folder), round_to_half)


def _join(
    open_ours: Any, folder: Path, config: GPT4RoIConfig, state: dict, backbone: PreTrainedModel, kwargs: dict
) -> Any:
    """Opens weights under our names together with a tower; in the weights' own dtype unless another is asked for."""
    own = state[f"language_model.{original_format.EMBEDDINGS}"].dtype
    state = state | {f"{TOWER_PREFIX}backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    kwargs = {name: value for name, value in kwargs.items() if name not in ("config", "state_dict")}
    if kwargs.get("dtype") in (None, "auto"):
        kwargs["dtype"] = own
    model, info = open_ours(None, config=config, state_dict=state, **kwargs)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, info


def find_tower(name: str, folder: Path | None = None) -> str:
    """Looks for a vision tower in a checkpoint's folder, then in the working directory; else the name is a hub's.

    Raises InputError that says how to name it, where the name can be no hub name and no such folder exists.
    """
    places = original_format.tower_places(name, folder)
    for place in places:
        if (place / "config.json").is_file():
            return str(place)
    if is_hub_name(name):
        return name
    looked = ", ".join(str(place) for place in places)
    raise InputError(f"vision tower {name!r} not found: looked for a config.json in {looked}; {HOW_TO_NAME}")


def load_tower(place: str, round_to_half: bool = False) -> PreTrainedModel:
    """Loads a vision tower from a folder or the hub, in float32.

    round_to_half: round its weights to float16 first, as the original did. Raises InputError where it cannot be had,
    or where its file lacks any of its tensors.
    """
    try:
        config = AutoConfig.from_pretrained(place)
        config = getattr(config, "vision_config", config)
        if config.model_type == "timm_backbone":
            tower, missing = _load_pyramid(config, Path(place))
        else:
            with original_format.naming_damaged(place):
                tower, info = AutoModel.from_pretrained(
                    place, config=config, dtype=torch.float32, output_loading_info=True
                )
            missing = sorted(info["missing_keys"])
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"vision tower {place}: cannot be opened ({str(error).splitlines()[0]}); {HOW_TO_NAME}"
        ) from None
    if missing:
        raise InputError(f"vision tower {place}: {len(missing)} tensors are missing: {_some(missing)}")
    if round_to_half:
        for parameter in tower.parameters():
            parameter.data = original_format.through_half(parameter.data)
    return tower


def _load_pyramid(config: PreTrainedConfig, folder: Path) -> tuple[PreTrainedModel, list[str]]:
    """Builds a timm backbone and fills it from a folder, which transformers would look for among timm's own."""
    tower = AutoModel.from_config(config)
    result = tower.load_state_dict(original_format.read_tensors(folder), strict=False)
    return tower.float(), sorted(result.missing_keys)


def describe(model: Any) -> str:
    """Says in one line what a model is made of."""
    text = model.config.text_config
    count = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{type(model.language_model).__name__} of {text.num_hidden_layers} layers and width {text.hidden_size}, "
        f"{model.get_input_embeddings().weight.shape[0]} tokens, tower {model.config.vision_config.model_type} at "
        f"{model.config.image_size} px, region encoder {model.config.region_encoder_type}, "
        f"{count / 1e6:.1f}M parameters in {str(model.dtype).removeprefix('torch.')}"
    )
