"""Results are whole or not there, and never take the place of something that is no file."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
import threading

import pytest

from gpt4roi.errors import InputError
from gpt4roi.io.atomic import (
    FileLock,
    append_lines,
    atomic_folder,
    atomic_path,
    atomic_write_text,
    match_folder_permissions,
    only_writer,
    readable_full_disk,
    remove_folder,
    replacing,
    written_together,
)


def test_a_file_takes_the_place_of_the_old_one_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.json"
    atomic_write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    atomic_write_text(path, "new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_link_is_followed(tmp_path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    atomic_write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_what_is_no_file_is_not_replaced(tmp_path):
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder):
        with pytest.raises(InputError, match="is no file that could be replaced; give another name"):
            atomic_write_text(path, "new")
    assert pipe.is_fifo()


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written: .*; what was there before is kept: make room"):
        atomic_write_text(tmp_path / "file" / "below.json", "new")


def test_of_a_link_to_a_folder_the_link_is_removed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove_folder(tmp_path / "link")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["folder", "folder/file"]


def test_a_file_is_shared_with_those_who_may_read_its_folder(tmp_path):
    file = tmp_path / "file"
    for folder, before, after in ((0o755, 0o600, 0o644), (0o750, 0o600, 0o640), (0o700, 0o640, 0o640)):
        file.touch()
        file.chmod(before)
        tmp_path.chmod(folder)
        match_folder_permissions(file)
        assert file.stat().st_mode & 0o777 == after
    match_folder_permissions(tmp_path / "nothing")


def test_lines_come_after_a_torn_one(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("1\n2")
    append_lines(path, "3\n4\n")
    append_lines(path, "")
    assert path.read_text() == "1\n2\n3\n4\n"


def test_bytes_are_written_completely_or_not_at_all(tmp_path):
    with atomic_path(tmp_path / "file.bin") as beside:
        beside.write_bytes(b"\xff\x00")
    assert (tmp_path / "file.bin").read_bytes() == b"\xff\x00"
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


def test_a_folder_takes_the_place_of_the_old_one_only_when_it_is_complete(tmp_path):
    target = tmp_path / "folder"
    for name in ("old", "new"):
        with atomic_folder(target) as scratch:
            (scratch / name).touch()
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as scratch:
        (scratch / "half").touch()
        raise KeyboardInterrupt
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["folder", "folder/new"]


def test_a_lock_that_another_process_holds_is_told_with_its_number(tmp_path):
    code = "import sys; from pathlib import Path; from gpt4roi.io.atomic import FileLock\n"
    code += "with FileLock(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(InputError, match=f"used by {other.pid}$"), FileLock(tmp_path / "lock", "used by {owner}"):
            pass
    finally:
        other.kill()  # a crash frees the lock
        other.wait()
        other.stdin.close(), other.stdout.close()
    with FileLock(tmp_path / "lock", "used by {owner}"):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_lock_without_a_message_is_waited_for(tmp_path, caplog):
    handle = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    freed = threading.Timer(0.3, os.close, [handle])
    freed.start()
    with caplog.at_level(logging.INFO), FileLock(tmp_path / "lock", waiting="Waiting for the other one"):
        assert freed.finished.is_set()
    assert "Waiting for the other one" in caplog.text


def test_a_lock_goes_with_its_file_and_where_it_cannot_be_made_the_error_says_why(tmp_path):
    with FileLock(tmp_path / "lock", remove=True):
        assert (tmp_path / "lock").exists()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), FileLock(tmp_path / "file" / "lock"):
        pass


def test_files_written_together_all_stay_as_they_were_where_one_cannot_be_written(tmp_path):
    paths = [tmp_path / "metrics.json", tmp_path / "report.html"]
    for path in paths:
        path.write_text("old")
    with pytest.raises(InputError, match=r"report.html cannot be written: No space left"), written_together():
        atomic_write_text(paths[0], "new")
        with atomic_path(paths[1]) as beside:
            beside.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [path.read_text() for path in paths] == ["old", "old"] and sorted(tmp_path.iterdir()) == paths

    with written_together():
        for path in paths:
            atomic_write_text(path, "new")
            assert path.read_text() == "old"
    assert [path.read_text() for path in paths] == ["new", "new"] and sorted(tmp_path.iterdir()) == paths


def test_what_a_killed_process_left_is_cleared_and_what_a_running_one_writes_stays(tmp_path):
    path = tmp_path / ("index" * 40)
    code = (
        f"import os, pathlib; from gpt4roi.io.atomic import replacing\nwith replacing(pathlib.Path({str(path)!r})) as "
    )
    code += "beside:\n beside.write_text('half'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(list(tmp_path.glob("*.part"))) == 1

    with replacing(path) as running, replacing(path) as beside:
        running.write_text("first")
        beside.write_text("second")
        assert sorted(tmp_path.iterdir()) == sorted([running, beside])
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_a_second_writer_of_an_output_is_refused_in_a_line_and_the_lock_goes(tmp_path):
    with (
        only_writer(tmp_path / "new" / "{x}.json"),
        pytest.raises(InputError, match=rf"another run is writing .*\{{x\}}.json \(process {os.getpid()}\)"),
        only_writer(tmp_path / "new" / "{x}.json"),
    ):
        pass
    assert not list((tmp_path / "new").iterdir())


def test_a_lock_that_has_no_room_is_a_line(tmp_path, monkeypatch):
    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(FileLock, "__enter__", full)
    with (
        pytest.raises(InputError, match=r"out cannot be written: No space left on device"),
        only_writer(tmp_path / "out"),
    ):
        pass


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_a_line_whichever_library_says_so(tmp_path, error):
    with pytest.raises(InputError, match="is full; make room and run again"), readable_full_disk(tmp_path):
        raise error
    with pytest.raises(RuntimeError, match="another"), readable_full_disk(tmp_path):
        raise RuntimeError("another")
