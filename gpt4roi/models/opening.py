"""Opening a folder: one of ours, or one in the original's format."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, GenerationConfig, PreTrainedConfig, PreTrainedModel

from gpt4roi.checkpoint import legacy
from gpt4roi.constants import IMAGE_END_TOKEN, IMAGE_PATCH_TOKEN, IMAGE_START_TOKEN, REGION_TOKEN
from gpt4roi.errors import InputError
from gpt4roi.models.configuration import GPT4RoIConfig

logger = logging.getLogger(__name__)

NAMES_SHOWN = 8


class OpensFolders:
    """Gives a model class a `from_pretrained` that opens both formats and leaves no tensor to chance."""

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *args: Any, vision_tower: str | Path | None = None, **kwargs: Any
    ) -> Any:
        """Opens a folder or a hub name, in our format or the original's.

        vision_tower: folder or hub name of the tower, for an original-format folder that lies without it.
        Other arguments are those of transformers. Raises InputError where the folder is of another kind, the tower
        is not found, or any tensor is missing, unexpected or of another shape.
        """
        if path is None:
            return super().from_pretrained(path, *args, **kwargs)
        values = _config_values(str(path), kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        tolerant = kwargs.get("ignore_mismatched_sizes", False)
        # Mismatches are collected, so that all of them can be named at once.
        kwargs = {**kwargs, "ignore_mismatched_sizes": True, "output_loading_info": True}
        if legacy.is_original(values):
            model, info = _open_original(super().from_pretrained, Path(path), values, vision_tower, kwargs)
            model.name_or_path = str(path)
        elif values.get("model_type") == GPT4RoIConfig.model_type:
            model, info = super().from_pretrained(str(path), *args, **kwargs)
        else:
            raise InputError(
                f"{path}: model_type is {values.get('model_type')!r}, expected gpt4roi or the original's llava; "
                "to start a training from a language model, name it as --model_name_or_path"
            )
        if not tolerant:
            _refuse_gaps(str(path), info)
        model.vision_tower.requires_grad_(False)
        kind = "the original's format" if legacy.is_original(values) else "our format"
        logger.info("opened %s, in %s: %s", path, kind, describe(model))
        return (model, info) if wants_info else model


def _config_values(path: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Reads a config.json, from a folder or the hub."""
    if Path(path).is_dir():
        return legacy.read_json(Path(path, kwargs.get("subfolder", ""), "config.json"))
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise InputError(f"{path}: no such folder")
    wanted = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs}
    try:
        values, _ = PreTrainedConfig.get_config_dict(path, **wanted)
    except OSError as error:
        raise InputError(f"{path}: neither a folder nor a model on the hub ({str(error).splitlines()[0]})") from None
    return values


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
    tensors = legacy.read_tensors(folder)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    arguments = legacy.config_values(values, shapes, _token_ids(folder, values, shapes))
    name = values["mm_vision_tower"] if tower is None else tower
    backbone = load_tower(find_tower(str(name), folder), round_to_half=True)
    config = GPT4RoIConfig(**arguments, vision_config=backbone.config, mm_vision_tower=relative_name(str(name)))
    state = legacy.rename(tensors)
    state |= {f"vision_tower.backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    kwargs = {**kwargs, "dtype": kwargs.pop("torch_dtype", kwargs.get("dtype"))}
    if kwargs["dtype"] in (None, "auto"):
        kwargs["dtype"] = tensors["model.embed_tokens.weight"].dtype
    model, info = open_ours(None, config=config, state_dict=state, **kwargs)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, info


def _token_ids(folder: Path, values: dict[str, Any], shapes: dict[str, Any]) -> dict[str, int]:
    """Reads the ids of the added tokens; without added_tokens.json they are the last rows, in the original's order."""
    names = {
        "image_token_id": IMAGE_PATCH_TOKEN,
        "region_token_id": REGION_TOKEN,
        "image_start_token_id": IMAGE_START_TOKEN,
        "image_end_token_id": IMAGE_END_TOKEN,
    }
    path = folder / "added_tokens.json"
    if not path.is_file():
        rows = next(iter(shapes.get("model.embed_tokens.weight", ())), 0)
        last_rows = (rows - 5, rows - 4, rows - 2, rows - 1)
        return dict(zip(names, last_rows, strict=True))
    ids = legacy.read_json(path)
    absent = [token for token in names.values() if token not in ids]
    if absent:
        raise InputError(f"{path}: no id for {', '.join(absent)}; it knows {', '.join(sorted(ids))}")
    return {name: ids[token] for name, token in names.items()}


def relative_name(name: str) -> str:
    """Returns a tower's name as a saved configuration may hold it: no path of this machine."""
    return Path(name).name if name.startswith((".", "/", "~")) or Path(name).is_absolute() else name


def find_tower(name: str, folder: Path | None = None) -> str:
    """Looks for a vision tower in a checkpoint's folder, then in the working directory; else the name is a hub's.

    Raises InputError that says how to name it, where the name can be no hub name and no such folder exists.
    """
    here = [Path(name), Path(Path(name).name)]
    places = here[:1] if folder is None else [folder / place for place in here] + here
    for place in places:
        if (place / "config.json").is_file():
            return str(place)
    if "/" in name and not name.startswith((".", "/", "~")) and name.count("/") == 1:
        return name
    looked = ", ".join(str(place) for place in places)
    raise InputError(
        f"vision tower {name!r} not found: looked for a config.json in {looked}; give the tower's folder or its hub "
        "name (as openai/clip-vit-large-patch14) as vision_tower"
    )


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
            tower, info = AutoModel.from_pretrained(place, config=config, dtype=torch.float32, output_loading_info=True)
            missing = sorted(info["missing_keys"])
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"vision tower {place}: cannot be opened ({str(error).splitlines()[0]})") from None
    if missing:
        raise InputError(f"vision tower {place}: {len(missing)} tensors are missing: {_some(missing)}")
    if round_to_half:
        for parameter in tower.parameters():
            parameter.data = legacy.through_half(parameter.data)
    return tower


def _load_pyramid(config: PreTrainedConfig, folder: Path) -> tuple[PreTrainedModel, list[str]]:
    """Builds a timm backbone and fills it from a folder, which transformers would look for among timm's own."""
    tower = AutoModel.from_config(config)
    result = tower.load_state_dict(legacy.read_tensors(folder), strict=False)
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
