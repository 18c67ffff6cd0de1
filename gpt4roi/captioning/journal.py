"""What is done of a long job, kept line by line, so that a killed one goes on where it was."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.io.atomic import append_lines, atomic_write_text, readable_write_errors
from gpt4roi.io.json_files import as_json

DESCRIPTION = "job.json"


def parts_folder(out: Path) -> Path:
    """Returns where a job that is under way keeps what is done."""
    return out.with_name(f"{out.name}.parts")


class Journal:
    """A folder with a file of lines for each process; a line is one finished group of the job.

    job: what the job is; a folder of another job is refused. rank: whose file is written here.
    """

    def __init__(self, folder: Path, job: dict[str, Any], rank: int = 0) -> None:
        self.folder, self.path = folder, folder / f"rank-{rank}.jsonl"
        with readable_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._check(job, rank)

    def _check(self, job: dict[str, Any], rank: int) -> None:
        description = self.folder / DESCRIPTION
        if description.exists():
            before = _read_job(description)
            differ = [name for name in {**before, **job} if before.get(name) != job.get(name)]
            if differ:
                what = "; ".join(f"{name} was {before.get(name)!r:.60}, is {job.get(name)!r:.60}" for name in differ)
                raise InputError(f"{self.folder} holds what is done of another job ({what}); remove it, or give --out")
        elif rank == 0:
            atomic_write_text(description, as_json(job))

    def finished(self) -> dict[int, Any]:
        """Returns the groups that any process finished, by number; a line torn by a kill is passed over."""
        found: dict[int, Any] = {}
        for path in sorted(self.folder.glob("rank-*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:
                record = _parse(line)
                if record is not None:
                    found[record["group"]] = record["result"]
        return found

    def write(self, group: int, result: Any) -> None:
        """Notes a finished group; after this call a kill no longer costs it."""
        append_lines(self.path, as_json({"group": group, "result": result}) + "\n")

    def remove(self) -> None:
        """Removes the folder, once the job's result is written; other processes may be doing the same."""
        _remove(self.folder)


def clear_finished(out: Path, job: dict[str, Any]) -> None:
    """Removes what a job left that was killed after its result was written; another job's is kept."""
    description = parts_folder(out) / DESCRIPTION
    with contextlib.suppress(InputError, FileNotFoundError):
        if _read_job(description) == job:
            _remove(description.parent)


def _read_job(description: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(description.read_bytes()))
    except (ValueError, TypeError):
        raise InputError(f"{description}: damaged; remove {description.parent} to begin anew") from None


def _remove(folder: Path) -> None:
    for path in [*folder.glob("rank-*.jsonl"), *folder.glob(f".{DESCRIPTION}.*"), folder / DESCRIPTION]:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and isinstance(record.get("group"), int) and "result" in record
    return record if whole else None
