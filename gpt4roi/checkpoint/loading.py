"""Opening saved models and their processors for inference or training, from folders of both formats or the hub."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from transformers.utils import PROCESSOR_NAME

from gpt4roi.checkpoint.lora import check_base, merge, open_adapter
from gpt4roi.constants import ADDED_TOKENS
from gpt4roi.devices import (
    check_quantization,
    choose_device,
    choose_dtype,
    compile_model,
    move_for_inference,
    quantization_config,
)
from gpt4roi.errors import InputError
from gpt4roi.io.hub import ACCESS, local_folder
from gpt4roi.io.json_files import read_json_object
from gpt4roi.io.model_folders import ADAPTER, REGIONS_ON_BASE, identify, is_original, load_failure
from gpt4roi.models import GPT4RoIForConditionalGeneration
from gpt4roi.models.original_format import TOKEN_OF_ID
from gpt4roi.models.pretrained import UNQUANTIZED, find_tower
from gpt4roi.models.vlm_base import open_regions_vlm
from gpt4roi.processing.processor import SAVED_SETTINGS, GPT4RoIProcessor
from gpt4roi.processing.tokenizer import add_special_tokens
from gpt4roi.processing.vlm_processor import RegionProcessor

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.*", "*.model", "*.tiktoken")

logger = logging.getLogger(__name__)


def load_model(path: str | Path, **kwargs: Any) -> GPT4RoIForConditionalGeneration:
    """Opens a folder of ours or of the original's, or a hub name, in the saved dtype unless one is given.

    Args:
        path: Folder or hub name.
        **kwargs: Of GPT4RoIForConditionalGeneration.from_pretrained; None leaves one out.

    Raises:
        InputError: The folder cannot be used.
    """
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    place = {name: value for name, value in kwargs.items() if name in (*ACCESS, "subfolder")}
    if identify(local_folder(path, weights=False, **place)).kind == REGIONS_ON_BASE:
        return open_regions_vlm(
            local_folder(path, **place), **{name: value for name, value in kwargs.items() if name not in place}
        )
    return GPT4RoIForConditionalGeneration.from_pretrained(path, **kwargs)


def open_model(
    path: str | Path,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    vision_tower: str | Path | None = None,
    quantize: str | None = None,
    compiled: bool = False,
) -> GPT4RoIForConditionalGeneration:
    """Opens a saved model for inference on its device, and logs where and how it computes.

    Args:
        path: Folder or hub name.
        device: As choose_device takes it.
        dtype: As choose_dtype takes it.
        vision_tower: Folder or hub name of the tower, for a model that was saved without it.
        quantize: One of QUANTIZATIONS, for the language model.
        compiled: Compiles the language model (torch.compile).

    Raises:
        InputError: The machine or the folder does not allow it.
    """
    target = choose_device(device)
    precision = choose_dtype(target, dtype)
    found = identify(local_folder(path, weights=False))
    base = found.base_folder() if found.kind == ADAPTER else path
    stored = identify(local_folder(base, weights=False)).require_quantization_library().quantization
    if found.kind == ADAPTER:
        check_base(found.path, base)
    if quantize is not None:
        check_quantization(quantize, target)
        if stored or found.kind == ADAPTER:
            what = (
                f"stores quantized weights ({stored})" if stored else "holds an adapter: merge it with its base first"
            )
            raise InputError(f"{path} {what}; leave the quantization ({quantize}) out")
    if stored or quantize:
        model = _open_quantized(base, vision_tower, stored, quantize, target, precision)
    else:
        model = load_model(base, vision_tower=vision_tower)
    if found.kind == ADAPTER:
        model = merge(open_adapter(model, found.path))
    if not (stored or quantize):
        model = move_for_inference(model, target, precision)
    if compiled:
        compile_model(model)
    extras = [f"the language model in {quantize or stored}"] * bool(quantize or stored) + ["compiled"] * compiled
    logger.info("computing on %s", ", ".join([f"{target} in {str(precision).removeprefix('torch.')}", *extras]))
    return model


def _open_quantized(
    path: str | Path,
    vision_tower: str | Path | None,
    stored: str | None,
    quantize: str | None,
    device: torch.device,
    dtype: torch.dtype,
) -> GPT4RoIForConditionalGeneration:
    """Opens a model on its device whose language model is stored quantized, or is quantized now."""
    config = None if quantize is None else quantization_config(quantize, dtype)
    placed: dict[str, Any] = {"dtype": dtype, "device_map": {"": str(device)}}
    try:
        model = load_model(path, vision_tower=vision_tower, quantization_config=config, **placed)
    except InputError:
        raise
    except (ImportError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        if stored is None:
            raise
        raise InputError(
            f"{path} stores quantized weights ({stored}), which cannot be opened here: {load_failure(path, error)}; "
            "take the unquantized weights"
        ) from None
    for name in UNQUANTIZED if isinstance(model, GPT4RoIForConditionalGeneration) else UNQUANTIZED[-1:]:
        getattr(model, name).to(torch.float32 if device.type == "cpu" else dtype)
    return model


def load_processor(path: str | Path, vision_tower: str | Path | None = None, **access: Any) -> GPT4RoIProcessor:
    """Opens the processor saved with a model; an original-format folder gets the one its model was trained with.

    Args:
        path: Folder or hub name.
        vision_tower: Folder or hub name of the tower, for a folder that was saved without it.
        **access: As in hub.ACCESS.

    Raises:
        InputError: The folder holds none, or one that has other token ids than the model.
    """
    found = identify(local_folder(path, weights=False, **access))
    if found.kind == ADAPTER:
        of_base = load_processor(found.base_folder(), vision_tower, **access)
        return with_settings(of_base, **saved_settings(found.path))
    folder, values = found.path, found.require_model().config
    if found.kind == REGIONS_ON_BASE:
        return RegionProcessor.from_pretrained(folder)
    load = _original_processor if is_original(values) else _our_processor
    processor = load(folder, values, vision_tower)
    ids = {"image_token_id": processor.image_patch_token_id, "region_token_id": processor.region_token_id}
    for name, got in ids.items():
        if values.get(name, got) != got:
            raise InputError(
                f"{path}: {TOKEN_OF_ID[name]} is number {got} in the tokenizer and {values[name]} in config.json; the "
                "tokenizer belongs to another model: copy the one that was saved with the weights"
            )
    return processor


def _our_processor(folder: Path, values: dict[str, Any], tower: str | Path | None) -> GPT4RoIProcessor:
    try:
        processor = GPT4RoIProcessor.from_pretrained(str(folder), trust_remote_code=False)
    except InputError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: no processor can be opened there ({load_failure(folder, error)})") from None
    name = tower or values.get("mm_vision_tower")
    if "vision_config" in values or name is None:
        return processor
    # The folder was written without a tower, so the image's size was not known yet.
    return with_settings(processor, **_image_settings(find_tower(str(name), folder)))


def with_settings(processor: GPT4RoIProcessor, **changes: Any) -> GPT4RoIProcessor:
    """Returns a copy of a processor with some of its settings changed."""
    return processor.with_settings(**changes)


def warn_of_prompts(language_model: str | Path, tokenizer: Tokenizer, prompt_format: str) -> None:
    """Warns where a model with a chat template would be trained with other prompts, and names the flag."""
    if prompt_format != "chat" and tokenizer.chat_template:
        logger.warning(
            "%s has a chat template, and is trained with %s prompts, which it does not know: give --prompt_format chat "
            "(prompt_format='chat') to keep its own",
            language_model,
            prompt_format,
        )


def add_stop_tokens(model: Any, processor: GPT4RoIProcessor) -> None:
    """Lets `generate` stop where the training teaches answers to end: adds those tokens to the generation settings."""
    settings = model.generation_config
    own = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    ends = list(dict.fromkeys(token for token in (*own, *processor.stop_token_ids) if token is not None))
    settings.eos_token_id = ends[0] if len(ends) == 1 else ends or None


def _image_settings(location: str) -> dict[str, Any]:
    """Returns the processor's arguments that follow from a ViT."""
    config = vision_config(location)
    mean, std = image_norm(location, config)
    length = (config.image_size // config.patch_size) ** 2
    return {"image_size": config.image_size, "image_mean": mean, "image_std": std, "image_seq_length": length}


def _original_processor(folder: Path, values: dict[str, Any], tower: str | Path | None) -> GPT4RoIProcessor:
    tokenizer = load_tokenizer(folder)
    _add_missing_tokens(tokenizer, folder, values.get("vocab_size"))
    location = find_tower(str(values["mm_vision_tower"] if tower is None else tower), folder)
    settings = {
        "prompt_format": "v0",
        "model_max_length": min(tokenizer.model_max_length, values.get("max_position_embeddings", 2048)),
        "use_image_start_end": values.get("mm_use_im_start_end", True),
        "image_first": values.get("sep_image_conv_front", False),
        **_image_settings(location),
    }
    return GPT4RoIProcessor(tokenizer, **settings | saved_settings(folder))


def saved_settings(folder: Path) -> dict[str, Any]:
    """Returns what a folder of the original's format, or an adapter's, keeps of the processor it was trained with.

    Not the image's size, which follows from the tower that is opened. Empty for a folder that our commands did not
    write.
    """
    path = folder / PROCESSOR_NAME
    saved = read_json_object(path) if path.is_file() else {}
    if saved.get("processor_class") != GPT4RoIProcessor.__name__:
        return {}
    return {
        name: saved[name] for name in SAVED_SETTINGS if name in saved and name not in ("image_size", "image_seq_length")
    }


def _add_missing_tokens(tokenizer: Tokenizer, folder: Path, rows: int | None) -> None:
    """Adds the tokens that a trained model's tokenizer lacks, where that gives exactly the rows of its table.

    With or without a padding token of their own, models have one row more or less; adding blindly would shift what
    every row means. Raises InputError with both numbers where the rows cannot be named.
    """
    vocabulary = tokenizer.get_vocab()
    if all(token in vocabulary for token in ADDED_TOKENS) or rows is None:
        return
    known, lacking = len(tokenizer), rows - len(tokenizer)
    if lacking == len(ADDED_TOKENS) + 1:
        tokenizer.pad_token = None
    add_special_tokens(tokenizer, pad_with_unknown=lacking == len(ADDED_TOKENS))
    if len(tokenizer) != rows:
        raise InputError(
            f"{folder}: the tokenizer has {known} tokens and {len(tokenizer)} with the added ones, the model {rows} "
            "rows; download the added_tokens.json and tokenizer_config.json that belong to the weights"
        )


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Opens a tokenizer from a folder or the hub; raises InputError where there is none."""
    if Path(folder).is_dir() and not any(any(Path(folder).glob(name)) for name in _TOKENIZER_FILES):
        raise InputError(
            f"{folder}: no tokenizer can be opened there (expected one of {', '.join(_TOKENIZER_FILES)}); copy the "
            "tokenizer's files there"
        )
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: no tokenizer can be opened there ({load_failure(folder, error)})") from None


def vision_config(location: str) -> Any:
    """Reads a tower's configuration; of a model of images and texts only the part for images."""
    try:
        config = AutoConfig.from_pretrained(location, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"vision tower {location}: cannot be opened ({load_failure(location, error)})") from None
    return getattr(config, "vision_config", config)


def _preprocessing(location: str) -> dict[str, Any]:
    path = Path(location) / "preprocessor_config.json"
    return read_json_object(path) if path.is_file() else {}


def image_norm(location: str, config: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of RGB values in [0, 1]: the tower's own, else its family's."""
    own = _preprocessing(location)
    if "image_mean" in own and "image_std" in own:
        return tuple(own["image_mean"]), tuple(own["image_std"])
    kind = config.model_type
    if kind == "timm_backbone":
        import timm

        settings: Any = timm.get_pretrained_cfg(config.backbone)
        if settings:
            return settings.mean, settings.std
    if kind.startswith("clip"):
        return tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD)
    if kind.startswith("siglip"):
        return tuple(IMAGENET_STANDARD_MEAN), tuple(IMAGENET_STANDARD_STD)
    return tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)


def tower_image_size(location: str, config: Any) -> int:
    """Returns S, the side in pixels of the images that a tower was made for."""
    if isinstance(getattr(config, "image_size", None), int):
        return config.image_size
    size = _preprocessing(location).get("size", {})
    side = size.get("height") or size.get("shortest_edge")
    if side is None:
        raise InputError(
            f"vision tower {location}: neither its config.json nor a preprocessor_config.json names a size"
        )
    return side
