"""`gpt4roi serve`: its options, and a server that ends on SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from gpt4roi.cli import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "70000"], "--port is between 0 and 65535, got 70000"),
        (["--max-tokens", "0"], "--max-tokens must be above 0, got 0"),
        (["--api-key-file", "nowhere"], "--api-key-file nowhere: cannot be read"),
        (["--model", "nowhere"], "no model in nowhere"),
    ],
)
def test_wrong_options_are_one_line(words, message, capsys):
    assert main(["serve", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_file_without_a_key_is_refused(tmp_path, capsys):
    file = tmp_path / "keys"
    file.write_text("\n  \n")
    assert main(["serve", "--api-key-file", str(file)]) == 2
    assert "holds no key; write one a line" in capsys.readouterr().err


@pytest.mark.heavy
def test_the_command_serves_the_model_until_it_is_told_to_end(model_folder, tmp_path):
    (tmp_path / "keys").write_text("sk-one\nsk-two\n")
    command = [sys.executable, "-m", "gpt4roi.cli", "serve", "--model", str(model_folder), "--port", "0"]
    command += ["--api-key-file", str(tmp_path / "keys"), "--served-name", "mine", "--device", "cpu"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        address = server.stdout.readline().strip()
        request = urllib.request.Request(f"{address}/models", headers={"authorization": "Bearer sk-two"})
        with urllib.request.urlopen(request, timeout=60) as response:
            assert [one["id"] for one in json.load(response)["data"]] == ["mine"]
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=60)
    finally:
        server.kill()
    assert "model mine, ready after" in log and "Traceback" not in log
