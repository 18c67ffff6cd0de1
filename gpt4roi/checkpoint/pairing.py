"""Which tensor of a base belongs to which of a delta (or of a model to take one from), and whether they fit at all.

Everything here looks at names, shapes and a few numbers only, so a wrong pair is refused before anything is written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gpt4roi.checkpoint.stored import StoredTensor, describe
from gpt4roi.checkpoint.streams import WeightFolder
from gpt4roi.errors import InputError

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
"""The two tables whose first rows are the base's; rows of added tokens follow."""

ROTARY_SUFFIX = "rotary_emb.inv_freq"
"""Buffers that old versions saved; they follow from the config and never carry learnt numbers."""

_RAW_MODULES = ("spi_module", "region_encoder", "mm_projector", "vision_tower")
_FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class Pair:
    """A tensor of the fine-tuned side and, unless the fine-tuning added it, the base's tensor of that name."""

    other: StoredTensor
    base: StoredTensor | None

    @property
    def name(self) -> str:
        return self.other.name

    @property
    def shared(self) -> int:
        """How many leading numbers of `other` have a counterpart in the base."""
        return self.base.numel if self.base is not None else 0


def is_raw(name: str) -> bool:
    """True for what GPT4RoI adds to a language model: these tensors travel in a delta as they are."""
    return any(part in _RAW_MODULES for part in name.split("."))


def is_rotary(name: str) -> bool:
    """True for the saved rotary buffers of old versions."""
    return name.endswith(ROTARY_SUFFIX)


def pair_up(base: WeightFolder, other: WeightFolder, role: str) -> list[Pair]:
    """Pairs the tensors of `other` (its `role`: `delta` or `target`) with the base's, in the order of other's files.

    Raises InputError with names and numbers when the two are not a language model and what was made of it.
    """
    _check_kinds(base, other, role)
    _check_names(base, other, role)
    _check_shapes(base, other, role)
    for tensor in (*base.tensors.values(), *other.tensors.values()):
        if tensor.dtype not in _FLOATS:
            raise InputError(
                f"{tensor.path}: {describe(tensor)} is no floating-point weight; take the unquantised weights"
            )
    # A rotary buffer that only one side saved says nothing: newer versions do not save it.
    pairs = [Pair(tensor, base.tensors.get(tensor.name)) for tensor in other.tensors.values()]
    return [pair for pair in pairs if pair.base is not None or not is_rotary(pair.name)]


def _check_kinds(base: WeightFolder, other: WeightFolder, role: str) -> None:
    raw_of_base = [name for name in base.tensors if is_raw(name)]
    if raw_of_base:
        raise InputError(
            f"the base {base.path} is not a bare language model: it has {len(raw_of_base)} tensors such as "
            f"{raw_of_base[0]}; give the LLaMA folder as base"
        )
    if not any("spi_module" in name or "region_encoder" in name for name in other.tensors):
        raise InputError(
            f"the {role} {other.path} has no region encoder among its {len(other.tensors)} tensors (expected names "
            f"with spi_module, found {next(iter(other.tensors))}, …); it is none of GPT4RoI: take another folder"
        )


def _check_names(base: WeightFolder, other: WeightFolder, role: str) -> None:
    of_base = {name for name in base.tensors if not is_rotary(name)}
    of_other = {name for name in other.tensors if not is_rotary(name) and not is_raw(name)}
    unknown = [name for name in other.tensors if name in of_other - of_base]
    if unknown:
        raise InputError(
            f"the {role} {other.path} has {len(unknown)} tensors that the base {base.path} lacks, first {unknown[0]}; "
            f"the base has {_layers(of_base)} layers, the {role} {_layers(of_other)}: give the base it was made from"
        )
    left = [name for name in base.tensors if name in of_base - of_other]
    if left:
        raise InputError(
            f"the base {base.path} has {len(left)} tensors that the {role} {other.path} lacks, first {left[0]}; "
            f"the base has {_layers(of_base)} layers, the {role} {_layers(of_other)}: give the base it was made from"
        )


def _layers(names: set[str]) -> int:
    return len({name.split(".layers.")[1].split(".")[0] for name in names if ".layers." in name})


def _check_shapes(base: WeightFolder, other: WeightFolder, role: str) -> None:
    wrong = []
    for name, tensor in other.tensors.items():
        reference = base.tensors.get(name)
        if reference is None or (name in EMBEDDINGS and _rows_appended(reference, tensor)):
            continue
        if reference.shape != tensor.shape:
            wrong.append(f"{name} {list(reference.shape)} in the base and {list(tensor.shape)} in the {role}")
    if wrong:
        raise InputError(
            f"base {base.path} and {role} {other.path} do not fit: {len(wrong)} tensors differ in shape, first "
            f"{wrong[0]}; give the base it was made from"
        )


def _rows_appended(reference: StoredTensor, tensor: StoredTensor) -> bool:
    return reference.shape[1:] == tensor.shape[1:] and reference.shape[0] <= tensor.shape[0]


def check_vocabulary(base: WeightFolder, delta: WeightFolder) -> None:
    """Raises InputError when the delta's added_tokens.json says that its base had another number of rows."""
    path = delta.path / "added_tokens.json"
    if not path.exists():
        return
    first = first_added_token(path)
    for name in EMBEDDINGS:
        tensor = base.tensors.get(name)
        if first is not None and tensor is not None and tensor.shape[0] != first:
            raise InputError(
                f"the base {base.path} has {tensor.shape[0]} rows in {name}, the delta was made from {first} (the "
                f"first token it adds is number {first} in {path}); give the base it was made from"
            )


def first_added_token(path: Path) -> int | None:
    """Reads added_tokens.json and returns its smallest number, None when it adds nothing."""
    try:
        return min((int(number) for number in json.loads(path.read_text(encoding="utf-8")).values()), default=None)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a table of token numbers ({error}); download it again") from error
