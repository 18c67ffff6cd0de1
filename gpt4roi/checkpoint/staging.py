"""A folder that comes into being whole: written beside its place and renamed when every byte is on the disk.

At any moment, also after a kill or a power cut, `target` is absent, the old one, or the new one. The unfinished folder
is `<target>.partial`; the next run with the same inputs keeps the files that are complete in it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.io.atomic import match_folder_permissions, remove_folder, sync
from gpt4roi.io.sizes import readable_size

_PLAN = "plan.json"
_SPARE_BYTES = 16 * 1024 * 1024

log = logging.getLogger(__name__)


def check_target(target: Path, sources: dict[str, Path], overwrite: bool) -> None:
    """Raises InputError when `target` is one of the `sources` (role → folder), or exists and may not be replaced."""
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
    place = target.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free + _staged_bytes(target)
    if free < needed + _SPARE_BYTES:
        raise InputError(
            f"{target} needs {readable_size(needed)} and its disk has {readable_size(free)} free; "
            "make room or give a target on another disk"
        )


class StagedFolder:
    """Context in which the files of `target` are written to `.path`; `publish()` puts them in place at once.

    `plan` is any JSON value that says what is written from what. When an earlier run with an equal plan was
    interrupted, its complete files are still there; with another plan, or None, the folder is emptied first.
    An InputError inside the context removes the unfinished folder, any other way out leaves it for the next run.
    """

    def __init__(self, target: Path, plan: Any):
        self.target = target.absolute()
        self.path = _partial(self.target)
        self._plan = None if plan is None else json.dumps(plan, sort_keys=True)
        self._lock: int | None = None

    def __enter__(self) -> StagedFolder:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            return self._enter()
        except BaseException:
            self._give_back_lock()
            raise

    def _enter(self) -> StagedFolder:
        self.path.mkdir(exist_ok=True)
        _recover(self.target)
        plan = self.path / _PLAN
        if plan.exists() and plan.read_text(encoding="utf-8") == self._plan:
            log.info("going on with the unfinished %s", self.path)
            return self
        for entry in self.path.iterdir():
            _remove(entry)
        if self._plan is not None:
            self.write_bytes(_PLAN, self._plan.encode())
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, InputError):
            _remove(self.path)
        self._give_back_lock()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"the disk of {self.target} is full; make room and run again, finished files in {self.path} are kept"
            ) from error

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes one small file and forces it to the disk."""
        part = self.path / f"{name}.part"
        part.parent.mkdir(exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path / name)

    def publish(self) -> None:
        """Renames the finished folder to `target`; an old folder there gives way only now."""
        (self.path / _PLAN).unlink(missing_ok=True)
        for file in self.path.rglob("*.safetensors"):
            match_folder_permissions(file)
        for folder in (self.path, *(entry for entry in self.path.iterdir() if entry.is_dir())):
            sync(folder)
        old = _replaced(self.target)
        if self.target.exists():
            self.target.replace(old)
        self.path.replace(self.target)
        sync(self.target.parent)
        remove_folder(old)

    def _take_lock(self) -> None:
        """Keeps other runs out until the target is in place and the old one gone. The file of the lock goes with it."""
        place = _lock(self.target)
        while self._lock is None:
            lock = os.open(place, os.O_CREAT | os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise InputError(f"another run is writing {self.target}; wait for it or give another target") from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), os.stat(place)):
                    self._lock = lock
                    return
            os.close(lock)  # of a run that has just ended and taken its file along

    def _give_back_lock(self) -> None:
        if self._lock is not None:
            _lock(self.target).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def _lock(target: Path) -> Path:
    return target.with_name(target.name + ".partial.lock")


def _replaced(target: Path) -> Path:
    return target.with_name(target.name + ".replaced")


def _recover(target: Path) -> None:
    """Puts back, or clears away, the old folder of a run that was killed between the two renames of `publish`."""
    old = _replaced(target)
    if old.exists() and not target.exists():
        old.replace(target)
    remove_folder(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _staged_bytes(target: Path) -> int:
    partial = _partial(target.absolute())
    return sum(file.stat().st_size for file in partial.rglob("*"))
