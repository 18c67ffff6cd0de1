"""Results are whole or not there, and never take the place of something that is no file."""

from __future__ import annotations

import os

import pytest

from gpt4roi.errors import InputError
from gpt4roi.io.atomic import append_lines, remove_folder, share, whole, write_whole


def test_a_file_takes_the_place_of_the_old_one_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_whole(path, "old")
    with pytest.raises(KeyboardInterrupt), whole(path) as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_link_is_followed(tmp_path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    write_whole(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_what_is_no_file_is_not_replaced(tmp_path):
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder):
        with pytest.raises(InputError, match="is no file that could be replaced; give another name"):
            write_whole(path, "new")
    assert pipe.is_fifo()


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written: .*; what was there before is kept: make room"):
        write_whole(tmp_path / "file" / "below.json", "new")


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
        share(file)
        assert file.stat().st_mode & 0o777 == after
    share(tmp_path / "nothing")


def test_lines_come_after_a_torn_one(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("1\n2")
    append_lines(path, "3\n4\n")
    append_lines(path, "")
    assert path.read_text() == "1\n2\n3\n4\n"
