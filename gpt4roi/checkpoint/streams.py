"""Opens the weights of a folder without reading them: one file or shards, safetensors or today's zip-format `.bin`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gpt4roi.checkpoint import safetensors_stream, zip_bin
from gpt4roi.checkpoint.stored import StoredTensor
from gpt4roi.errors import InputError

INDEX_SUFFIX = ".index.json"
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors" + INDEX_SUFFIX,
    "pytorch_model.bin",
    "pytorch_model.bin" + INDEX_SUFFIX,
)
"""What a folder of weights may be named after, in the order in which they are preferred."""

_LFS_START = b"version https://git-lfs"


@dataclass(frozen=True)
class WeightFolder:
    """The weights of one folder: where each tensor lies, in the order of the files and of the bytes in them."""

    path: Path
    tensors: dict[str, StoredTensor]
    files: tuple[Path, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def open_weights(path: str | Path, role: str = "model") -> WeightFolder:
    """Lists the tensors of the folder `path`; `role` names it in messages (`base`, `delta`, …).

    Raises InputError for a folder without weights, a missing or cut-off file, a pointer of Git LFS, an old-format file.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(_no_folder(folder, role))
    for name in WEIGHT_FILES:
        if not (folder / name).exists():
            continue
        if name.endswith(INDEX_SUFFIX):
            return _open_shards(folder, folder / name, role)
        return _weight_folder(folder, _read_directory(folder / name), (folder / name,))
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
    raise InputError(
        f"the {role} folder {folder} has no weights: expected one of {', '.join(WEIGHT_FILES)}, found {found}; "
        "download the weights into it"
    )


def _no_folder(folder: Path, role: str) -> str:
    if folder.exists():
        return f"the {role} {folder} is a file; give the folder that holds config.json and the weights"
    hint = f"`hf download {folder} --local-dir FOLDER`" if len(folder.parts) == 2 else "the folder that holds it"
    return f"there is no {role} folder {folder} (looked in {Path.cwd()}); download it first and give {hint}"


def _open_shards(folder: Path, index: Path, role: str) -> WeightFolder:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is not an index of shards ({error!r}); download it again") from error
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"the {role} folder {folder} lacks {len(missing)} of its {len(names)} shards ({', '.join(missing[:3])}); "
            "download them into the folder"
        )
    shards = {name: _read_directory(folder / name) for name in names}
    absent = [f"{tensor} in {name}" for tensor, name in weight_map.items() if tensor not in shards[name]]
    if absent:
        raise InputError(
            f"{index} promises {len(absent)} tensors that their shards do not hold, first {absent[0]}; index and "
            "shards are from different models: download both again"
        )
    tensors = {tensor: shards[name][tensor] for tensor, name in weight_map.items()}
    return _weight_folder(folder, tensors, tuple(folder / name for name in names))


def _weight_folder(folder: Path, tensors: dict[str, StoredTensor], files: tuple[Path, ...]) -> WeightFolder:
    if not tensors:
        raise InputError(f"the weights of {folder} hold no tensor; download them again")
    in_order = sorted(tensors.values(), key=lambda tensor: (tensor.path, tensor.offset))
    return WeightFolder(folder, {tensor.name: tensor for tensor in in_order}, files)


def _read_directory(path: Path) -> dict[str, StoredTensor]:
    with path.open("rb") as file:
        start = file.read(len(_LFS_START))
    if start == _LFS_START:
        raise InputError(
            f"{path} is a pointer of Git LFS ({path.stat().st_size} bytes), not the weights; "
            f"run `git lfs pull` in {path.parent}"
        )
    if path.suffix == ".safetensors":
        return safetensors_stream.read_directory(path)
    return zip_bin.read_directory(path)
