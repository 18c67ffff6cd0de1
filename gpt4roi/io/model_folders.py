"""What a folder of weights is: one answer, and one sentence for each kind, which every command gives."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.io.hub import REGION_FOLDER as REGION_FOLDER
from gpt4roi.io.hub import is_hub_name
from gpt4roi.io.json_files import read_json_object

OUR_MODEL_TYPE, ORIGINAL_MODEL_TYPE = "gpt4roi", "llava"

ADAPTER_CONFIG, BASE_RECORD, DELTA_RECORD = "adapter_config.json", "base.json", "delta.json"
"""What adapters and deltas are told by; BASE_RECORD lies beside the adapters that our training writes."""

RUN, DONE = "run.json", "trained.json"
"""Of a training's work directory: what runs in it, and the mark that it is finished."""

_QUANTIZED = ("quantization_config", "quantization", "compression_config")
_QUANTIZED_FILES = ("quantize_config.json", "quant_config.json")
"""Where tools say that weights are stored quantized: in config.json, and beside it (of AutoGPTQ and AutoAWQ)."""

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")

_LFS_START = b"version https://git-lfs"
_LFS_BYTES = 1024
_REASON_LENGTH = 200

OURS, ORIGINAL, ADAPTER, DELTA = "ours", "original", "adapter", "delta"
REGIONS_ON_BASE = "vision-language model with regions"
LLAVA, VISION_LANGUAGE, LANGUAGE_MODEL = "llava", "vision-language model", "language model"
UNFINISHED, GGUF, NOTHING = "unfinished", "gguf", "nothing"

_FROM_BASE = "to train regions on it: gpt4roi train --stage 1 --model_name_or_path {folder}"
SENTENCES = {
    ADAPTER: (
        "{folder} holds an adapter, not a model; join it with its base: gpt4roi merge-adapter BASE {folder} OUT, "
        "where BASE is {base}"
    ),
    DELTA: (
        "{folder} holds a weight delta, not a model; add it to its base: gpt4roi apply-delta --base BASE --delta "
        "{folder} --target OUT"
    ),
    LLAVA: (
        "{folder} is transformers' LLaVA (model_type {type!r} without mm_vision_tower), which has no region encoder; "
        f"expected a GPT4RoI model; {_FROM_BASE}"
    ),
    VISION_LANGUAGE: (
        "{folder}: model_type is {type!r}, another model of images and text; expected 'gpt4roi' or the original's "
        f"'llava'; {_FROM_BASE}"
    ),
    REGIONS_ON_BASE: (
        "{folder} is a pretrained vision-language model ({type!r}) with regions, in its base's own format; this "
        "command is for GPT4RoI's own models; to give it away: gpt4roi export {folder} OUT"
    ),
    LANGUAGE_MODEL: (
        "{folder}: model_type is {type!r}, expected 'gpt4roi' or the original's 'llava'; to start a training from a "
        "language model, name it as --model_name_or_path, and a vision tower as --vision_tower"
    ),
    UNFINISHED: (
        "{folder}: its training is not finished ({done} is missing); finish it, or start from one of its checkpoints, "
        "{folder}/checkpoint-…"
    ),
    GGUF: (
        "{folder} holds weights of llama.cpp (.gguf), which are not read; take the model in the format of transformers"
    ),
    NOTHING: (
        "no model in {folder}: the folder has no config.json ({folder}/config.json: no such file); give the folder "
        "that a training wrote"
    ),
}
"""What is wrong with a folder where a GPT4RoI model is wanted, by its kind."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder and what it is.

    Attributes:
        path: The folder.
        kind: OURS, ORIGINAL, or a key of SENTENCES.
        config: Its config.json; an adapter's adapter_config.json; empty where there is neither.
    """

    path: Path
    kind: str
    config: dict[str, Any]

    @property
    def is_model(self) -> bool:
        """Whether it is a model of regions: in our format, the original's, or a base's with a region encoder."""
        return self.kind in (OURS, ORIGINAL, REGIONS_ON_BASE)

    @property
    def quantization(self) -> str | None:
        """How the weights are stored where that is not as numbers, as `bitsandbytes, 4 bit`; else None."""
        of_text = self.config.get("text_config") or {}
        stored = next((part[name] for part in (self.config, of_text) for name in _QUANTIZED if part.get(name)), None)
        beside = next((self.path / name for name in _QUANTIZED_FILES if (self.path / name).is_file()), None)
        if stored is None and beside is not None:
            stored = read_json_object(beside)
        if not isinstance(stored, dict):
            return None
        method = stored.get("quant_method", "quantized")
        bits = stored.get("bits") or stored.get("w_bit")
        bits = bits or (4 if stored.get("load_in_4bit") else 8 if stored.get("load_in_8bit") else None)
        return f"{method}, {bits} bit" if bits else str(method)

    @property
    def base(self) -> str:
        """The name of an adapter's base, as it was when the adapter was made."""
        return str(self.config.get("base_model_name_or_path") or "not named")

    def base_folder(self) -> str:
        """Returns the folder or hub name of an adapter's base, also where both were moved together.

        Raises:
            InputError: There is no such folder, and the name can be none of the hub.
        """
        places = [Path(self.base), self.path.parent / Path(self.base).name]
        for place in places:
            if (place / "config.json").is_file():
                return str(place)
        if is_hub_name(self.base) and not (self.path / BASE_RECORD).is_file():  # our training starts from folders
            return self.base
        raise InputError(
            f"{self.path} holds an adapter of {self.base}, which is not in {' or '.join(map(str, places))}; put the "
            f"base there, or join the two: gpt4roi merge-adapter BASE {self.path} OUT"
        )

    def require_model(self) -> ModelFolder:
        """Returns itself; raises InputError with the sentence of its kind where it is no model of regions."""
        return self if self.is_model else self.require_own_model()

    def require_own_model(self) -> ModelFolder:
        """Returns itself; raises InputError where it is no GPT4RoI model in our format or the original's."""
        if self.kind not in (OURS, ORIGINAL):
            kind, base = self.config.get("model_type"), self.base
            told = SENTENCES[self.kind].format(folder=self.path, type=kind, base=base, done=DONE)
            raise InputError(told + (folders_inside(self.path) if self.kind == NOTHING else ""))
        return self

    def require_adapter(self) -> ModelFolder:
        """Returns itself; raises InputError where it is no adapter."""
        if self.kind != ADAPTER:
            raise InputError(f"{self.path} is no adapter but: {self.kind}; expected a folder with {ADAPTER_CONFIG}")
        return self

    def require_quantization_library(self) -> ModelFolder:
        """Returns itself; raises InputError where its weights are stored quantized by a library that is missing."""
        if (self.quantization or "").startswith("bitsandbytes") and find_spec("bitsandbytes") is None:
            raise InputError(
                f"{self.path} stores quantized weights ({self.quantization}), which needs the package bitsandbytes; "
                "pip install 'gpt4roi[bitsandbytes]', or take the unquantized weights"
            )
        return self

    def require_unquantized(self, purpose: str) -> ModelFolder:
        """Returns itself; raises InputError where its weights are stored quantized, which `purpose` cannot use."""
        if self.quantization is not None:
            raise InputError(
                f"{self.path} stores quantized weights ({self.quantization}), which cannot be {purpose}; take the "
                "unquantized weights (--quantize and, with --lora_r, --quantization quantize while they are opened)"
            )
        return self


