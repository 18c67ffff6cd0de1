"""Atomic, resumable output folders of weights: shards planned to the last byte, streamed, and renamed into place.

At any moment, also after a kill or a power cut, the target is absent, the old one, or the new one. The unfinished
folder is `<target>.partial`; the next run with the same inputs keeps the files that are complete in it.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt4roi.checkpoint.tensor_files import DTYPES, WeightFolder, one_thread
from gpt4roi.errors import InputError
from gpt4roi.io.atomic import (
    BEFORE_IS_KEPT,
    is_disk_full,
    match_folder_permissions,
    only_writer,
    readable_full_disk,
    remove_folder,
    replacing,
    sync,
)
from gpt4roi.io.auto_map import with_auto_map
from gpt4roi.io.sizes import parse_size, readable_size
from gpt4roi.io.weight_files import INDEX_SUFFIX, WEIGHT_FILES
from gpt4roi.models.model_card import MODEL_CARD, is_written_by_user, model_card

DEFAULT_SHARD_SIZE = "5GB"

_SINGLE = WEIGHT_FILES[0]
_PLAN = "plan.json"
_SPARE_BYTES = 16 * 1024 * 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor to be written.

    Attributes:
        dtype: A key of DTYPES; with the shape it decides how many bytes the tensor takes in the file.
        chunks: Yields these bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[memoryview]]

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


Shards = dict[str, list[PlannedTensor]]
"""Tensors by the file that they go to."""


@dataclass
class FolderPlan:
    """A folder of weights to be written.

    Attributes:
        files: Small files by name.
        identity: JSON value that says what is written from what; an interrupted run with an equal one is resumed,
            None never is.
        closing_files: Makes further small files when the tensors have been written.
        check: Examines the finished folder before it gets its name, and returns a few words for the summary; an
            InputError from it leaves nothing behind.
        notes: What a user should know about the result, shown in `summary`.
    """

    target: Path
    shards: Shards
    files: dict[str, bytes]
    identity: Any = None
    closing_files: Callable[[], dict[str, bytes]] = field(default=dict)
    check: Callable[[Path], str] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensors in self.shards.values() for tensor in tensors)

    @property
    def summary(self) -> str:
        """One line about what was written."""
        count = f"{len(self.shards)} file{'s' if len(self.shards) > 1 else ''} of weights"
        return "; ".join([f"{readable_size(self.nbytes)} in {count}", *self.notes])

    def write(self, progress: Callable[[int], None] = lambda count: None) -> None:
        """Writes the folder and renames it into place; `progress` is called with every count of bytes written."""
        with one_thread(), staged_folder(self.target, self.identity) as folder:
            _write_shards(folder, self.shards, progress)
            for name, content in (self.files | self.closing_files()).items():
                _write_bytes(folder / name, content)
            if self.check is not None:
                self.notes.append(self.check(folder))


def plan_folder(
    target: Path,
    tensors: Sequence[PlannedTensor],
    files: dict[str, bytes],
    sources: dict[str, WeightFolder],
    max_shard_size: str,
    overwrite: bool,
    beside: Shards | None = None,
    kind: str = "model",
) -> FolderPlan:
    """Checks that `target` may be written and fits on its disk, and plans its files.

    Args:
        target: The folder.
        tensors: The model's tensors, in the order of the shards.
        files: Small files by name.
        sources: What the tensors are made from, by role.
        max_shard_size: As parse_size takes it.
        overwrite: Replace a folder that exists.
        beside: Further files of tensors, in folders inside `target`.
        kind: For the model card, which is added to the files: model or delta.
    """
    check_target(target, {role: source.path for role, source in sources.items()}, overwrite)
    card = model_card(json.loads(files["config.json"]), kind)
    files = (files if kind == "delta" else with_auto_map(files)) | {MODEL_CARD: card.encode()}
    plan = FolderPlan(target, split_into_shards(tensors, parse_size(max_shard_size)) | (beside or {}), files)
    check_space(target, plan.nbytes)
    plan.identity = {
        "sources": {role: [_file_state(file) for file in source.files] for role, source in sources.items()},
        "shards": {name: [[t.name, t.dtype, t.shape] for t in group] for name, group in plan.shards.items()},
    }
    return plan


def _file_state(file: Path) -> list[Any]:
    status = file.stat()
    return [str(file.resolve()), status.st_size, status.st_mtime_ns]


def split_into_shards(tensors: Sequence[PlannedTensor], max_bytes: int) -> Shards:
    """Fills files in the tensors' order up to `max_bytes` each; a tensor larger than that gets a file of its own."""
    groups: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    if len(groups) == 1:
        return {_SINGLE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, start=1)}


def check_target(target: Path, sources: dict[str, Path], overwrite: bool) -> None:
    """Raises InputError when `target` is one of the `sources` (folders by role), or exists and may not be replaced."""
    for role, source in sources.items():
        if target.resolve() == source.resolve():
            raise InputError(f"the target {target} is the {role} folder itself; give another folder")
    if target.exists() and not target.is_dir():
        raise InputError(f"the target {target} is a file; give a folder that does not exist yet")
    in_place = _replaced(target) if _replaced(target).exists() else target
    if in_place.is_dir() and any(in_place.iterdir()) and not overwrite:
        raise InputError(f"the target {target} exists and is not empty; give another folder or add --overwrite")


