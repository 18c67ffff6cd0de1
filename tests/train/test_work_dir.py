import errno
import json
import os
import subprocess
import sys

import pytest

from gpt4roi.errors import InputError
from gpt4roi.train import work_dir
from gpt4roi.train.command_line import stage_and_folder
from gpt4roi.train.work_dir import parse_flags


def record(folder, stage, words, **how):
    work_dir.record_flags(folder, stage, parse_flags(words.split()), **how)


def recorded(folder, stage, words=""):
    """Returns the command line of a run that is started with these words."""
    return " ".join(work_dir.to_argv(work_dir.recorded_flags(folder, stage, parse_flags(words.split()))))


def test_a_folder_alone_gets_the_arguments_of_its_run(tmp_path):
    record(tmp_path, 1, "--seed 3")
    assert recorded(tmp_path, 1) == "--seed 3"
    assert recorded(tmp_path, 1, "--seed 3") == "--seed 3"
    with pytest.raises(InputError, match=r"holds a run with other arguments \(they differ in --seed\)"):
        recorded(tmp_path, 1, "--seed 4")
    with pytest.raises(InputError, match="holds a run of stage 1, not 2"):
        recorded(tmp_path, 2)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        recorded(tmp_path, 1)


def test_a_folder_alone_knows_its_stage(tmp_path):
    work_dir.record_flags(tmp_path, 2, {"seed": ("3",)})
    assert stage_and_folder({"output_dir": (str(tmp_path),)}) == (2, tmp_path)
    assert stage_and_folder({"output_dir": (str(tmp_path),), "stage": ("1",)}) == (1, tmp_path)
    (tmp_path / "run.json").write_text('{"stage": 2')
    assert stage_and_folder({"output_dir": (str(tmp_path),)})[0] == 1


def test_what_changes_neither_samples_nor_learning_may_be_told_anew(tmp_path):
    record(tmp_path, 1, "--seed 3 --save_steps 10")
    assert recorded(tmp_path, 1, "--save_steps 5") == "--seed 3 --save_steps 5"
    again = "--save_steps 5 --seed 3 --per_device_train_batch_size 1"
    assert recorded(tmp_path, 1, again) == again
    with pytest.raises(InputError, match=r"differ in --learning_rate\)"):
        recorded(tmp_path, 1, "--save_steps 5 --learning_rate 1 --seed 3")


def test_a_folder_with_a_slash_at_its_end_is_the_same(tmp_path):
    arguments = "--stage1 exp/stage1 --seed 3"
    record(tmp_path, 2, arguments)
    assert recorded(tmp_path, 2, "--stage1 exp/stage1/ --seed 3") == arguments
    again = "--stage1 exp/stage1/ --save_steps 5 --seed 3"
    assert recorded(tmp_path, 2, again) == again


def test_a_run_of_version_0_1_is_resumed_by_the_new_name_of_a_flag(tmp_path):
    (tmp_path / "run.json").write_text('{"stage": 1, "arguments": ["--picture_features", "kept"], "begun": true}')
    for words in ("", "--picture_features kept", "--picture-features=kept", "--feature_cache kept"):
        assert recorded(tmp_path, 1, words) == "--feature_cache kept"


@pytest.mark.parametrize("name", ["region_texts.cache", "region_texts.safetensors"])
def test_a_run_that_has_not_begun_to_learn_takes_other_arguments(tmp_path, name):
    record(tmp_path, 1, "--seed 3", begun=False)
    (tmp_path / name).touch()
    assert recorded(tmp_path, 1) == "--seed 3"
    assert recorded(tmp_path, 1, "--save_steps 5") == "--seed 3 --save_steps 5"
    assert recorded(tmp_path, 1, "--seed 4") == "--seed 4"
    assert not (tmp_path / name).exists()


def test_the_texts_of_a_run_of_version_0_2_are_found_under_a_name_that_is_not_one_of_weights(tmp_path):
    (tmp_path / "region_texts.safetensors").write_text("texts")
    assert work_dir.region_texts_file(tmp_path).read_text() == "texts"
    assert [path.name for path in tmp_path.iterdir()] == ["region_texts.cache"]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "log.txt").touch()
    assert recorded(tmp_path, 1, "--seed 3") == "--seed 3"
    (tmp_path / "config.json").touch()
    with pytest.raises(InputError, match=r"holds config\.json but no run of this training"):
        recorded(tmp_path, 1)
    with pytest.raises(InputError, match="is a file"):
        recorded(tmp_path / "config.json", 1)


def test_a_second_training_in_a_folder_is_refused_while_the_first_one_lives(tmp_path):
    code = "import sys; from pathlib import Path; from gpt4roi.train.work_dir import lock\n"
    code += "with lock(Path(sys.argv[1])): sys.stdout.write('in\\n'); sys.stdout.flush(); sys.stdin.read()"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert first.stdout.readline() == "in\n"
        with (
            pytest.raises(InputError, match=f"another training runs in .* \\(process {first.pid}\\)"),
            work_dir.lock(tmp_path),
        ):
            pass
    finally:
        first.kill()
        first.wait()
        first.stdin.close(), first.stdout.close()
    with work_dir.lock(tmp_path):
        assert (tmp_path / "run.lock").read_text() == str(os.getpid())


def test_a_disk_without_any_room_is_said_in_one_line(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with (
        pytest.raises(InputError, match=r"run\.lock cannot be written: No space left on device"),
        work_dir.lock(tmp_path),
    ):
        pass


def test_only_a_finished_training_is_started_from(tmp_path):
    work_dir.require_finished(tmp_path)
    record(tmp_path, 1, "")
    with pytest.raises(InputError, match=r"its training is not finished \(trained\.json is missing\)"):
        work_dir.require_finished(tmp_path)
    (tmp_path / "trained.json").write_text("{}")
    work_dir.require_finished(tmp_path)


def test_the_settings_file_holds_defaults_and_versions(tmp_path):
    work_dir.write_settings(tmp_path, [{"seed": 3}, {"bf16": False}], processes=2)
    facts = json.loads((tmp_path / "settings.json").read_text())
    assert facts["settings"] == {"seed": 3, "bf16": False}
    assert facts["processes"] == 2
    assert facts["versions"]["torch"]
