"""A folder to be written, decided to the last byte before the first one is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt4roi.checkpoint.numbers import one_thread
from gpt4roi.checkpoint.safetensors_stream import PlannedTensor
from gpt4roi.checkpoint.shards import plan_shards, write_shards
from gpt4roi.checkpoint.staging import StagedFolder, check_space, check_target
from gpt4roi.checkpoint.streams import WeightFolder
from gpt4roi.io.sizes import parse_size, readable_size


@dataclass
class FolderPlan:
    """What `write` puts into `target`.

    files: small files by name, written as they are. closing_files: the same, made when the tensors have been written.
    identity: says what the tensors are made from; an interrupted run with an equal one is continued, None never is.
    check: looks at the finished folder before it gets its name and says what it found in a few words; an InputError
        from it leaves nothing behind.
    notes: what people should know about the result, shown in `summary`.
    """

    target: Path
    shards: dict[str, list[PlannedTensor]]
    files: dict[str, bytes]
    identity: Any = None
    closing_files: Callable[[], dict[str, bytes]] = field(default=dict)
    check: Callable[[Path], str] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensors in self.shards.values() for tensor in tensors)

    @property
    def summary(self) -> str:
        """Says in one line what was written."""
        count = f"{len(self.shards)} file{'s' if len(self.shards) > 1 else ''} of weights"
        return "; ".join([f"{readable_size(self.nbytes)} in {count}", *self.notes])

    def write(self, progress: Callable[[int], None] = lambda count: None) -> None:
        """Writes the folder and renames it into place; `progress` hears of every byte of the tensors."""
        with one_thread(), StagedFolder(self.target, self.identity) as staged:
            write_shards(staged, self.shards, progress)
            for name, content in (self.files | self.closing_files()).items():
                staged.write_bytes(name, content)
            if self.check is not None:
                self.notes.append(self.check(staged.path))
            staged.publish()


def plan_folder(
    target: Path,
    tensors: Sequence[PlannedTensor],
    files: dict[str, bytes],
    sources: dict[str, WeightFolder],
    max_shard_size: str,
    overwrite: bool,
    beside: dict[str, list[PlannedTensor]] | None = None,
) -> FolderPlan:
    """Checks that `target` may be written and fits on its disk, and plans its files.

    sources: by role, what the tensors are made from. beside: further files of tensors, in folders inside `target`.
    """
    check_target(target, {role: source.path for role, source in sources.items()}, overwrite)
    plan = FolderPlan(target, plan_shards(tensors, parse_size(max_shard_size)) | (beside or {}), files)
    check_space(target, plan.nbytes)
    plan.identity = {
        "sources": {role: [_state(file) for file in source.files] for role, source in sources.items()},
        "shards": {name: [[t.name, t.dtype, t.shape] for t in group] for name, group in plan.shards.items()},
    }
    return plan


def _state(file: Path) -> list[Any]:
    status = file.stat()
    return [str(file.resolve()), status.st_size, status.st_mtime_ns]
