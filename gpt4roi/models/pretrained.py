"""`from_pretrained` for folders of both formats (ours and the original's), and loading of vision towers."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from gpt4roi.errors import InputError
from gpt4roi.io.auto_map import InPackage, write_auto_file
from gpt4roi.io.hub import ACCESS, is_hub_name, local_folder
from gpt4roi.io.model_folders import is_original, load_failure
from gpt4roi.io.weight_files import damaged_file_named, read_tensors, tensor_names
from gpt4roi.models import original_format
from gpt4roi.models.configuration import GPT4RoIConfig
from gpt4roi.models.model_card import remove_empty_card, write_model_card
from gpt4roi.models.original_format import TOWER_PREFIX, portable_name

logger = logging.getLogger(__name__)

NAMES_SHOWN = 8

UNQUANTIZED = ("vision_tower", "mm_projector", "region_encoder")
"""Modules that stay in their precision when the language model is quantized."""

HOW_TO_NAME = (
    "give the tower's folder or its hub name (as openai/clip-vit-large-patch14) as vision_tower=, on the command line "
    "as --vision-tower"
)


class GPT4RoIPreTrainedModel(InPackage, PreTrainedModel):
    """Base class whose `from_pretrained` opens both formats and refuses missing or unexpected tensors."""

    @classmethod
    def from_pretrained(  # type: ignore[override]  # transformers spells out arguments that are passed on here
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *args: Any,
        vision_tower: str | Path | None = None,
        **kwargs: Any,
    ) -> Any:
        """Opens a folder or a hub name, in our format or the original's.

        Args:
            pretrained_model_name_or_path: Folder or hub name; None with `config` and `state_dict`.
            *args: As transformers takes them.
            vision_tower: Folder or hub name of the tower, for a folder that was saved without it.
            **kwargs: As transformers takes them; `torch_dtype` is `dtype`. A quantization_config leaves UNQUANTIZED as
                they are.

        Raises:
            InputError: The folder is of another kind, the tower is not found, or any tensor is missing, unexpected or
                of another shape.
        """
        path = kwargs.pop("path", pretrained_model_name_or_path)  # its name in version 0.2
        if path is None:
            return super().from_pretrained(path, *args, **kwargs)
        access: dict[str, Any] = {name: kwargs.get(name) for name in ACCESS}
        folder = local_folder(path, subfolder=kwargs.pop("subfolder", ""), **access)
        values = original_format.read_model_config(folder)
        wants_info = kwargs.pop("output_loading_info", False)
        tolerant = kwargs.get("ignore_mismatched_sizes", False)
        # Mismatches are collected, so that all of them can be named at once.
        kwargs = {**kwargs, "ignore_mismatched_sizes": True, "output_loading_info": True}
        if "torch_dtype" in kwargs:
            kwargs["dtype"] = kwargs.pop("torch_dtype")
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = exclude_from_quantization(kwargs["quantization_config"])
        if is_original(values):
            model, info = _open_original(super().from_pretrained, folder, values, vision_tower, kwargs)
        elif _lacks_tower(folder, kwargs):
            model, info = _open_without_tower(super().from_pretrained, folder, values, vision_tower, kwargs)
        else:
            load: Any = super().from_pretrained  # typed as if there were no output_loading_info
            model, info = load(str(folder), *args, **kwargs)
        model.name_or_path = str(path)
        drawn_by_us = tolerant and not model.vision_tower.is_pyramid  # timm offers no way to draw single tensors
        if not drawn_by_us:
            check_missing_keys(str(path), info, TOWER_PREFIX if tolerant else "")
        model.vision_tower.requires_grad_(False)
        kind = "the original's format" if is_original(values) else "our format"
        logger.info("opened %s, in %s: %s", path, kind, summarize_model(model))
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any) -> None:
        """Saves the model as transformers does, with a model card and the file of its auto_map beside it."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            adapted = getattr(self, "_hf_peft_config_loaded", False)  # by add_adapter: the adapter alone was saved
            write_model_card(Path(save_directory), self.config.to_dict(), "adapter" if adapted else "model")
            if not adapted:
                write_auto_file(Path(save_directory))

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        """Uploads for push_to_hub, with our card where transformers replaced it by an empty one."""
        remove_empty_card(Path(working_dir))
        write_model_card(Path(working_dir), self.config.to_dict())
        return super()._upload_modified_files(working_dir, *args, **kwargs)


def exclude_from_quantization(quantization: Any) -> Any:
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
    return not any(name.startswith(TOWER_PREFIX) for name in tensor_names(folder))


