"""Work directory of a training run: its recorded arguments, settings, lock and completion mark."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.io.atomic import FileLock, atomic_write_text, readable_write_errors
from gpt4roi.io.model_folders import DONE as DONE
from gpt4roi.io.model_folders import RUN as ARGUMENTS
from gpt4roi.io.model_folders import UNFINISHED, identify

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
LOCK = "run.lock"
REGION_TEXTS = "region_texts.cache"
"""In safetensors' format, but named otherwise: engines read every *.safetensors beside a model as its weights."""
OLD_REGION_TEXTS = "region_texts.safetensors"

Flags = dict[str, tuple[str, ...]]
"""A command line as name -> values; words before the first flag stand under an empty name."""

ALIASES = {
    "picture_features": "feature_cache",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Former names of flags, which run.json of older runs and older scripts hold."""

# fmt: off
CHANGEABLE = frozenset((
    "per_device_train_batch_size", "per_device_eval_batch_size", "save_steps", "save_total_limit", "logging_steps",
    "eval_steps", "report_to", "run_name", "disable_tqdm", "dataloader_num_workers", "dataloader_prefetch_factor",
    "ddp_backend", "ddp_timeout", "activation_checkpointing",
))
# fmt: on
"""Flags that a resumed run may be given anew: they change neither the samples of a step nor what is trained."""


def parse_flags(argv: Sequence[str]) -> Flags:
    """Parses `--some-flag=value` and `--some_flag value …`; a flag given twice counts as given last."""
    flags: Flags = {}
    name = ""
    for word in argv:
        if word.startswith("--"):
            name, *value = word[2:].split("=", 1)
            name = name.replace("-", "_")
            name = ALIASES.get(name, name)
            flags[name] = tuple(value)
        else:
            flags[name] = (*flags.get(name, ()), word)
    return flags


def to_argv(flags: Flags) -> list[str]:
    """Writes flags as the words of a command line."""
    return [word for name, values in flags.items() for word in (*([f"--{name}"] if name else ()), *values)]


_SWITCH = {"yes": True, "true": True, "t": True, "y": True, "1": True}
_SWITCH |= {"no": False, "false": False, "f": False, "n": False, "0": False}


def switch(flags: Flags, name: str) -> bool | None:
    """Returns whether a switch is on (also where it is named alone) or off, as argparse reads it; else None."""
    values = flags.get(name, ("false",)) or ("true",)
    return _SWITCH.get(values[0].lower()) if len(values) == 1 else None


def is_on(flags: Flags, name: str) -> bool:
    """Tells whether a switch is on: named alone, or with a value that argparse takes for true."""
    return bool(switch(flags, name))


def recorded_flags(folder: Path, stage: int, given: Flags) -> Flags:
    """Returns the flags of the run that a work directory belongs to, or the given ones for a new run.

    A run that has begun to train takes only CHANGEABLE flags beside its own; one that was interrupted before that
    takes any. Raises InputError where the directory belongs to a run with other flags or of another stage, or to
    something else.
    """
    path = folder / ARGUMENTS
    if not path.is_file():
        _check_foreign_files(folder)
        return given
    try:
        run = json.loads(path.read_text())
        recorded, of_stage, begun = parse_flags(run["arguments"]), run["stage"], bool(run.get("begun", True))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: damaged; delete it to start anew in this folder") from None
    if of_stage != stage:
        raise InputError(f"{folder} holds a run of stage {of_stage}, not {stage}; choose another work directory")
    differing = sorted(name for name in {**recorded, **given} if not _same(recorded.get(name), given.get(name)))
    if not given or not differing:
        return recorded
    if set(given) <= CHANGEABLE:
        logger.info("Resuming %s with changed %s", folder, ", ".join(sorted(given)))
        return recorded | given
    if not begun:
        for name in (REGION_TEXTS, OLD_REGION_TEXTS):
            (folder / name).unlink(missing_ok=True)
        return given
    if set(differing) <= CHANGEABLE:
        return given
    shown = ", ".join(f"--{name}" for name in differing if name not in CHANGEABLE)
    raise InputError(
        f"{folder} holds a run with other arguments (they differ in {shown}); give the folder alone to resume it, or "
        "choose another work directory"
    )


def recorded_stage(folder: Path) -> int | None:
    """Returns the stage of the run that a work directory holds; None where there is none or its file is damaged."""
    try:
        stage = json.loads((folder / ARGUMENTS).read_text())["stage"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return stage if stage in (1, 2) else None


def region_texts_file(folder: Path) -> Path:
    """Returns the file of the texts that name regions; one of version 0.2 gets its new name."""
    if (folder / OLD_REGION_TEXTS).is_file():
        (folder / OLD_REGION_TEXTS).replace(folder / REGION_TEXTS)
    return folder / REGION_TEXTS


def _same(one: Sequence[str] | None, other: Sequence[str] | None) -> bool:
    """Compares values without the slash at the end that a shell completes a folder with."""
    if one is None or other is None:
        return one is other
    return [value.rstrip("/") for value in one] == [value.rstrip("/") for value in other]


def _check_foreign_files(folder: Path) -> None:
    """Raises InputError where a folder without a run of ours holds a model or checkpoints of something else."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; --output_dir names a folder")
    foreign = [*folder.glob("config.json"), *folder.glob("checkpoint-*"), *folder.glob("*.safetensors")]
    foreign = [path for path in foreign if path.name != OLD_REGION_TEXTS]
    if foreign:
        raise InputError(
            f"{folder} holds {foreign[0].name} but no run of this training ({ARGUMENTS}); choose another work directory"
        )


def record_flags(folder: Path, stage: int, flags: Flags, begun: bool = True) -> None:
    """Writes the flags of a run, so that the folder alone resumes it; begun: whether it has begun to train."""
    facts = {"stage": stage, "arguments": to_argv(flags), "begun": begun}
    atomic_write_text(folder / ARGUMENTS, json.dumps(facts, indent=1))


def write_settings(folder: Path, parts: Sequence[Mapping[str, Any]], processes: int) -> None:
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
    found = identify(folder)
    if found.kind == UNFINISHED:
        found.require_model()


@contextmanager
def lock(folder: Path, needed: bool = True) -> Iterator[None]:
    """Locks a work directory for one training; the first process does so for all.

    Raises InputError where another training runs in it, or it cannot be written to.
    """
    if not needed:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror}); choose another work directory") from None
    busy = f"another training runs in {folder} (process {{owner}}); wait for it or end it"
    with ExitStack() as held:
        with readable_write_errors(folder / LOCK, "the run is where it was"):
            held.enter_context(FileLock(folder / LOCK, busy=busy))
        yield
