"""What is done of a long job, kept line by line, so that a killed one goes on where it was."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.writing import append_lines, telling


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all. Raises InputError where it cannot be written."""
    beside = path.with_name(f"{path.name}.new")
    with telling(path):
        with beside.open("w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)


class Journal:
    """A folder with a file of lines for each process; a line is one finished group of the job.

    job: what the job is; a folder of another job is refused. rank: whose file is written here.
    """

    def __init__(self, folder: Path, job: dict[str, Any], rank: int = 0) -> None:
        self.folder, self.path = folder, folder / f"rank-{rank}.jsonl"
        with telling(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._check(job, rank)

    def _check(self, job: dict[str, Any], rank: int) -> None:
        description = self.folder / "job.json"
        if description.exists():
            try:
                before = dict(json.loads(description.read_bytes()))
            except (ValueError, TypeError):
                raise InputError(f"{description}: damaged; remove {self.folder} to begin anew") from None
            differ = [name for name in {**before, **job} if before.get(name) != job.get(name)]
            if differ:
                what = "; ".join(f"{name} was {before.get(name)!r:.60}, is {job.get(name)!r:.60}" for name in differ)
                raise InputError(f"{self.folder} holds what is done of another job ({what}); remove it, or give --out")
        elif rank == 0:
            write_json(description, job)

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
        append_lines(self.path, json.dumps({"group": group, "result": result}, ensure_ascii=False) + "\n")

    def remove(self) -> None:
        """Removes the folder, once the job's result is written; other processes may be doing the same."""
        for path in [*self.folder.glob("rank-*.jsonl"), self.folder / "job.json"]:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and isinstance(record.get("group"), int) and "result" in record
    return record if whole else None
