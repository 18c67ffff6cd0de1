"""peft adapters (LoRA) of a model: put onto the base that they were trained on, and merged into its weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpt4roi.checkpoint.tensor_files import chunk_buffer, open_weights, sample_digest
from gpt4roi.errors import InputError
from gpt4roi.io.atomic import atomic_write_text
from gpt4roi.io.digests import sha256_of
from gpt4roi.io.hub import local_folder
from gpt4roi.io.json_files import read_json_object
from gpt4roi.io.model_folders import ADAPTER_CONFIG, BASE_RECORD, folders_inside
from gpt4roi.io.weight_files import read_tensor_file
from gpt4roi.models.original_format import TOWER_PREFIX, portable_name, to_ours
from gpt4roi.models.vocabulary import embedding_tables

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def open_adapter(base: Any, folder: str | Path) -> Any:
    """Puts an adapter onto a model, as a peft model.

    Raises:
        InputError: The folder holds no adapter, or one whose tensors are not exactly those that the model has places
            for; peft alone would leave the others at random.
    """
    folder = Path(folder)
    check_adapter_folder(folder)
    try:
        from peft import PeftModel
    except ImportError:
        raise InputError("adapters need peft; install it with pip install 'gpt4roi[train]'") from None
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import get_peft_model_state_dict, load_peft_weights

    kind = read_json_object(folder / ADAPTER_CONFIG).get("peft_type")
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise InputError(
            f"the adapter {folder} is of the kind {kind!r}, which peft {version('peft')} does not know; pip install -U "
            "peft, or take an adapter such as LoRA"
        )
    try:
        with quiet_peft():
            model = PeftModel.from_pretrained(base, folder)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the adapter {folder} does not fit the base: {reason}; give the base it was made on"
        ) from None
    if model.active_peft_config.is_prompt_learning:
        raise InputError(
            f"the adapter {folder} is of the kind {model.active_peft_config.peft_type.value}, which adds tokens to the "
            "prompt and changes no weight; adapters such as LoRA can be used"
        )
    # Of a base that was moved since, peft would ask the hub.
    model.active_peft_config.base_model_name_or_path = str(getattr(base, "name_or_path", "") or folder)
    wanted, found = set(get_peft_model_state_dict(model)), set(load_peft_weights(str(folder), device="cpu"))
    if wanted != found:
        raise InputError(
            f"the adapter {folder} does not fit the base: {len(wanted - found)} tensors are missing "
            f"({', '.join(sorted(wanted - found)[:3]) or 'none'}) and {len(found - wanted)} have no place "
            f"({', '.join(sorted(found - wanted)[:3]) or 'none'}); give the base it was made on"
        )
    return model


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Leaves out what peft warns of that is no news: a property's old name, and tensors that open_adapter checks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def merge(adapted: Any) -> Any:
    """Merges a peft model; where its adapter changes one of two tied tables, each of them gets its own first."""
    layers = [adapted.get_input_embeddings(), adapted.get_output_embeddings()]
    # What peft put around a layer keeps it under one of two names.
    inner = [getattr(layer, "base_layer", getattr(layer, "original_module", layer)) for layer in layers]
    if inner != layers and inner[0].weight is inner[1].weight:
        inner[1].weight = nn.Parameter(inner[1].weight.detach().clone())
    merged = adapted.merge_and_unload()
    config = merged.config
    if getattr(config.text_config, "tie_word_embeddings", False) and len(embedding_tables(merged)) == 2:
        config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    return merged


def check_adapter_folder(folder: Path) -> None:
    """Raises InputError where a folder is not what peft's save_pretrained wrote, or its files are damaged."""
    if not folder.is_dir():
        raise InputError(f"there is no adapter folder {folder}; give the folder that peft's save_pretrained wrote")
    if not (folder / ADAPTER_CONFIG).is_file() or not any((folder / name).is_file() for name in ADAPTER_WEIGHTS):
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
        raise InputError(
            f"{folder} is not an adapter: expected {ADAPTER_CONFIG} and {' or '.join(ADAPTER_WEIGHTS)}, found {found}; "
            f"give the folder that peft's save_pretrained wrote{folders_inside(folder)}"
        )
    for name in ADAPTER_WEIGHTS:
        if (folder / name).is_file():
            read_tensor_file(folder / name)


def record_base(folder: str | Path, base: str | Path) -> None:
    """Writes beside an adapter which model it was trained on: the name of its folder and a digest of its weights."""
    facts = {
        "name": portable_name(str(base)),
        "weights": _weights_digest(base),
        "weights_bfloat16": _weights_digest(base, torch.bfloat16),
    }
    atomic_write_text(Path(folder) / BASE_RECORD, json.dumps(facts, indent=1))


def check_base(folder: str | Path, base: str | Path) -> None:
    """Raises InputError where an adapter was trained on another model; peft's own adapters do not say on which."""
    path = Path(folder) / BASE_RECORD
    if not path.is_file():
        return
    record = read_json_object(path)
    found = _weights_digest(base)
    if found != record.get("weights") and _weights_digest(base, torch.bfloat16, "BF16") != record.get(
        "weights_bfloat16", ""
    ):
        raise InputError(
            f"the adapter {folder} was trained on {record.get('name')} with other weights than {base} has (digest "
            f"{record.get('weights')}, found {found}); give the base that it was trained on"
        )


def _weights_digest(folder: str | Path, dtype: torch.dtype = torch.float16, stored: str | None = None) -> str | None:
    """Digests a sample of every tensor, in either format and any dtype that is rounded alike; not the tower's.

    stored: What one of them at least must be stored in; else None.
    """
    buffer = chunk_buffer()
    weights = open_weights(local_folder(folder), "base").tensors
    if stored not in (None, *(tensor.dtype for tensor in weights.values())):
        return None
    named = [(to_ours(name), tensor) for name, tensor in weights.items()]
    lines = [
        f"{name} {sample_digest(tensor, buffer, dtype)}\n"
        for name, tensor in named
        if name is not None and not name.startswith(TOWER_PREFIX)
    ]
    return sha256_of(line.encode() for line in sorted(lines))[:16]