def check_missing_keys(path: str, info: dict[str, Any], prefix: str = "") -> None:
    """Raises InputError that lists missing, unexpected and mis-shaped tensors whose name begins with `prefix`."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys"):
        names = sorted(name for name in info[kind] if name.startswith(prefix))
        if names:
            problems.append(f"{len(names)} {kind.split('_')[0]}: {_some(names)}")
    mismatched = [entry for entry in info["mismatched_keys"] if entry[0].startswith(prefix)]
    if mismatched:
        wrong = [f"{name} is {list(got)}, expected {list(wanted)}" for name, got, wanted in mismatched]
        problems.append(f"{len(wrong)} of another shape: {_some(sorted(wrong))}")
    if problems:
        raise InputError(f"{path}: the weights do not fit the configuration; {'; '.join(problems)}")


def _some(names: list[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _open_original(open_ours: Any, folder: Path, values: dict[str, Any], tower: str | Path | None, kwargs: dict) -> Any:
    """Translates an original-format folder and opens it as one of ours."""
    tensors = read_tensors(folder)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    rows = next(iter(shapes.get(original_format.EMBEDDINGS, ())), None)
    # Without a table, config_values tells what is missing.
    ids = {} if rows is None else original_format.token_ids(folder, rows)
    arguments = original_format.config_values(values, shapes, ids)
    name, backbone = _tower_of(folder, values, tower, round_to_half=True)
    config = GPT4RoIConfig(**arguments, vision_config=backbone.config, mm_vision_tower=portable_name(name))
    return _join(open_ours, folder, config, original_format.rename(tensors), backbone, kwargs)


def _open_without_tower(
    open_ours: Any, folder: Path, values: dict[str, Any], tower: str | Path | None, kwargs: dict
) -> Any:
    """Opens a folder of ours whose weights lack the tower, with the one that the caller or its config names."""
    half = values.get("region_encoder_type", "gpt4roi") == "gpt4roi"
    name, backbone = _tower_of(folder, values, tower, round_to_half=half)
    if "vision_config" not in values:
        values = {key: value for key, value in values.items() if key not in ("image_size", "image_seq_length")}
    named = {"vision_config": backbone.config, "mm_vision_tower": portable_name(name)}
    config = GPT4RoIConfig.from_dict({**values, **named})
    if kwargs.get("dtype") is None and isinstance(values.get("dtype"), str):
        kwargs = {**kwargs, "dtype": getattr(torch, values["dtype"])}
    return _join(open_ours, folder, config, read_tensors(folder), backbone, kwargs)


def _tower_of(
    folder: Path, values: dict[str, Any], tower: str | Path | None, round_to_half: bool
) -> tuple[str, PreTrainedModel]:
    """Returns the name and the tower of a folder that was saved without it."""
    name = values.get("mm_vision_tower") if tower is None else str(tower)
    if not name:
        raise InputError(f"{folder}: it holds no vision tower and its config names none; {HOW_TO_NAME}")
    return name, load_tower(find_tower(name, folder), round_to_half)


def _join(
    open_ours: Any,
    folder: Path,
    config: GPT4RoIConfig,
    state: dict[str, torch.Tensor],
    backbone: PreTrainedModel,
    kwargs: dict,
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
    candidates = original_format.tower_candidates(name, folder)
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return str(candidate)
    if is_hub_name(name):
        return name
    looked = ", ".join(map(str, candidates))
    raise InputError(f"vision tower {name!r} not found: looked for a config.json in {looked}; {HOW_TO_NAME}")


def load_tower(location: str, round_to_half: bool = False) -> PreTrainedModel:
    """Loads a vision tower from a folder or the hub, in float32.

    Args:
        location: Folder or hub name, as find_tower returns it.
        round_to_half: Round its weights to float16 first, as the original did.

    Raises:
        InputError: It cannot be opened, or its file lacks any of its tensors.
    """
    try:
        config = AutoConfig.from_pretrained(location, trust_remote_code=False)
        config = getattr(config, "vision_config", config)
        if config.model_type == "timm_backbone":
            tower, missing = _load_pyramid(config, Path(location))
        else:
            with damaged_file_named(location), _quiet_transformers():
                tower, info = AutoModel.from_pretrained(
                    location,
                    config=config,
                    dtype=torch.float32,
                    output_loading_info=True,
                    trust_remote_code=False,
                )
            missing = sorted(info["missing_keys"])
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"vision tower {location}: cannot be opened ({load_failure(location, error)}); {HOW_TO_NAME}"
        ) from None
    if missing:
        raise InputError(f"vision tower {location}: {len(missing)} tensors are missing: {_some(missing)}")
    if round_to_half:
        for parameter in tower.parameters():
            parameter.data = original_format.through_half(parameter.data)
    return tower


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Leaves out transformers' report of what a whole CLIP has beside its tower; what is missing is an error anyway."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _load_pyramid(config: PreTrainedConfig, folder: Path) -> tuple[PreTrainedModel, list[str]]:
    """Builds a timm backbone and fills it from a folder, which transformers would look for among timm's own."""
    tower = AutoModel.from_config(config)
    result = tower.load_state_dict(read_tensors(folder), strict=False)
    return tower.float(), sorted(result.missing_keys)


def summarize_model(model: Any) -> str:
    """Returns one line about what a model is made of."""
    text = model.config.text_config
    count = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{type(model.language_model).__name__} of {text.num_hidden_layers} layers and width {text.hidden_size}, "
        f"{model.get_input_embeddings().weight.shape[0]} tokens, tower {model.config.vision_config.model_type} at "
        f"{model.config.image_size} px, region encoder {model.config.region_encoder_type}, "
        f"{count / 1e6:.1f}M parameters in {str(model.dtype).removeprefix('torch.')}"
    )
