"""`gpt4roi demo` with wrong arguments; what the page does is tested in tests/demo."""

from __future__ import annotations

import argparse
import functools
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from gpt4roi import InputError
from gpt4roi.cli import demo, main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "--port is between 1 and 65535, got 70000"),
        (["--port", "web"], "argument --port: invalid int value: 'web'"),
        (["--concurrency", "0"], "--concurrency must be above 0, got 0"),
        (["--at-once", "0"], "--concurrency must be above 0, got 0"),
        (["--max-upload-mb", "-1"], "--max-upload-mb must be above 0, got -1"),
        (["--idle-minutes", "nan"], "--idle-minutes must be above 0, got nan"),
        (["--password-file", "nowhere.txt"], "--password-file nowhere.txt: cannot be read: No such file"),
        (["--password-file", "empty.txt"], "--password-file empty.txt: the first line is empty"),
        (["--model", "nowhere/at/all"], "no model in nowhere/at/all"),
        ([], "no model in exp/quickstart/stage2: no such folder; give --model DIR, or run scripts/quickstart.sh"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpt4roi.cli.demo.find_spec", lambda name: name)
    (tmp_path / "empty.txt").write_text("\nsecret")

    assert main(["demo", *arguments]) == 2

    error = capsys.readouterr().err
    assert error.startswith("gpt4roi demo: error: ") and message in error and error.count("\n") == 1


def test_without_gradio_the_command_that_installs_it_is_named(monkeypatch, capsys):
    monkeypatch.setattr("gpt4roi.cli.demo.find_spec", lambda name: None)
    assert main(["demo"]) == 2
    assert 'pip install "gpt4roi[demo]"' in capsys.readouterr().err


def test_examples_that_a_model_s_folder_has_lost_are_no_obstacle_but_those_asked_for_are(tmp_path, caplog):
    (tmp_path / "examples.json").write_text('[{"image": "gone.png"}]')
    args = argparse.Namespace(model=str(tmp_path), examples=None)
    assert demo._examples(args) is None
    assert "examples.json#0" in caplog.text and "scikit-image's photographs are shown instead" in caplog.text
    with pytest.raises(InputError, match=r"gone\.png"):
        demo._examples(argparse.Namespace(model=str(tmp_path), examples=tmp_path))
    Image.new("RGB", (30, 20)).save(tmp_path / "gone.png")
    assert list(demo._examples(args)) == ["gone"]


@pytest.mark.heavy
def test_the_page_is_served_until_ctrl_c(model_folder, tmp_path, tmp_path_factory):
    pytest.importorskip("gradio", reason='pip install "gpt4roi[demo]"')
    folder = tmp_path_factory.mktemp("examples")
    Image.new("RGB", (30, 20)).save(folder / "grey.png")
    entry = '{"image": "grey.png", "title": "nothing but black", "boxes": [[1, 2, 9, 9]]}'
    (folder / "examples.json").write_text(f"[{entry}]")
    command = [sys.executable, str(ROOT / "gpt4roi" / "app.py"), "--model", str(model_folder)]
    command += ["--no-names", "--examples", str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # What a shell runs in the background ignores Ctrl-C, and so do its children unless told otherwise.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=tmp_path, preexec_fn=heed, **pipes) as served:
        try:
            address = served.stdout.readline().strip()
            with urllib.request.urlopen(address, timeout=600) as page:
                text = page.read().decode()
                assert page.status == 200 and "nothing but black" in text and '"naming":false' in text
            served.send_signal(signal.SIGINT)
            rest, log = served.communicate(timeout=600)
        finally:
            served.kill()
    assert served.returncode == 0 and rest == "" and "Traceback" not in log
    assert "opening" in log and "ready after" in log
    assert list(tmp_path.iterdir()) == []  # it leaves nothing where it was started


def test_the_file_app_py_takes_the_same_arguments(tmp_path):
    command = [sys.executable, str(ROOT / "gpt4roi" / "app.py"), "--port", "0"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "error: --port is between 1 and 65535, got 0" in ended.stderr or "pip install" in ended.stderr
