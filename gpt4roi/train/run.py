"""The work directory of a training: what was asked for, whether it is done, and which checkpoint is whole."""

from __future__ import annotations

import json
from pathlib import Path

from gpt4roi.errors import InputError

ARGUMENTS = "run.json"
DONE = "trained.json"


def remembered_arguments(folder: Path, stage: int, given: list[str]) -> list[str]:
    """Returns the arguments of the run that a work directory belongs to, or the given ones for a new run.

    Raises InputError where the directory belongs to a run with other arguments or of another stage.
    """
    path = folder / ARGUMENTS
    if not path.is_file():
        return given
    try:
        run = json.loads(path.read_text())
        arguments, of_stage = list(run["arguments"]), run["stage"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise InputError(f"{path}: damaged; delete it to start anew in this folder") from None
    if of_stage != stage:
        raise InputError(f"{folder} holds a run of stage {of_stage}, not {stage}; choose another work directory")
    if given and given != arguments:
        raise InputError(
            f"{folder} holds a run with other arguments ({' '.join(arguments)}); "
            "give the folder alone to resume it, or choose another"
        )
    return arguments


def remember_arguments(folder: Path, stage: int, arguments: list[str]) -> None:
    """Writes down what a run was asked for, so that the folder alone resumes it."""
    write_whole(folder / ARGUMENTS, json.dumps({"stage": stage, "arguments": arguments}, indent=1))


def write_whole(path: Path, text: str) -> None:
    """Writes a file beside its place and renames it there, so that it is never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    beside.write_text(text)
    beside.replace(path)


def last_checkpoint(folder: Path) -> Path | None:
    """Returns the newest checkpoint that was written to its end; the trainer's state is what it writes last."""
    whole = [
        path
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit() and _is_whole(path)
    ]
    return max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return any(checkpoint.glob("model*.safetensors")) or any(checkpoint.glob("adapter*.safetensors"))
