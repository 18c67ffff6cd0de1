"""The original's checkpoint format: parameter names, config.json and token ids, translated to ours and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gpt4roi.constants import (
    ADDED_TOKENS,
    IMAGE_END_TOKEN,
    IMAGE_PATCH_TOKEN,
    IMAGE_START_TOKEN,
    PAD_TOKEN,
    REGION_TOKEN,
)
from gpt4roi.errors import InputError
from gpt4roi.io.json_files import read_json_object
from gpt4roi.io.model_folders import DELTA, ORIGINAL, identify
from gpt4roi.io.weight_files import is_without_base

ADDED_TOKENS_FILE = "added_tokens.json"

TOWER_PREFIX = "vision_tower."
"""Of the tower's parameters, in our format; the original keeps its tower in a folder of its own."""

NAMES = (
    # the original's                            ours
    ("model.spi_module.mlvl_fuse.input_conv.", "region_encoder.fusion.input_convs."),
    ("model.spi_module.mlvl_fuse.fuse_convs.", "region_encoder.fusion.fuse_convs."),
    ("model.spi_module.roi_align.pconvs.", "region_encoder.pooler.pool_convs."),
    ("model.spi_module.roi_align.pos_embedd.", "region_encoder.pooler.position_embedding."),
    ("model.spi_module.roi_align.updims.", "region_encoder.pooler.output_linear."),
    ("model.spi_module.roi_align.flatten_linear.", "region_encoder.pooler.flatten_linear."),
    ("model.mm_projector.", "mm_projector."),
    ("model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
"""Prefixes of parameter names; the first line that fits counts, in both directions."""

NORM = (".gn.", ".norm.")
"""The GroupNorm inside a fusion round: the original's name, and ours."""

ROTARY_BUFFER = re.compile(r"rotary_emb\.inv_freq$")
"""Saved by old versions of transformers; computed today."""

TOKEN_OF_ID = {
    "image_token_id": IMAGE_PATCH_TOKEN,
    "region_token_id": REGION_TOKEN,
    "image_start_token_id": IMAGE_START_TOKEN,
    "image_end_token_id": IMAGE_END_TOKEN,
}
"""The configuration's fields and the added tokens whose ids they hold."""

EMBEDDINGS = "model.embed_tokens.weight"
"""The table with one row a token."""


def to_ours(name: str) -> str | None:
    """Translates a parameter's name from the original's; None for a rotary buffer, which is computed today.

    A name that fits no line of the table is returned as it is.
    """
    if ROTARY_BUFFER.search(name):
        return None
    for old, new in NAMES:
        if name.startswith(old):
            ours = new + name.removeprefix(old)
            return ours.replace(*NORM) if ".fuse_convs." in ours else ours
    return name


def to_original(name: str) -> str:
    """Translates a parameter's name to the original's; a name that fits no line of the table is returned as it is."""
    for old, new in NAMES:
        if name.startswith(new):
            original = old + name.removeprefix(new)
            return original.replace(NORM[1], NORM[0]) if ".fuse_convs." in original else original
    return name


def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames an original state dict; rotary buffers are left out."""
    return {ours: tensor for name, tensor in tensors.items() if (ours := to_ours(name)) is not None}


def through_half(tensor: torch.Tensor) -> torch.Tensor:
    """Rounds to float16 and back, as the original did to its vision tower before any training."""
    return tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor


def read_model_config(folder: Path) -> dict[str, Any]:
    """Reads the config.json of a folder; raises InputError where it is not a GPT4RoI model of either format.

    A delta in the original's format, as the released one, has a model's files; its weights tell it.
    """
    found = identify(folder).require_own_model()
    if found.kind == ORIGINAL and is_without_base(folder):
        replace(found, kind=DELTA).require_model()
    return found.config


def config_values(
    config: dict[str, Any], shapes: Mapping[str, Sequence[int]], token_ids: dict[str, int]
) -> dict[str, Any]:
    """Translates the original's config.json to arguments of GPT4RoIConfig, without the tower's.

    Args:
        config: Content of the file.
        shapes: Shape of each tensor under its original name; every size that the file leaves open is read from them.
        token_ids: Ids of <im_patch>, <bbox>, <im_start>, <im_end>, as token_ids() returns them.

    Raises:
        InputError: A needed tensor is missing.
    """
    region = "model.spi_module."
    try:
        channels = shapes[region + "roi_align.updims.weight"][1]
        cells = shapes[region + "roi_align.flatten_linear.weight"][1] // channels
        position = shapes[region + "roi_align.pos_embedd.0.weight"][0]
        vocabulary = shapes[EMBEDDINGS][0]
    except KeyError as missing:
        raise InputError(
            f"{missing.args[0]}: no such tensor in the original-format weights; a LLaVA or a bare language model is no "
            "GPT4RoI model (to start a training from one, name it as --model_name_or_path)"
        ) from None
    text = {
        name: value
        for name, value in config.items()
        if not name.startswith(("mm_", "_")) and name not in ("architectures", "model_type", "use_mm_proj")
    }
    return {
        "text_config": {"model_type": "llama", **text, "vocab_size": vocabulary},
        "mm_vision_select_layer": config.get("mm_vision_select_layer", -2),
        "mm_use_im_start_end": config.get("mm_use_im_start_end", True),
        "num_region_levels": _count(shapes, region + "roi_align.pconvs."),
        "num_fusion_rounds": _count(shapes, region + "mlvl_fuse.fuse_convs."),
        "roi_output_size": round(cells**0.5),
        "position_hidden_size": position,
        **token_ids,
    }


def _count(shapes: Mapping[str, Sequence[int]], prefix: str) -> int:
    """Counts the members of a module list by the numbers after a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})


