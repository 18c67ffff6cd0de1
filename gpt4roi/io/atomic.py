"""Atomic file writes, atomic folders, and locks between processes; a full disk costs one readable line."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import glob
import hashlib
import logging
import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from gpt4roi.errors import InputError

logger = logging.getLogger(__name__)

BEFORE_IS_KEPT = "what was there before is kept"
DONE_IS_KEPT = "what is done is kept"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch, safetensors and tokenizers raise errors without a number.
_FULL_WORDS = ("No space left", "Disk quota", "File too large", "PytorchStreamWriter failed", "unexpected pos")
_group: contextvars.ContextVar[contextlib.ExitStack | None] = contextvars.ContextVar("group", default=None)


@contextlib.contextmanager
def readable_write_errors(path: Path, kept: str = DONE_IS_KEPT) -> Iterator[None]:
    """Turns a disk that is full or may not be written into one readable line.

    Only the writing belongs inside: any OSError is taken for it.

    Args:
        path: What is being written.
        kept: What is not lost, for the message.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}; {kept}: make room, and run it again"
        ) from None


def is_disk_full(error: BaseException) -> bool:
    """Tells whether an error, of whatever library, says that a disk has no room for bytes or for names."""
    return getattr(error, "errno", None) in _FULL or any(word in str(error) for word in _FULL_WORDS)


