"""The work directory of a training: what was asked for, by whom it is used, and whether it is done."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.io.atomic import atomic_write_text, readable_write_errors

logger = logging.getLogger(__name__)

ARGUMENTS = "run.json"
SETTINGS = "settings.json"
DONE = "trained.json"
LOCK = "run.lock"
REGION_TEXTS = "region_texts.safetensors"

CHANGEABLE = frozenset(
    {
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "save_steps",
        "save_total_limit",
        "logging_steps",
        "eval_steps",
        "report_to",
        "run_name",
        "disable_tqdm",
        "dataloader_num_workers",
        "dataloader_prefetch_factor",
        "ddp_backend",
        "ddp_timeout",
        "activation_checkpointing",
        "gradient_checkpointing",
    }
)
"""What a run that is resumed may be told anew, since it changes neither the samples of a step nor what is learnt."""


def remembered_arguments(folder: Path, stage: int, given: list[str]) -> list[str]:
    """Returns the arguments of the run that a work directory belongs to, or the given ones for a new run.

    A run that has begun to learn takes only CHANGEABLE arguments beside its own; one that was interrupted before that
    takes any. Raises InputError where the directory belongs to a run with other arguments or of another stage.
    """
    path = folder / ARGUMENTS
    if not path.is_file():
        _refuse_strangers(folder)
        return given
    try:
        run = json.loads(path.read_text())
        arguments, of_stage, begun = list(run["arguments"]), run["stage"], bool(run.get("begun", True))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: damaged; delete it to start anew in this folder") from None
    if of_stage != stage:
        raise InputError(f"{folder} holds a run of stage {of_stage}, not {stage}; choose another work directory")
    if not given or _plain(given) == _plain(arguments):
        return arguments
    before, now = options(arguments), options(given)
    if set(now) <= CHANGEABLE:
        logger.info("Resuming %s with changed %s", folder, ", ".join(sorted(now)))
        return [*arguments, *given]
    if not begun:
        (folder / REGION_TEXTS).unlink(missing_ok=True)
        return given
    differing = sorted(name for name in {**before, **now} if _plain(before.get(name)) != _plain(now.get(name)))
    if set(differing) <= CHANGEABLE:
        return given
    shown = ", ".join(f"--{name}" for name in differing if name not in CHANGEABLE)
    raise InputError(
        f"{folder} holds a run with other arguments (they differ in {shown}); give the folder alone to resume it, or "
        "choose another work directory"
    )


def _plain(words: Sequence[str] | None) -> list[str] | None:
    """Returns words without the slash at the end that a shell completes a folder with."""
    return words and [word.rstrip("/") for word in words]


def words(argv: Sequence[str]) -> list[str]:
    """Returns every word, `--some-flag=value` as `--some_flag` and `value`."""
    return [part for word in argv for part in _apart(word)]


def _apart(word: str) -> list[str]:
    """Returns `--some-flag=value` as `--some_flag` and `value`, and any other word as it is."""
    if not word.startswith("--"):
        return [word]
    flag, *value = word.split("=", 1)
    return ["--" + flag[2:].replace("-", "_"), *value]


def options(arguments: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Reads `--name value …` words as name -> values; a name given twice counts as given last."""
    read: dict[str, tuple[str, ...]] = {}
    name = ""
    for word in arguments:
        if word.startswith("--"):
            name = word[2:]
            read[name] = ()
        elif name:
            read[name] += (word,)
    return read


SWITCH = {"yes": True, "true": True, "t": True, "y": True, "1": True}
SWITCH |= {"no": False, "false": False, "f": False, "n": False, "0": False}
"""The words that the parser takes for a switch that is on or off, in whatever case."""


def is_on(options: Mapping[str, tuple[str, ...]], name: str) -> bool:
    """Tells whether a switch is on: named alone, or with a word that the parser takes for true."""
    return name in options and SWITCH.get((options[name] or ("true",))[0].lower(), False)


def _refuse_strangers(folder: Path) -> None:
    """Raises InputError where a folder without a run of ours holds a model or checkpoints of something else."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; --output_dir names a folder")
    foreign = [*folder.glob("config.json"), *folder.glob("checkpoint-*"), *folder.glob("*.safetensors")]
    foreign = [path for path in foreign if path.name != REGION_TEXTS]
    if foreign:
        raise InputError(
            f"{folder} holds {foreign[0].name} but no run of this training ({ARGUMENTS}); choose another work directory"
        )


def remember_arguments(folder: Path, stage: int, arguments: list[str], begun: bool = True) -> None:
    """Writes down what a run was asked for, so that the folder alone resumes it; begun: whether it learns already."""
    atomic_write_text(
        folder / ARGUMENTS, json.dumps({"stage": stage, "arguments": arguments, "begun": begun}, indent=1)
    )


def write_settings(folder: Path, parts: list[Mapping[str, Any]], processes: int) -> None:
    """Writes every setting of a run, the defaults too, with the versions of what it runs on."""
    versions = {}
    for package in ("gpt4roi", "torch", "transformers", "accelerate", "peft", "deepspeed"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    settings = {name: value for part in parts for name, value in part.items()}
    facts = {"processes": processes, "versions": versions, "settings": settings}
    atomic_write_text(folder / SETTINGS, json.dumps(facts, indent=1, default=str))


def require_finished(folder: Path) -> None:
    """Raises InputError where a folder is the work directory of a training that has not ended."""
    if (folder / ARGUMENTS).is_file() and not (folder / DONE).is_file():
        raise InputError(
            f"{folder}: its training is not finished ({DONE} is missing); finish it, or start from one of its "
            f"checkpoints, {folder}/checkpoint-…"
        )


@contextmanager
def held(folder: Path, needed: bool = True) -> Iterator[None]:
    """Holds a work directory for one training; raises InputError while another one runs in it.

    needed: whether this process holds it, which the first one does for all.
    """
    if not needed:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror}); choose another work directory") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 32).decode(errors="replace").strip()
            raise InputError(f"another training runs in {folder} (process {owner}); wait for it or end it") from None
        with readable_write_errors(folder / LOCK, "the run is where it was"):
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        os.close(handle)