def added_tokens(folder: Path) -> dict[str, int]:
    """Reads the ids of padding, image and region tokens from a tokenizer's files; empty where they name none."""
    path = folder / ADDED_TOKENS_FILE
    if path.is_file():
        return read_json_object(path)
    path = folder / "tokenizer.json"
    tokens = read_json_object(path).get("added_tokens", []) if path.is_file() else []
    return {token["content"]: token["id"] for token in tokens if token["content"] in (PAD_TOKEN, *ADDED_TOKENS)}


def token_ids(folder: Path, rows: int) -> dict[str, int]:
    """Reads the ids of the added tokens, by the fields of GPT4RoIConfig that hold them.

    Args:
        folder: Holds the tokenizer.
        rows: Of the embedding table; where no file names the tokens, they are its last rows in the original's order.

    Raises:
        InputError: A token has no id, or one beyond the table.
    """
    ids = added_tokens(folder) or {token: rows - len(ADDED_TOKENS) + n for n, token in enumerate(ADDED_TOKENS)}
    absent = [token for token in TOKEN_OF_ID.values() if token not in ids]
    if absent:
        raise InputError(
            f"{folder}: its tokenizer has no id for {', '.join(absent)}, it knows {', '.join(sorted(ids))}; "
            "download the added_tokens.json that belongs to the weights"
        )
    beyond = [f"{token} is number {ids[token]}" for token in TOKEN_OF_ID.values() if not 0 <= ids[token] < rows]
    if beyond:
        raise InputError(
            f"{folder}: {', '.join(beyond)}, but the embedding table has {rows} rows; tokenizer and weights are of "
            "different models: download both again"
        )
    return {name: ids[token] for name, token in TOKEN_OF_ID.items()}


def portable_name(tower: str | None) -> str | None:
    """Returns a tower's name as a saved configuration may hold it: no path of this machine."""
    if tower is None:
        return None
    return Path(tower).name if tower.startswith((".", "/", "~")) or Path(tower).is_absolute() else tower


def tower_candidates(name: str, folder: Path | None) -> list[Path]:
    """Lists the paths where a tower may be, each once: in the checkpoint's folder, then in the working directory."""
    here = [Path(name)] if folder is None else [Path(name), Path(Path(name).name)]
    inside = [] if folder is None else [folder / path for path in here]
    return list(dict.fromkeys([*inside, *here]))
