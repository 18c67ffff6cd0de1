"""Journal: the append-only record of a long job's finished parts, from which a killed job resumes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.io.atomic import DONE_IS_KEPT, append_lines, atomic_write_text, readable_write_errors
from gpt4roi.io.json_files import as_json, parse_jsonl, read_json_object

JOB = "job.json"


class Journal:
    """A folder with a JSON-lines file for each process, PREFIX<rank>.jsonl; a line is a finished part of the job."""

    def __init__(
        self,
        folder: Path,
        rank: int = 0,
        prefix: str = "",
        job: dict[str, Any] | None = None,
        kept: str = DONE_IS_KEPT,
    ) -> None:
        """Makes the folder.

        Args:
            folder: Where the files lie.
            rank: Number of the process whose file is written here.
            prefix: The files' names begin with it.
            job: Description of the job, which the first process writes into the folder.
            kept: What a full disk does not cost, for the message.

        Raises:
            InputError: The folder is of another job, or cannot be written.
        """
        self.folder, self.prefix, self.kept = folder, prefix, kept
        self.path = folder / f"{prefix}{rank}.jsonl"
        with readable_write_errors(folder, kept):
            folder.mkdir(parents=True, exist_ok=True)
        if job is not None:
            self._check(job, rank)

    def _check(self, job: dict[str, Any], rank: int) -> None:
        before = read_job(self.folder)
        if before is None:
            if rank == 0:
                atomic_write_text(self.folder / JOB, as_json(job))
            return
        different = [name for name in {**before, **job} if before.get(name) != job.get(name)]
        if different:
            what = "; ".join(f"{name} was {before.get(name)!r:.60}, is {job.get(name)!r:.60}" for name in different)
            raise InputError(f"{self.folder} holds what is done of another job ({what}); remove it, or give --out")

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Adds finished parts, which a kill then no longer costs. Raises InputError where the disk is full."""
        append_lines(self.path, "".join(as_json(record) + "\n" for record in records), self.kept)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yields the finished parts of all processes; a line that a kill tore is skipped."""
        for path in sorted(self.folder.glob(f"{self.prefix}*.jsonl")):
            yield from (record for _, record in parse_jsonl(path.read_bytes(), path) if isinstance(record, dict))

    def remove(self) -> None:
        """Removes the folder, once the job's result is written; other processes may be doing the same."""
        for path in [*self.folder.glob("*.jsonl"), *self.folder.glob(f".{JOB}.*"), self.folder / JOB]:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def read_job(folder: Path) -> dict[str, Any] | None:
    """Returns the description of the job in a folder, None where there is none. Raises InputError for a damaged one."""
    path = folder / JOB
    if not path.exists():
        return None
    try:
        return read_json_object(path)
    except InputError:
        raise InputError(f"{path}: damaged; remove {folder} to begin anew") from None
