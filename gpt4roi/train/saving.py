"""Atomic checkpoints: written beside their path, listed in a manifest with sizes and checksums, renamed when complete.

`checkpoint-N` appears by a rename, after `whole.json` has listed every file's size and checksum and all of it is on
the disk. A folder that does not agree with its manifest, or has none, is corrupt: it is never resumed and never
counted.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from gpt4roi.errors import InputError
from gpt4roi.io.atomic import (
    BEFORE_IS_KEPT,
    is_disk_full,
    match_folder_permissions,
    readable_write_errors,
    remove_folder,
    replacing,
    sync,
)
from gpt4roi.io.digests import sampled_crc32
from gpt4roi.io.sizes import readable_size
from gpt4roi.models.model_card import MODEL_CARD, is_written_by_user

logger = logging.getLogger(__name__)

MANIFEST = "whole.json"
PREFIX = "checkpoint-"
PARTIAL = ".partial-"
"""Prefix of folders that are unfinished or about to be deleted; they are cleared away when the next run begins."""


def step_of(checkpoint: Path) -> int:
    """Returns the number of steps behind a checkpoint, by its name; -1 where it is no checkpoint's name."""
    number = checkpoint.name.removeprefix(PREFIX)
    return int(number) if checkpoint.name.startswith(PREFIX) and number.isdigit() else -1


def checkpoints(folder: Path) -> list[Path]:
    """Lists the checkpoints of a work directory, complete or not, oldest first."""
    return sorted((path for path in folder.glob(f"{PREFIX}*") if step_of(path) >= 0), key=step_of)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, MODEL_CARD))


def _settle(path: Path) -> None:
    match_folder_permissions(path)
    sync(path)


def write_manifest(folder: Path) -> None:
    """Lists the files of a finished folder in its manifest and forces all of it to the disk."""
    listed = {}
    for path in _files(folder):
        _settle(path)
        listed[str(path.relative_to(folder))] = [path.stat().st_size, sampled_crc32(path)]
    (folder / MANIFEST).write_text(json.dumps(listed))
    for path in (folder / MANIFEST, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(path)


def find_corruption(folder: Path) -> str | None:
    """Returns what is wrong with a checkpoint, in a few words; None where it is complete."""
    try:
        listed = json.loads((folder / MANIFEST).read_text())
        expected = {name: (int(size), int(total)) for name, (size, total) in listed.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was not written to its end"
    except (OSError, ValueError, TypeError, AttributeError):
        return f"its {MANIFEST} cannot be read"
    for name, (size, total) in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if sampled_crc32(path) != total:
            return f"{name} has other bytes than were written"
    return None


def last_checkpoint(folder: Path) -> Path | None:
    """Returns the newest complete checkpoint of a work directory, and logs which newer ones are corrupt."""
    for checkpoint in reversed(checkpoints(folder)):
        wrong = find_corruption(checkpoint)
        if wrong is None:
            return checkpoint
        logger.warning("%s is corrupt (%s); trying an older one", checkpoint, wrong)
    return None


def clear_leftovers(folder: Path) -> None:
    """Removes what an interrupted run left unfinished."""
    for path in folder.glob(f"{PARTIAL}*"):
        logger.info("%s was left unfinished by a run that was interrupted; it is removed", path)
        shutil.rmtree(path, ignore_errors=True)


def publish(staged: Path, target: Path) -> None:
    """Writes a finished folder's manifest and renames it to its path; a corrupt one of the same name is replaced."""
    write_manifest(staged)
    if target.exists():
        remove(target)
    staged.replace(target)
    sync(target.parent)


def publish_files(staged: Path, target: Path) -> None:
    """Moves the files of a finished folder into another that exists, each by a rename."""
    for path in _files(staged):
        _settle(path)
    for path in _files(staged):
        moved = target / path.relative_to(staged)
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.replace(moved)
    card = staged / MODEL_CARD
    if card.is_file() and not is_written_by_user(target / MODEL_CARD):
        card.replace(target / MODEL_CARD)
    sync(target)
    shutil.rmtree(staged)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file atomically, also where several trainings do so at once; makes the folder."""
    with readable_write_errors(path, BEFORE_IS_KEPT):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(path) as beside:
                save_file(tensors, beside, metadata=metadata)
                match_folder_permissions(beside)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def remove(checkpoint: Path) -> None:
    """Deletes a checkpoint; killed on the way, it leaves a leftover, not a corrupt checkpoint."""
    remove_folder(checkpoint, checkpoint.with_name(f"{PARTIAL}{checkpoint.name}-deleted"))


def rotate_checkpoints(folder: Path, limit: int | None, best: str | None = None) -> None:
    """Keeps the newest `limit` complete checkpoints and the best one; None or 0 keeps all.

    Unlike the Trainer's own rotation this does not count corrupt ones, so that the last complete one always stays.
    Those older than every kept one go too.
    """
    if not limit or limit < 1:
        return
    found = checkpoints(folder)
    kept: list[Path] = []
    for checkpoint in reversed(found):
        if len(kept) < limit and find_corruption(checkpoint) is None:
            kept.append(checkpoint)
    if not kept:
        return
    for checkpoint in found:
        if step_of(checkpoint) < step_of(kept[-1]) and (best is None or checkpoint.name != Path(best).name):
            remove(checkpoint)


@contextmanager
def disk_full_message(what: str, folder: Path, staged: Path) -> Iterator[None]:
    """Turns a full disk into an InputError that says how to resume, and removes what was begun."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, InputError) or not is_disk_full(error):
            raise
        shutil.rmtree(staged, ignore_errors=True)
        free = readable_size(shutil.disk_usage(folder).free)
        last = next((path for path in reversed(checkpoints(folder)) if find_corruption(path) is None), None)
        state = f"{last.name} is complete" if last else "there is no checkpoint yet"
        reason = getattr(error, "strerror", None) or "no space is left"
        raise InputError(
            f"{what} cannot be written to {folder}: {reason} ({free} free); {state}: make room and give the folder "
            "alone to resume"
        ) from error
