"""The CLIP vision tower of a folder: inside the weights in our format, a folder of its own in the original's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from gpt4roi.checkpoint.tensor_files import DTYPES, StoredTensor, WeightFolder, as_bytes, chunk_buffer, open_weights
from gpt4roi.checkpoint.writer import PlannedTensor
from gpt4roi.errors import InputError
from gpt4roi.io.hub import cached_folder, local_folder
from gpt4roi.io.json_files import read_json_object
from gpt4roi.models.original_format import TOWER_PREFIX, portable_name, tower_candidates

CLIP_MODEL_TYPE = "clip_vision_model"
DEFAULT_TOWER_FOLDER = "clip"

_BACKBONE_PREFIX = TOWER_PREFIX + "backbone."
_FILE_PREFIX = "vision_model."
_PARTS = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
_TENSORS_OF_LAYER, _TENSORS_BESIDE_LAYERS = 16, 7
_CONFIG_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
    "initializer_range",
    "initializer_factor",
    "projection_dim",
)
_PREPROCESSING = {
    "image_processor_type": "CLIPImageProcessor",
    "image_mean": OPENAI_CLIP_MEAN,
    "image_std": OPENAI_CLIP_STD,
    "do_resize": True,
    "do_center_crop": True,
    "do_normalize": True,
    "resample": 3,
}
"""How CLIP's images are prepared; the original reads this beside its tower."""


@dataclass(frozen=True)
class ClipTower:
    """A CLIP tower on the disk: its configuration, and its tensors under the names that today's CLIP has.

    Both are None for a tower that was not found; a model in our format is then opened with one that lies beside it.
    """

    name: str | None
    config: dict[str, Any] | None = None
    weights: WeightFolder | None = None

    @property
    def sources(self) -> dict[str, WeightFolder]:
        """The folder that is read, by its role."""
        return {} if self.weights is None else {"tower": self.weights}

    @property
    def notes(self) -> list[str]:
        """What a user must know about the tower of the result."""
        if self.weights is not None:
            return []
        return [
            f"the vision tower {self.name} was not found and is not inside: name it with --vision-tower, or put its "
            "folder into the result's"
        ]

    def plan_tensors(self, dtype: str) -> list[PlannedTensor]:
        """Plans its tensors for our format: rounded to float16 once, as the original did, then stored as `dtype`."""
        buffer = chunk_buffer()
        tensors = {} if self.weights is None else self.weights.tensors
        return [
            PlannedTensor(_BACKBONE_PREFIX + tensor.name, dtype, tensor.shape, _rounded(tensor, dtype, buffer))
            for tensor in tensors.values()
        ]


def _rounded(tensor: StoredTensor, dtype: str, buffer: bytearray) -> Callable[[], Iterator[memoryview]]:
    def chunks() -> Iterator[memoryview]:
        for numbers in tensor.read_half(buffer):
            yield as_bytes(numbers.to(DTYPES[dtype]))

    return chunks


def open_clip_tower(config: dict[str, Any], folder: Path, wanted: str | None = None) -> ClipTower:
    """Opens the tower that belongs to a folder of the original's format.

    Args:
        config: The folder's config.json.
        folder: The folder.
        wanted: Folder or hub name that the user gave. Otherwise the tower that the config names is looked for in the
            folder, the working directory and the local cache of the hub; nothing is downloaded then.
    """
    name = config.get("mm_vision_tower")
    if wanted is not None:
        return _open(wanted, local_folder(wanted))
    if name is None:
        return ClipTower(None)
    for candidate in tower_candidates(name, folder):
        if (candidate / "config.json").is_file():
            return _open(name, candidate)
    cached = cached_folder(name)
    return ClipTower(name) if cached is None else _open(name, cached)


def _open(name: str, folder: Path) -> ClipTower:
    config = read_json_object(folder / "config.json")
    config = config.get("vision_config") or config
    if config.get("model_type") != CLIP_MODEL_TYPE:
        raise InputError(
            f"the tower {folder} is of type {config.get('model_type')!r}, the original knows {CLIP_MODEL_TYPE}"
        )
    weights = open_weights(folder, "tower")
    tensors = {}
    for stored in weights.tensors.values():
        short = stored.name.removeprefix(_FILE_PREFIX)
        if short.startswith(_PARTS) and not short.endswith("position_ids"):
            tensors[short] = dataclasses.replace(stored, name=short)
    expected = _TENSORS_BESIDE_LAYERS + _TENSORS_OF_LAYER * config["num_hidden_layers"]
    if len(tensors) != expected:
        raise InputError(
            f"the tower {folder} has {len(tensors)} tensors, a CLIP of {config['num_hidden_layers']} layers has "
            f"{expected}; download it again"
        )
    return ClipTower(name, _clip_config(config), WeightFolder(folder, tensors, weights.files))


def _clip_config(config: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": CLIP_MODEL_TYPE, **{key: config[key] for key in _CONFIG_KEYS if key in config}}


def tower_name(config: dict[str, Any]) -> str:
    """Returns the name under which a folder in the original's format looks for its tower."""
    return portable_name(config.get("mm_vision_tower")) or DEFAULT_TOWER_FOLDER


def export_tower(config: dict[str, Any], weights: WeightFolder) -> tuple[list[StoredTensor], dict[str, bytes], str]:
    """Takes the tower out of a folder of ours, for a folder beside the original's weights.

    Returns:
        Its tensors under the names of CLIP files (none when the weights hold none), its small files, and the folder's
        name: the last part of the name in the config, where the original's format is looked into first.
    """
    tensors = [
        dataclasses.replace(stored, name=_FILE_PREFIX + name.removeprefix(_BACKBONE_PREFIX))
        for name, stored in weights.tensors.items()
        if name.startswith(_BACKBONE_PREFIX)
    ]
    vision = _clip_config(config.get("vision_config") or {})
    side = vision.get("image_size", 224)
    contents = {
        "config.json": {"model_type": CLIP_MODEL_TYPE, "architectures": ["CLIPVisionModel"], **vision},
        "preprocessor_config.json": _PREPROCESSING
        | {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}},
    }
    files = {name: json.dumps(values, indent=2).encode() + b"\n" for name, values in contents.items()}
    return tensors, files, Path(tower_name(config)).name
