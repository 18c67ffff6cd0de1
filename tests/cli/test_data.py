"""`gpt4roi data make-stamps`, as it is typed."""

import json

import pytest

from gpt4roi.cli import main

pytestmark = pytest.mark.heavy

SHAPES = ["data", "make-stamps", "--shapes", "--no-parts", "--scenes", "3", "--workers", "1"]


def test_one_line_names_what_was_written_and_the_progress_goes_elsewhere(tmp_path, capsys):
    assert main([*SHAPES, "--out", str(tmp_path / "data")]) == 0
    written = capsys.readouterr()
    assert written.out.count("\n") == 1
    assert written.out.startswith(f"{tmp_path}/data: train 3 scenes, val 50 scenes, test 110 scenes, test_unseen 30")
    assert "drawn shapes" in written.out
    assert "train scenes" in written.err
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["splits"]["test"]["questions"] | {"caption": 0, "count": 0} == {
        "caption": 0,
        "larger": 400,
        "left": 400,
        "above": 400,
        "count": 0,
        "animals": 220,
        "which": 220,
    }
    assert manifest["splits"]["test"]["regions"] >= 400
    assert manifest["splits"]["test_unseen"]["regions"] >= 100


def test_downloads_are_left_out_when_asked_for(tmp_path):
    assert main([*SHAPES, "--out", str(tmp_path / "data"), "--no-keep-downloads"]) == 0
    assert not (tmp_path / "data" / "downloads").exists()


def test_a_wrong_number_is_one_line_and_exit_code_two(capsys):
    assert main(["data", "make-stamps", "--shapes", "--scenes", "0"]) == 2
    assert capsys.readouterr().err == "gpt4roi data: error: scenes must be at least 1, got 0\n"


def test_a_missing_subcommand_is_one_line_and_exit_code_two(capsys):
    assert main(["data"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gpt4roi data: error:") and error.count("\n") == 1
