"""The journal of a long job, and the lines that tell how far it is."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from gpt4roi.errors import InputError
from gpt4roi.io import progress
from gpt4roi.io.journal import Journal, read_job
from gpt4roi.io.progress import Progress


def test_what_all_processes_appended_is_read_and_a_torn_line_is_skipped(tmp_path):
    first, second = Journal(tmp_path / "job", 0), Journal(tmp_path / "job", 1)
    first.append([{"group": 0}, {"group": 1}])
    second.append([{"group": 2, "text": "caf\udce9"}])
    with first.path.open("ab") as file:
        file.write(b'{"group": 3, "te')
    first.append([{"group": 4}])

    assert [record["group"] for record in first.records()] == [0, 1, 4, 2]
    assert [record.get("text") for record in second.records()][-1] == "caf\udce9"


def test_another_jobs_journal_is_refused_and_a_removed_one_is_gone(tmp_path):
    journal = Journal(tmp_path / "job", 0, job={"model": "a", "seed": 1})
    assert read_job(journal.folder) == {"model": "a", "seed": 1}

    with pytest.raises(InputError, match=r"another job \(seed was 1, is 2\); remove it, or give --out"):
        Journal(tmp_path / "job", 1, job={"model": "a", "seed": 2})
    journal.append([{"group": 0}])
    journal.remove()

    assert not journal.folder.exists()


def test_progress_tells_rate_and_time_left_and_only_in_the_first_process(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="gpt4roi")
    clock = iter([0.0, 0.0, 5.0, 5.0, 20.0, 20.0, 40.0, 40.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    shown, hidden = Progress(4000, "regions", 0, 2), Progress(4000, "regions", 1, 2)
    for count in (1, 9, 3990):
        shown.update(count)
        hidden.update(count)

    assert caplog.messages == [
        "10 of 4000 regions (of 2 processes), 0.5 a second, 2:13:00 left",
        "4000 of 4000 regions (of 2 processes), 100.0 a second, 0:00 left",
    ]