def identify(path: str | Path) -> ModelFolder:
    """Tells what a folder is, from its small files alone.

    Raises:
        InputError: A file of it is damaged, or the pointer of Git LFS.
    """
    folder = Path(path)
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        refuse_lfs_pointer(file)
    names = ["config.json", ADAPTER_CONFIG]
    if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):  # some trainings put the base's config.json beside
        names.reverse()
    name = next((name for name in names if (folder / name).is_file()), None)
    config = read_json_object(folder / name) if name else {}
    if (folder / RUN).is_file() and not (folder / DONE).is_file():
        return ModelFolder(folder, UNFINISHED, config)
    if name == ADAPTER_CONFIG:
        return ModelFolder(folder, ADAPTER, config)
    if not config:
        return ModelFolder(folder, GGUF if any(folder.glob("*.gguf")) else NOTHING, config)
    return ModelFolder(folder, _kind(folder, config), config)


def folders_inside(folder: Path) -> str:
    """Returns the end of a sentence: which folders inside one hold a model or an adapter; empty where none does."""
    files = (path for name in ("config.json", ADAPTER_CONFIG) for path in folder.glob(f"*/{name}"))
    names = sorted({str(path.parent) for path in files})[:4]
    return f"; there is one in {', '.join(names)}" if names else ""


def _kind(folder: Path, config: dict[str, Any]) -> str:
    if (folder / DELTA_RECORD).is_file():
        return DELTA
    kind = config.get("model_type")
    if kind == OUR_MODEL_TYPE or is_original(config):
        return ORIGINAL if kind == ORIGINAL_MODEL_TYPE else OURS
    if (folder / REGION_FOLDER / "config.json").is_file():
        return REGIONS_ON_BASE
    if kind == ORIGINAL_MODEL_TYPE:
        return LLAVA
    return VISION_LANGUAGE if "vision_config" in config else LANGUAGE_MODEL


def is_original(config: dict[str, Any]) -> bool:
    """Tells whether a config.json is of the original's kind."""
    return config.get("model_type") == ORIGINAL_MODEL_TYPE and "mm_vision_tower" in config


def is_gpt4roi_folder(folder: str | Path) -> bool:
    """Tells whether a folder holds a model of regions, as ModelFolder.is_model says."""
    return Path(folder).is_dir() and identify(folder).is_model


def refuse_lfs_pointer(path: Path) -> None:
    """Raises InputError where a file is a pointer of Git LFS instead of its content."""
    if not path.is_file() or path.stat().st_size > _LFS_BYTES:
        return
    with path.open("rb") as file:
        if file.read(len(_LFS_START)) == _LFS_START:
            raise InputError(
                f"{path} is a pointer of Git LFS ({path.stat().st_size} bytes), not the weights; "
                f"run `git lfs pull` in {path.parent}"
            )


def load_failure(location: str | Path, error: Exception) -> str:
    """Returns why transformers could not open a folder, in one line; Python code in the folder is the first reason."""
    for name in ("config.json", "tokenizer_config.json"):
        path = Path(location) / name
        values = read_json_object(path) if path.is_file() else {}
        if values.get("auto_map") and values.get("model_type") != OUR_MODEL_TYPE:
            return f"{name} asks for Python code of the folder, which is never run; choose a model of transformers' own"
    return " ".join(str(error).split())[:_REASON_LENGTH]
