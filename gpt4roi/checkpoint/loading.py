"""Opens models with their processors, and builds new ones from parts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from gpt4roi.constants import ADDED_TOKENS, IMAGE_END_TOKEN, IMAGE_PATCH_TOKEN, IMAGE_START_TOKEN, REGION_TOKEN
from gpt4roi.devices import (
    check_quantization,
    choose_device,
    choose_dtype,
    compile_model,
    move_for_inference,
    quantization_config,
)
from gpt4roi.errors import InputError
from gpt4roi.io.hub import local_folder
from gpt4roi.models import GPT4RoIConfig, GPT4RoIForConditionalGeneration, original_format
from gpt4roi.models.pretrained import describe, find_tower, load_tower
from gpt4roi.models.vocabulary import embedding_rms, grow_vocabulary, initialize_rows
from gpt4roi.processing.processor import GPT4RoIProcessor
from gpt4roi.processing.tokenizer import add_special_tokens

logger = logging.getLogger(__name__)

CLIP_NORM = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET_NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF_NORM = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and standard deviation of RGB values in [0, 1], as families of towers expect them."""

V1_FORMATS = ("v1", "llava_v1")


def load_model(path: str | Path, **kwargs: Any) -> GPT4RoIForConditionalGeneration:
    """Opens a folder of ours or of the original's, or a hub name.

    Arguments are those of GPT4RoIForConditionalGeneration.from_pretrained; the dtype is the saved one unless given.
    Raises InputError where the folder cannot be used.
    """
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
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
    if quantize is None:
        model = move_for_inference(load_model(path, vision_tower=vision_tower), target, precision)
    else:
        check_quantization(quantize, target)
        config = quantization_config(quantize, precision)
        model = load_model(
            path, vision_tower=vision_tower, quantization_config=config, dtype=precision, device_map={"": str(target)}
        )
    if compiled:
        compile_model(model)
    extras = [f"the language model in {quantize}"] * bool(quantize) + ["compiled"] * compiled
    logger.info("computing on %s", ", ".join([f"{target} in {str(precision).removeprefix('torch.')}", *extras]))
    return model


def load_processor(path: str | Path, vision_tower: str | Path | None = None, **access: Any) -> GPT4RoIProcessor:
    """Opens the processor saved with a model; an original-format folder gets the one its model was trained with.

    vision_tower: folder or hub name of the tower, for a folder that lies without it.
    access: as in hub.ACCESS. Raises InputError where the folder holds none, or one that numbers tokens otherwise than
    the model does.
    """
    folder = local_folder(path, weights=False, **access)
    values = original_format.read_json(folder / "config.json")
    if original_format.is_original(values):
        processor = _original_processor(folder, values, vision_tower)
    else:
        processor = _our_processor(folder, values, vision_tower)
    for name, got in (
        ("image_token_id", processor.image_patch_token_id),
        ("region_token_id", processor.region_token_id),
    ):
        if values.get(name, got) != got:
            raise InputError(
                f"{path}: {original_format.TOKEN_OF_ID[name]} is number {got} in the tokenizer and {values[name]} in "
                "config.json; the tokenizer belongs to another model: copy the one that was saved with the weights"
            )
    return processor


def _our_processor(folder: Path, values: dict[str, Any], tower: str | Path | None) -> GPT4RoIProcessor:
    try:
        processor = GPT4RoIProcessor.from_pretrained(str(folder))
    except InputError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: no processor can be opened there ({str(error).splitlines()[0]})") from None
    name = tower or values.get("mm_vision_tower")
    if "vision_config" in values or name is None:
        return processor
    # The folder was written without a tower, so the image's size was not known yet.
    saved = {name: value for name, value in processor.to_dict().items() if name != "processor_class"}
    return GPT4RoIProcessor(processor.tokenizer, **{**saved, **_image_settings(find_tower(str(name), folder))})