@contextlib.contextmanager
def readable_full_disk(path: Path, kept: str = DONE_IS_KEPT) -> Iterator[None]:
    """Turns a full disk into one readable line, whatever else is done inside; other errors are raised as they are."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise InputError(f"the disk of {path} is full; make room and run again, {kept}") from error


@contextlib.contextmanager
def only_writer(path: Path, lock: Path | None = None) -> Iterator[None]:
    """Keeps other processes from making the same file or folder meanwhile. Makes the folder that it lies in.

    Args:
        path: What is made.
        lock: The lock's file; `.<name>.lock` beside it by default. It is removed.

    Raises:
        InputError: Another process is making it, or nothing can be written there.
    """
    path = path.resolve()
    busy = f"another run is writing {path} (process {{owner}}); wait for it or give another target"
    with contextlib.ExitStack() as held:
        with readable_write_errors(path, BEFORE_IS_KEPT):
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(lock or path.with_name(f".{path.name}.lock"), busy=busy, remove=True))
        yield


@contextlib.contextmanager
def written_together() -> Iterator[None]:
    """Gives the files of every `atomic_path` in the block their names when the block ends, and none where it fails."""
    with contextlib.ExitStack() as stack:
        token = _group.set(stack)
        try:
            yield
        finally:
            _group.reset(token)


@contextlib.contextmanager
def atomic_path(path: Path, kept: str = BEFORE_IS_KEPT) -> Iterator[Path]:
    """Gives a path beside this one to write to; that file replaces it when all went well, else nothing is left.

    A link is followed. Makes the folder.

    Raises:
        InputError: The path is something else than a file, which would be replaced, or the file cannot be written.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file that could be replaced; give another name")
    with readable_write_errors(path, kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        replacement = replacing(path, path.with_name(f".{path.name}.part"))
        group = _group.get()
        if group is None:
            with replacement as beside:
                yield beside
        else:
            group.enter_context(readable_write_errors(path, kept))
            beside = group.enter_context(replacement)
            yield beside
            sync(beside)


@contextlib.contextmanager
def replacing(path: Path, beside: Path | None = None) -> Iterator[Path]:
    """Does the work of `atomic_path`, but raises OSError as it is.

    Args:
        path: The file, in a folder that exists.
        beside: The path to write to; by default one that no other process on any machine has, and what processes that
            are gone left under such names goes.
    """
    if beside is None:
        clear_leftovers(path)
        beside = temporary_path(path)
    try:
        yield beside
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Returns a path beside a file that no other process on any machine has."""
    return path.with_name(f"{path.name[:48]}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part")


def clear_leftovers(path: Path) -> None:
    """Removes the temporary paths of a file whose processes, of this machine, are gone: killed on the way."""
    for left in path.parent.glob(f"{glob.escape(path.name[:48])}.{_machine()}-*-*.part"):
        process = left.name.rsplit("-", 2)[1]
        if process.isdigit() and not _is_running(int(process)):
            left.unlink(missing_ok=True)


def _machine() -> str:
    """Returns a short name of what numbers processes: a machine, or a container of one."""
    namespace = ""
    with contextlib.suppress(OSError):  # Linux alone has it
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.blake2b(f"{platform.node()} {uuid.getnode()} {namespace}".encode(), digest_size=5).hexdigest()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def atomic_write_text(path: Path, text: str, kept: str = BEFORE_IS_KEPT) -> None:
    """Writes a UTF-8 text file completely or not at all. Raises InputError as `atomic_path`."""
    with atomic_path(path, kept) as beside:
        beside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder that is gone after the block; what a killed call left there goes first."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target` that takes its place when the block ends well, and goes when it fails."""
    with scratch_folder(target.with_name(target.name + ".partial")) as scratch:
        yield scratch
        remove_folder(target)
        scratch.replace(target)
        sync(target.parent)


def sync(path: Path) -> None:
    """Forces a file, or the names in a folder, to the disk, so that they outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def match_folder_permissions(path: Path) -> None:
    """Lets everyone read a file who may list its folder: safetensors leaves what it writes to its owner alone.

    Where the file system has no such permissions, nothing happens.
    """
    with contextlib.suppress(OSError):
        path.chmod(path.stat().st_mode | path.parent.stat().st_mode & 0o444)


def remove_folder(folder: Path, aside: Path | None = None) -> None:
    """Deletes a folder, if it is there; a kill on the way leaves no half of it under its name.

    Of a link to a folder, the link goes and the folder stays.

    Args:
        folder: What is deleted.
        aside: Its name while it goes, `.<folder>.removed` by default. What a killed call left there goes too.
    """
    if folder.is_symlink():
        folder.unlink()
        return
    aside = aside or folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.replace(aside)
        shutil.rmtree(aside)


class FileLock:
    """Lock between the processes of a machine, held as a context; it ends with the process, also by a crash.

    Raises OSError where the lock's file cannot be made, and InputError with `busy` where another process holds it.

    Args:
        path: The lock's file, which holds the number of the process. Its folder is made.
        busy: Message when another process holds it; `{owner}` stands for that process. None waits for it.
        waiting: What is logged before waiting.
        remove: Delete the file at the end; the next process makes a new one.
    """

    def __init__(self, path: Path, busy: str | None = None, waiting: str = "", remove: bool = False) -> None:
        from filelock import FileLock as Lock

        self.path, self.busy, self.waiting, self.remove = path, busy, waiting, remove
        self._lock = Lock(path)

    def __enter__(self) -> FileLock:
        from filelock import Timeout

        owner = self._owner()  # before the attempt: older releases of filelock empty the file
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            if self.busy is not None:
                raise InputError(self.busy.replace("{owner}", owner)) from None
            logger.info(self.waiting)
            self._lock.acquire(timeout=-1)
        try:
            if self._owner() != str(os.getpid()):  # where the file system has no locks, filelock writes it
                self._write_owner()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.remove:
            self.path.unlink(missing_ok=True)
        self._lock.release()

    def _owner(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
        except OSError:
            return ""

    def _write_owner(self) -> None:
        handle = os.open(self.path, os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(handle, str(os.getpid()).encode())
        finally:
            os.close(handle)


def append_lines(path: Path, lines: str, kept: str = DONE_IS_KEPT) -> None:
    """Appends complete lines to a file; after this call a kill no longer costs them.

    A line that a kill or a full disk cut off is ended first, so that it spoils none of these. Raises InputError where
    the file cannot be written.
    """
    if not lines:
        return
    with readable_write_errors(path, kept), path.open("ab") as file:
        cut_off = file.tell() and not _ends_with_newline(path)
        file.write((b"\n" if cut_off else b"") + lines.encode())


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


write_whole = atomic_write_text  # the name of version 0.1
