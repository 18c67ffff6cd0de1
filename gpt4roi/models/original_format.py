"""The original's folders: its parameter names, its configuration, and how its tower was rounded."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from gpt4roi.constants import (
    ADDED_TOKENS,
    IMAGE_END_TOKEN,
    IMAGE_PATCH_TOKEN,
    IMAGE_START_TOKEN,
    PAD_TOKEN,
    REGION_TOKEN,
)
from gpt4roi.errors import InputError

LEGACY_MODEL_TYPE = "llava"

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
"""Beginnings of parameter names; the first line that fits counts, in both directions."""

NORM = (".gn.", ".norm.")
"""The GroupNorm inside a fusion round: the original's name, and ours."""

ROTARY_BUFFER = re.compile(r"rotary_emb\.inv_freq$")
"""Saved by old versions of transformers; computed today."""

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

TOKEN_OF_ID = {
    "image_token_id": IMAGE_PATCH_TOKEN,
    "region_token_id": REGION_TOKEN,
    "image_start_token_id": IMAGE_START_TOKEN,
    "image_end_token_id": IMAGE_END_TOKEN,
}
"""The configuration's fields and the added tokens whose ids they hold."""

EMBEDDINGS = "model.embed_tokens.weight"
"""The table with one row a token."""

_LFS_START = b"version https://git-lfs"


def to_ours(name: str) -> str | None:
    """Translates a parameter's name from the original's; None for a rotary buffer, which nobody needs.

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
            return original.replace(*reversed(NORM)) if ".fuse_convs." in original else original
    return name


def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames an original state dict; rotary buffers are left out."""
    return {ours: tensor for name, tensor in tensors.items() if (ours := to_ours(name)) is not None}


def through_half(tensor: torch.Tensor) -> torch.Tensor:
    """Rounds to float16 and back, as the original did to its vision tower before any training."""
    return tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor


def is_original(config: dict[str, Any]) -> bool:
    """Tells whether a config.json is of the original's kind."""
    return config.get("model_type") == LEGACY_MODEL_TYPE and "mm_vision_tower" in config


def config_values(
    config: dict[str, Any], shapes: dict[str, Sequence[int]], token_ids: dict[str, int]
) -> dict[str, Any]:
    """Translates the original's config.json to arguments of GPT4RoIConfig, without the tower's.

    config: the file's content; shapes: shape of each tensor under its original name: every size that the
    file leaves open is read from them; token_ids: ids of <im_patch>, <bbox>, <im_start>, <im_end>.
    Raises InputError where a needed tensor is missing.
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


def _count(shapes: dict[str, Sequence[int]], prefix: str) -> int:
    """Counts the members of a module list by the numbers after a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; raises InputError with the file's name where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None


def added_tokens(folder: Path) -> dict[str, int]:
    """Reads the ids of padding, image and region tokens from a tokenizer's files; empty where they name none."""
    path = folder / "added_tokens.json"
    if path.is_file():
        return read_json(path)
    path = folder / "tokenizer.json"
    tokens = read_json(path).get("added_tokens", []) if path.is_file() else []
    return {token["content"]: token["id"] for token in tokens if token["content"] in (PAD_TOKEN, *ADDED_TOKENS)}


def token_ids(folder: Path, rows: int) -> dict[str, int]:
    """Reads the ids of the added tokens, by the fields of GPT4RoIConfig that hold them.

    rows: of the embedding table; where no file names the tokens, they are its last rows in the original's order.
    Raises InputError where a token has no id, or one beyond the table.
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


def relative_name(tower: str) -> str:
    """Returns a tower's name as a saved configuration may hold it: no path of this machine."""
    return Path(tower).name if tower.startswith((".", "/", "~")) or Path(tower).is_absolute() else tower


def tower_places(name: str, folder: Path | None) -> list[Path]:
    """Lists where a tower may lie: in the checkpoint's folder, then in the working directory."""
    here = [Path(name)] if folder is None else [Path(name), Path(Path(name).name)]
    return here if folder is None else [folder / place for place in here] + here


def weight_files(folder: Path) -> list[Path]:
    """Lists the files of a checkpoint's weights, safetensors or .bin, one file or the shards of an index.

    Raises InputError where there is no weight file, a shard is missing, or a file is a pointer of Git LFS.
    """
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            files = [folder / name]
        elif index.is_file():
            files = _shards(folder, index)
        else:
            continue
        for file in files:
            _refuse_pointer(file)
        return files
    raise InputError(f"{folder}: no weights, expected one of {', '.join(WEIGHT_FILES)} or an index of shards")


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        shards = sorted(set(read_json(index)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{index} is not an index of shards; download it again") from None
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {len(shards)} weight files are missing: {missing[:3]}; download them into it"
        )
    return [folder / shard for shard in shards]


def _refuse_pointer(path: Path) -> None:
    with open(path, "rb") as file:
        if file.read(len(_LFS_START)) == _LFS_START:
            raise InputError(f"{path} is a pointer of Git LFS, not the weights; run `git lfs pull` in {path.parent}")


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Reads all tensors of a checkpoint folder; raises InputError as weight_files and read_file do."""
    tensors: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        tensors.update(read_file(path))
    return tensors


def tensor_names(folder: Path) -> set[str]:
    """Lists the tensors of a checkpoint folder without reading them; raises InputError as read_tensors does."""
    names: set[str] = set()
    for path in weight_files(folder):
        names |= _names_of_safetensors(path) if path.suffix == ".safetensors" else read_file(path).keys()
    return names


@contextmanager
def naming_damaged(place: str | Path) -> Iterator[None]:
    """Lets weights that transformers cannot read be told in one line with their file; raises InputError then."""
    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError):
        if Path(place).is_dir():
            tensor_names(Path(place))
        raise


def _names_of_safetensors(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is cut off or damaged ({path.stat().st_size} bytes, {str(error).splitlines()[0]}); "
        "download or copy it again"
    )


def read_file(path: Path) -> dict[str, torch.Tensor]:
    """Reads one file of tensors; raises InputError where it holds anything else."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise _damaged(path, error) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError:
        raise InputError(f"{path}: not a file of tensors, or one with code in it, which is not run") from None
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "it is cut off")
        raise InputError(f"{path}: not a file of tensors ({reason})") from None
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    return content


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"
