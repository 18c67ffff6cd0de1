"""The vision tower's place in a folder: inside the weights in our format, a folder of its own in the original's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt4roi.checkpoint import layout
from gpt4roi.checkpoint.numbers import TORCH_DTYPES, as_bytes, half_pieces
from gpt4roi.checkpoint.safetensors_stream import PlannedTensor
from gpt4roi.checkpoint.stored import StoredTensor, chunk_buffer
from gpt4roi.checkpoint.streams import WeightFolder, open_weights
from gpt4roi.errors import InputError
from gpt4roi.io.hub import cached_folder, local_folder
from gpt4roi.models import original_format
from gpt4roi.models.original_format import read_json

BACKBONE_PREFIX = layout.TOWER_PREFIX + "backbone."

_FILE_PREFIX = "vision_model."
_MODEL_TYPE = "clip_vision_model"
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
_IMAGES = {
    "image_processor_type": "CLIPImageProcessor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_resize": True,
    "do_center_crop": True,
    "do_normalize": True,
    "resample": 3,
}
"""How CLIP's images are prepared; the original reads this beside its tower."""


@dataclass(frozen=True)
class Tower:
    """A CLIP tower on the disk: its configuration, and its tensors under the names that today's CLIP has.

    Both are None for a tower that was not found; a model in our format is then opened with one that lies beside it.
    """

    name: str | None
    config: dict[str, Any] | None = None
    weights: WeightFolder | None = None

    @property
    def sources(self) -> dict[str, WeightFolder]:
        """Returns the folder that is read, by its role."""
        return {} if self.weights is None else {"tower": self.weights}

    @property
    def notes(self) -> list[str]:
        """Says what a reader of the result must know about its tower."""
        if self.weights is not None:
            return []
        return [
            f"the vision tower {self.name} was not found and is not inside: name it with --vision-tower, or put its "
            "folder into the result's"
        ]

    def planned(self, dtype: str) -> list[PlannedTensor]:
        """Plans its tensors for our format: rounded to float16 once, as the original did, then stored as `dtype`."""
        buffer = chunk_buffer()
        tensors = {} if self.weights is None else self.weights.tensors
        return [
            PlannedTensor(BACKBONE_PREFIX + tensor.name, dtype, tensor.shape, _through_half(tensor, dtype, buffer))
            for tensor in tensors.values()
        ]


def _through_half(tensor: StoredTensor, dtype: str, buffer: bytearray):
    def pieces() -> Iterator[memoryview]:
        for numbers in half_pieces(tensor, buffer):
            yield as_bytes(numbers.to(TORCH_DTYPES[dtype]))

    return pieces


def find_tower(config: dict[str, Any], folder: Path, wanted: str | None = None) -> Tower:
    """Opens the tower that belongs to a folder of the original's format.

    wanted: folder or hub name that the user gave. Otherwise the one that the config names is looked for in the folder,
    the working directory and the local cache of the hub; nothing is downloaded then.
    """
    name = config.get("mm_vision_tower")
    if wanted is not None:
        return _open(wanted, local_folder(wanted))
    if name is None:
        return Tower(None)
    for place in original_format.tower_places(name, folder):
        if (place / "config.json").is_file():
            return _open(name, place)
    place = cached_folder(name)
    return Tower(name) if place is None else _open(name, place)


def _open(name: str, place: Path) -> Tower:
    config = read_json(place / "config.json")
    config = config.get("vision_config") or config
    if config.get("model_type") != _MODEL_TYPE:
        raise InputError(f"the tower {place} is of type {config.get('model_type')!r}, the original knows {_MODEL_TYPE}")
    weights = open_weights(place, "tower")
    tensors = {}
    for stored in weights.tensors.values():
        name = stored.name.removeprefix(_FILE_PREFIX)
        if name.startswith(_PARTS) and not name.endswith("position_ids"):
            tensors[name] = dataclasses.replace(stored, name=name)
    expected = _TENSORS_BESIDE_LAYERS + _TENSORS_OF_LAYER * config["num_hidden_layers"]
    if len(tensors) != expected:
        raise InputError(
            f"the tower {place} has {len(tensors)} tensors, a CLIP of {config['num_hidden_layers']} layers has "
            f"{expected}; download it again"
        )
    kept = {key: config[key] for key in _CONFIG_KEYS if key in config}
    return Tower(name, {"model_type": _MODEL_TYPE, **kept}, WeightFolder(place, tensors, weights.files))


def tower_folder(config: dict[str, Any], weights: WeightFolder) -> tuple[list[StoredTensor], dict[str, bytes], str]:
    """Takes the tower out of a folder of ours, for a folder beside the original's weights.

    Returns its tensors under the names of CLIP files, its small files, and the folder's name: the last part of the
    name in the config, where the original's format is looked into first. No tensors when the weights hold none.
    """
    tensors = [
        dataclasses.replace(stored, name=_FILE_PREFIX + name.removeprefix(BACKBONE_PREFIX))
        for name, stored in weights.tensors.items()
        if name.startswith(BACKBONE_PREFIX)
    ]
    known = config.get("vision_config") or {}
    vision = {key: known[key] for key in _CONFIG_KEYS if key in known}
    config_file = {"model_type": _MODEL_TYPE, "architectures": ["CLIPVisionModel"], **vision}
    side = vision.get("image_size", 224)
    image_file = _IMAGES | {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    files = {
        name: json.dumps(values, indent=2).encode() + b"\n"
        for name, values in (("config.json", config_file), ("preprocessor_config.json", image_file))
    }
    return tensors, files, Path(layout.tower_name(config)).name
