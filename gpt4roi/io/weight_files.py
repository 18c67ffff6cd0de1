"""Weight files of a model folder (safetensors or `.bin`, single or sharded): found, checked and read as tensors."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from gpt4roi.errors import InputError
from gpt4roi.io.json_files import read_json
from gpt4roi.io.model_folders import refuse_lfs_pointer

INDEX_SUFFIX = ".index.json"
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors" + INDEX_SUFFIX,
    "pytorch_model.bin",
    "pytorch_model.bin" + INDEX_SUFFIX,
)
"""Names of weight files, in the order in which they are preferred."""

_NORM, _NORM_OF_DELTAS = "norm.weight", 0.2


def find_weight_files(folder: Path, role: str = "model") -> tuple[tuple[Path, ...], dict[str, str]]:
    """Lists the weight files of a folder, and of shards the file that their index promises each tensor in.

    Args:
        folder: Holds one weight file, or the shards of an index.
        role: Names the folder in messages (`base`, `delta`, …).

    Raises:
        InputError: There is no weight file, a shard is missing, or a file is a Git LFS pointer.
    """
    for name in WEIGHT_FILES:
        if not (folder / name).is_file():
            continue
        weight_map = _read_index(folder, folder / name, role) if name.endswith(INDEX_SUFFIX) else {}
        files = tuple(folder / shard for shard in (sorted(set(weight_map.values())) if weight_map else [name]))
        for file in files:
            refuse_lfs_pointer(file)
        return files, weight_map
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
    raise InputError(
        f"the {role} folder {folder} has no weights: expected one of {', '.join(WEIGHT_FILES)}, found {found}; "
        "download the weights into it"
    )


def _read_index(folder: Path, index: Path, role: str) -> dict[str, str]:
    try:
        weight_map = dict(read_json(index)["weight_map"])
        names = sorted(set(weight_map.values()))
        missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{index} is not an index of shards ({error!r}); download it again") from None
    if missing:
        raise InputError(
            f"the {role} folder {folder} lacks {len(missing)} of its {len(names)} shards ({', '.join(missing[:3])}); "
            "download them into the folder"
        )
    return weight_map


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Reads all tensors of a folder. Raises InputError as find_weight_files and read_tensor_file do."""
    tensors: dict[str, torch.Tensor] = {}
    for path in find_weight_files(folder)[0]:
        tensors.update(read_tensor_file(path))
    return tensors


def is_without_base(folder: Path) -> bool:
    """Tells whether weights are a delta's: their normalisation weights are near 0, where a LLaMA's are near 1."""
    largest = []
    for path in find_weight_files(folder)[0]:
        if path.suffix != ".safetensors":
            largest += [float(t.float().abs().mean()) for name, t in load_bin(path).items() if name.endswith(_NORM)]
            continue
        with readable_damage(path), safe_open(path, framework="pt") as file:
            names = [name for name in set(file.keys()) if name.endswith(_NORM)]
            largest += [float(file.get_tensor(name).float().abs().mean()) for name in names]
    return bool(largest) and max(largest) < _NORM_OF_DELTAS


def tensor_names(folder: Path) -> set[str]:
    """Lists the tensors of a folder without reading them. Raises InputError as read_tensors does."""
    names: set[str] = set()
    for path in find_weight_files(folder)[0]:
        if path.suffix != ".safetensors":
            names |= load_bin(path).keys()
            continue
        with readable_damage(path), safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


def read_tensor_file(path: Path) -> dict[str, torch.Tensor]:
    """Reads one safetensors or `.bin` file, mapped into memory. Raises InputError where it holds anything else."""
    if path.suffix != ".safetensors":
        return load_bin(path)
    with readable_damage(path):
        return load_file(path)


@contextmanager
def readable_damage(path: Path) -> Iterator[None]:
    """Turns safetensors' errors about a file into an InputError with its name."""
    try:
        yield
    except SafetensorError as error:
        raise damaged(path, error) from None


def damaged(path: Path, reason: Exception | str) -> InputError:
    """Returns the error for a file that cannot be read as what it is."""
    line = next(iter(str(reason).splitlines()), type(reason).__name__)
    return InputError(f"{path} is cut off or damaged ({path.stat().st_size} bytes, {line}); download or copy it again")


@contextmanager
def damaged_file_named(location: str | Path) -> Iterator[None]:
    """Where transformers cannot read the weights of a folder, raises InputError with the file that is damaged."""
    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError):
        if Path(location).is_dir():
            tensor_names(Path(location))
        raise


def load_bin(path: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Reads a `.bin` file that holds tensors by name and nothing else; no code in it is run.

    Args:
        path: A state dict that torch.save wrote.
        device: `cpu` maps the numbers into memory, `meta` leaves them on the disk.

    Raises:
        InputError: The file is damaged, or holds code or other objects.
    """
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        content = torch.load(path, map_location=device, weights_only=True, mmap=is_zip and device == "cpu")
    except pickle.UnpicklingError:
        raise _not_only_tensors(path, is_zip) from None
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise damaged(path, error) from None
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        kind = ", ".join(map(str, list(content)[:4])) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path} holds more than tensors by name (it has: {kind}); save the model's state dict alone")
    return {str(name): tensor for name, tensor in content.items()}


def _not_only_tensors(path: Path, is_zip: bool) -> InputError:
    unsafe: list[Any] = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_zip else []
    if not unsafe:
        return InputError(f"{path} is not a file of tensors, or one with code in it, which is not run")
    return InputError(
        f"{path} asks for {', '.join(map(str, unsafe))}, which a file of weights does not need; it may run foreign "
        "code and was not read: take the weights from their source, or as safetensors"
    )