def _image_settings(place: str) -> dict[str, Any]:
    """Returns the processor's arguments that follow from a ViT."""
    config = vision_config(place)
    mean, std = image_norm(place, config)
    length = (config.image_size // config.patch_size) ** 2
    return {"image_size": config.image_size, "image_mean": mean, "image_std": std, "image_seq_length": length}


def _original_processor(folder: Path, values: dict[str, Any], tower: str | Path | None) -> GPT4RoIProcessor:
    tokenizer = load_tokenizer(folder)
    _complete(tokenizer, folder, values.get("vocab_size"))
    place = find_tower(str(values["mm_vision_tower"] if tower is None else tower), folder)
    return GPT4RoIProcessor(
        tokenizer,
        **_image_settings(place),
        prompt_format="v0",
        model_max_length=min(tokenizer.model_max_length, values.get("max_position_embeddings", 2048)),
        use_image_start_end=values.get("mm_use_im_start_end", True),
    )


def _complete(tokenizer: Tokenizer, folder: Path, rows: int | None) -> None:
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
    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: no tokenizer can be opened there ({str(error).splitlines()[0]})") from None


def vision_config(place: str) -> Any:
    """Reads a tower's configuration; of a model of images and texts only the part for images."""
    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise InputError(f"vision tower {place}: cannot be opened ({str(error).splitlines()[0]})") from None
    return getattr(config, "vision_config", config)


def _preprocessing(place: str) -> dict[str, Any]:
    path = Path(place) / "preprocessor_config.json"
    return original_format.read_json(path) if path.is_file() else {}


def image_norm(place: str, config: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of RGB values in [0, 1]: the tower's own, else its family's."""
    own = _preprocessing(place)
    if "image_mean" in own and "image_std" in own:
        return tuple(own["image_mean"]), tuple(own["image_std"])
    kind = config.model_type
    if kind == "timm_backbone":
        import timm

        settings = timm.get_pretrained_cfg(config.backbone)
        return (settings.mean, settings.std) if settings else IMAGENET_NORM
    if kind.startswith("clip"):
        return CLIP_NORM
    return HALF_NORM if kind.startswith("siglip") else IMAGENET_NORM


def tower_image_size(place: str, config: Any) -> int:
    """Returns S, the side in pixels of the images that a tower was made for."""
    if isinstance(getattr(config, "image_size", None), int):
        return config.image_size
    size = _preprocessing(place).get("size", {})
    side = size.get("height") or size.get("shortest_edge")
    if side is None:
        raise InputError(f"vision tower {place}: neither its config.json nor a preprocessor_config.json names a size")
    return side


def build_from_parts(
    language_model: str | Path,
    vision_tower: str | Path,
    region_encoder_type: str = "gpt4roi",
    projector: str | Path | None = None,
    prompt_format: str = "v0",
    system_prompt: str | None = None,
    model_max_length: int = 2048,
    image_size: int | None = None,
    mm_use_im_start_end: bool = True,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
    **choices: Any,
) -> tuple[GPT4RoIForConditionalGeneration, GPT4RoIProcessor]:
    """Joins a language model and a vision tower to a model whose region encoder is new.

    language_model: folder or hub name; vision_tower: the same, of a ViT or a timm backbone; projector: a LLaVA
    mm_projector file; image_size: side of the input image, by default the tower's; choices: fields of GPT4RoIConfig
    that differ from its defaults. Tokens are added once, in the original's order, and initialised as the original did.
    Returns the model in `dtype` and its processor. Raises InputError where a part cannot be used.
    """
    tokenizer = load_tokenizer(language_model)
    text_model = load_language_model(language_model, dtype, attn_implementation)
    scale = embedding_rms(text_model)
    known = tokenizer.get_vocab()
    add_special_tokens(tokenizer, pad_with_unknown=prompt_format in V1_FORMATS)
    added = {token: token_id for token, token_id in tokenizer.get_vocab().items() if token not in known}
    grow_vocabulary(text_model, len(tokenizer))
    initialize_rows(text_model, added, tokenizer.pad_token)

    place = find_tower(str(vision_tower))
    backbone = load_tower(place, round_to_half=region_encoder_type == "gpt4roi")
    vocabulary = tokenizer.get_vocab()
    config = GPT4RoIConfig(
        vision_config=backbone.config,
        text_config=text_model.config,
        mm_vision_tower=original_format.relative_name(str(vision_tower)),
        mm_use_im_start_end=mm_use_im_start_end,
        image_size=image_size or tower_image_size(place, backbone.config),
        image_token_id=vocabulary[IMAGE_PATCH_TOKEN],
        region_token_id=vocabulary[REGION_TOKEN],
        image_start_token_id=vocabulary[IMAGE_START_TOKEN],
        image_end_token_id=vocabulary[IMAGE_END_TOKEN],
        region_encoder_type=region_encoder_type,
        **{name: value for name, value in choices.items() if value is not None},
    )
    model = GPT4RoIForConditionalGeneration(config, backbone, text_model).to(dtype)
    for module in (model.region_encoder, model.mm_projector):
        if hasattr(module, "init_output_rms"):
            module.init_output_rms(scale)
    if projector is not None:
        load_projector(model, Path(projector))
    model.generation_config = _generation_config(text_model, tokenizer)
    mean, std = image_norm(place, backbone.config)
    processor = GPT4RoIProcessor(
        tokenizer,
        image_size=config.image_size,
        image_mean=mean,
        image_std=std,
        image_seq_length=config.image_seq_length,
        prompt_format=prompt_format,
        system_prompt=system_prompt,
        model_max_length=model_max_length,
        use_image_start_end=mm_use_im_start_end,
    )
    logger.info("built from %s and %s: %s; %d tokens added", language_model, vision_tower, describe(model), len(added))
    return model.eval(), processor


def load_language_model(
    place: str | Path, dtype: torch.dtype, attn_implementation: str | None = None
) -> PreTrainedModel:
    """Opens a decoder language model; raises InputError where it cannot be had or lacks tensors."""
    chosen = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        with original_format.naming_damaged(place):
            model, info = AutoModelForCausalLM.from_pretrained(
                str(place), dtype=dtype, output_loading_info=True, **chosen
            )
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"language model {place}: cannot be opened ({str(error).splitlines()[0]})") from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(f"language model {place}: {len(missing)} tensors are missing: {', '.join(missing[:8])}")
    return model


def _generation_config(text_model: PreTrainedModel, tokenizer: Tokenizer) -> GenerationConfig:
    """Greedy, and ending where the language model ends."""
    own = text_model.generation_config
    return GenerationConfig(
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@torch.no_grad()
def load_projector(model: GPT4RoIForConditionalGeneration, path: Path) -> None:
    """Fills mm_projector from a LLaVA file, and the rows of <im_start> and <im_end> where the file has them.

    The keys' order and prefixes do not matter. Of a table of embedding rows the last two are taken: in the vocabularies
    that LLaVA projectors were trained with, <im_start> and <im_end> come last. Raises InputError where the
    file holds no single linear layer of the model's sizes.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such projector file")
    tensors = original_format.read_file(path)
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
        places = [model.config.image_start_token_id, model.config.image_end_token_id]
        table[places] = rows[-2:].to(table.dtype)
