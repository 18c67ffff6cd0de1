"""Checkpoints are whole or not there."""

import errno
import os
import shutil

import pytest

from gpt4roi.errors import InputError
from gpt4roi.io.digests import sampled_crc32
from gpt4roi.train import saving


def checkpoint(folder, step, size=1000):
    """Writes a sealed checkpoint of two files."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(os.urandom(size))
    (path / "trainer_state.json").write_text("{}")
    saving.write_manifest(path)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def overwrite(path):
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: cut(folder / "model.safetensors"), "model.safetensors has 999 bytes, not 1000"),
        (lambda folder: overwrite(folder / "model.safetensors"), "model.safetensors has other bytes"),
        (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda folder: (folder / "whole.json").unlink(), "it has no whole.json"),
        (
            lambda folder: (folder / "whole.json").write_text('{"model.safetensors": 3}'),
            "its whole.json cannot be read",
        ),
        (lambda folder: (folder / "whole.json").write_text("[1"), "its whole.json cannot be read"),
    ],
)
def test_a_torn_checkpoint_is_passed_over_with_a_word(tmp_path, caplog, harm, words):
    old, new = checkpoint(tmp_path, 2), checkpoint(tmp_path, 10)
    assert saving.last_checkpoint(tmp_path) == new
    assert not caplog.text
    harm(new)
    assert saving.last_checkpoint(tmp_path) == old
    assert f"checkpoint-10 is corrupt ({words}" in caplog.text


def test_a_folder_without_a_whole_checkpoint_has_none(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert saving.last_checkpoint(tmp_path) is None


@pytest.mark.heavy
def test_large_files_are_checked_at_places_all_over_them(tmp_path):
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(200 << 20)
    before = sampled_crc32(path)
    with path.open("r+b") as file:
        file.seek((200 << 20) - 5)
        file.write(b"x")
    assert sampled_crc32(path) != before


def test_the_limit_counts_whole_checkpoints_only_and_keeps_the_best(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoint(tmp_path, step)
    for step in (5, 6):
        cut(checkpoint(tmp_path, step) / "model.safetensors")
    saving.rotate_checkpoints(tmp_path, 2, best=str(tmp_path / "checkpoint-1"))
    assert names(tmp_path) == [f"checkpoint-{step}" for step in (1, 3, 4, 5, 6)]
    saving.rotate_checkpoints(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]
    cut(tmp_path / "checkpoint-4" / "model.safetensors")
    saving.rotate_checkpoints(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]
    saving.rotate_checkpoints(tmp_path, None)
    assert len(names(tmp_path)) == 3


def test_a_finished_checkpoint_takes_the_place_of_a_torn_one(tmp_path):
    cut(checkpoint(tmp_path, 3) / "model.safetensors")
    fresh = checkpoint(tmp_path / ".partial-checkpoint-3", 3)
    (fresh / "whole.json").unlink()
    saving.publish(fresh, tmp_path / "checkpoint-3")
    assert saving.find_corruption(tmp_path / "checkpoint-3") is None


def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_nothing_that_looks_like_one(tmp_path, monkeypatch):
    checkpoint(tmp_path, 1)

    def killed(path, ignore_errors=False):
        if not ignore_errors:
            (path / "model.safetensors").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            saving.remove(tmp_path / "checkpoint-1")
    assert saving.checkpoints(tmp_path) == []
    saving.clear_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_files_of_a_trained_model_replace_those_of_the_same_name(tmp_path):
    (tmp_path / "config.json").write_text("old")
    staged = tmp_path / ".partial-model"
    staged.mkdir()
    (staged / "config.json").write_text("new")
    saving.publish_files(staged, tmp_path)
    assert names(tmp_path) == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "new"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file data/0"),
        saving.SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_readable_error_and_what_was_begun_is_removed(tmp_path, error):
    checkpoint(tmp_path, 4)
    staged = tmp_path / ".partial-checkpoint-8"
    staged.mkdir()
    with (
        pytest.raises(
            InputError,
            match=r"checkpoint 8 cannot be written to .*: [Nn]o space .*; checkpoint-4 is complete: make room and",
        ),
        saving.disk_full_message("checkpoint 8", tmp_path, staged),
    ):
        raise error
    assert names(tmp_path) == ["checkpoint-4"]


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), saving.disk_full_message("it", tmp_path, tmp_path / "x"):
        raise RuntimeError("shapes differ")