def check_space(target: Path, needed: int) -> None:
    """Raises InputError when the disk of `target` has no room for `needed` bytes; what is already staged counts."""
    existing = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.exists())
    staged = sum(file.stat().st_size for file in _partial(target.absolute()).rglob("*"))
    free = shutil.disk_usage(existing).free + staged
    if free < needed + _SPARE_BYTES:
        raise InputError(
            f"{target} needs {readable_size(needed)} and its disk has {readable_size(free)} free; "
            "make room or give a target on another disk"
        )


@contextmanager
def staged_folder(target: Path, identity: Any) -> Iterator[Path]:
    """Yields the folder to write to, which is renamed to `target` when the block ends well.

    An InputError inside the block removes the unfinished folder, any other exception leaves it for the next run.

    Args:
        target: An old folder there is replaced only now.
        identity: JSON value that says what is written from what. When an earlier run with an equal one was
            interrupted, its complete files are still there; with another, or None, the folder is emptied first.
    """
    target = target.absolute()
    partial = _partial(target)
    kept = f"finished files in {partial} are kept" if identity is not None else BEFORE_IS_KEPT
    with only_writer(target, partial.with_name(partial.name + ".lock")), readable_full_disk(target, kept):
        try:
            _prepare(partial, target, identity)
            yield partial
            _publish(partial, target)
        except Exception as error:
            if isinstance(error, InputError) or (identity is None and is_disk_full(error)):
                _remove(partial)
            raise


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def _replaced(target: Path) -> Path:
    return target.with_name(target.name + ".replaced")


def _prepare(partial: Path, target: Path, identity: Any) -> None:
    partial.mkdir(exist_ok=True)
    # A run that was killed between the two renames of _publish left the old folder under another name.
    old = _replaced(target)
    if old.exists() and not target.exists():
        old.replace(target)
    remove_folder(old)
    plan = partial / _PLAN
    text = json.dumps(identity, sort_keys=True)
    if identity is not None and plan.exists() and plan.read_text(encoding="utf-8") == text:
        logger.info("resuming the unfinished %s", partial)
        return
    for entry in partial.iterdir():
        _remove(entry)
    if identity is not None:
        _write_bytes(plan, text.encode())


def _publish(partial: Path, target: Path) -> None:
    (partial / _PLAN).unlink(missing_ok=True)
    for file in partial.rglob("*.safetensors"):
        match_folder_permissions(file)
    for folder in (partial, *(entry for entry in partial.iterdir() if entry.is_dir())):
        sync(folder)
    if is_written_by_user(target / MODEL_CARD):
        shutil.copy2(target / MODEL_CARD, partial / MODEL_CARD)
    old = _replaced(target)
    if target.exists():
        target.replace(old)
    partial.replace(target)
    sync(target.parent)
    remove_folder(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as part:
        part.write_bytes(content)


def _write_shards(folder: Path, shards: Shards, progress: Callable[[int], None]) -> None:
    """Writes the files that `folder` does not hold complete yet, then their index.

    Files in a folder of their own (`clip/model.safetensors`) are no part of the model and not in its index.
    """
    for name, tensors in shards.items():
        path = folder / name
        if path.exists():  # a file gets this name when it is complete and on the disk
            progress(sum(tensor.nbytes for tensor in tensors))
            continue
        path.parent.mkdir(exist_ok=True)
        write_safetensors(path, tensors, progress)
    model = {name: tensors for name, tensors in shards.items() if "/" not in name}
    if len(model) > 1:
        weight_map = {tensor.name: name for name, tensors in model.items() for tensor in tensors}
        total = sum(tensor.nbytes for tensors in model.values() for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_bytes(folder / (_SINGLE + INDEX_SUFFIX), json.dumps(index, indent=2).encode() + b"\n")


def write_safetensors(path: Path, tensors: Sequence[PlannedTensor], progress: Callable[[int], None]) -> None:
    """Streams tensors to one safetensors file, which is complete or absent afterwards."""
    with replacing(path, path.with_name(path.name + ".part")) as part, part.open("wb", buffering=0) as file:
        _write_all(file, _header(tensors))
        for tensor in tensors:
            written = 0
            for chunk in tensor.chunks():
                _write_all(file, chunk)
                written += len(chunk)
                progress(len(chunk))
            if written != tensor.nbytes:
                raise RuntimeError(f"{tensor.name}: {written} bytes were produced, {tensor.nbytes} planned")


def _header(tensors: Iterable[PlannedTensor]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        end = position + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data to start at a multiple of eight
    return len(text).to_bytes(8, "little") + text


def _write_all(file: Any, chunk: bytes | memoryview) -> None:
    view = memoryview(chunk)
    while len(view):
        view = view[file.write(view) :]
