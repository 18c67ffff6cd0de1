"""The shell scripts: usage, one-line errors, and the training's own exit code."""

import contextlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpt4roi.train import training

ROOT = Path(__file__).parent.parent


def run(*command):
    return subprocess.run(["bash", *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_without_a_folder_says_how_it_is_called(stage):
    result = run(f"train_stage{stage}.sh")
    assert result.returncode == 2
    assert f"usage: bash train_stage{stage}.sh WORKDIR" in result.stderr


@pytest.mark.heavy
def test_a_training_that_cannot_start_keeps_its_exit_code_and_leaves_a_log(tmp_path):
    result = run("train_stage2.sh", tmp_path / "out", tmp_path / "nothing", "--dataset_config", tmp_path / "no.jsonl")
    assert result.returncode == 2
    line = f"gpt4roi train: error: {tmp_path}/nothing: not a GPT4RoI folder"
    assert result.stdout.strip().splitlines()[-1].startswith(line)
    assert line in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("processes", "visible", "seen"),
    [(1, None, "0"), (1, "3,5", "3"), (1, "GPU-ab,GPU-cd", "GPU-ab"), (2, "3,5", "3,5"), (2, None, ""), (0, None, "")],
)
def test_one_process_sees_one_gpu_and_several_see_all(tmp_path, processes, visible, seen):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/launch.sh", tmp_path / "scripts")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    answer = f'[[ "$*" == *train.launch* ]] && echo {processes} || echo "sees ${{CUDA_VISIBLE_DEVICES:-}}; $*"'
    python.write_text(f"#!/usr/bin/env bash\n{answer}\n")
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    command = ["bash", str(tmp_path / "scripts/launch.sh"), "1", str(tmp_path / "out")]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600).stdout
    assert said.startswith(f"sees {seen}; ")
    assert ("--nproc_per_node 2 -m gpt4roi.train" in said) == (processes == 2)


@pytest.mark.heavy
@pytest.mark.parametrize(("newest", "limits"), [("", "scripts/constraints.txt"), ("1", "/dev/null")])
def test_the_environment_has_no_newer_packages_than_were_tried_unless_asked_for(tmp_path, newest, limits):
    (tmp_path / "scripts").mkdir()
    for name in ("pyproject.toml", "scripts/environment.sh", "scripts/constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("pip", "python"):
        (tmp_path / ".venv/bin" / name).write_text('#!/usr/bin/env bash\necho "$@"\n')
        (tmp_path / ".venv/bin" / name).chmod(0o755)
    command = ["bash", str(tmp_path / "scripts/environment.sh"), "train"]
    said = [
        subprocess.run(command, env={**os.environ, "NEWEST": newest}, capture_output=True, text=True, timeout=60).stdout
        for _ in range(2)
    ]
    assert f"--constraint {limits} -e .[train]" in said[0]
    assert said[1] == ""


@pytest.mark.parametrize("script", sorted(ROOT.glob("*.sh")) + sorted(ROOT.glob("scripts/*.sh")), ids=lambda p: p.name)
def test_every_script_parses_and_may_be_executed(script):
    assert run("-n", script).returncode == 0
    assert script.stat().st_mode & 0o111


TRAINS_UNTIL_IT_IS_ENDED = """#!/usr/bin/env bash
[[ "$*" == *train.launch* ]] && { echo 1; exit; }
trap 'echo its last words; exit 7' TERM INT
echo began
while :; do sleep 0.1; done
"""


@pytest.mark.heavy
@pytest.mark.parametrize(("kind", "to_all"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_to_the_script_ends_the_training_and_its_last_words_are_in_the_log(tmp_path, kind, to_all):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/launch.sh", tmp_path / "scripts")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(TRAINS_UNTIL_IT_IS_ENDED)
    python.chmod(0o755)
    script = subprocess.Popen(
        ["bash", str(tmp_path / "scripts/launch.sh"), "1", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # for Control-C, which reaches every process of a terminal, is sent to a group
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # where the tests run in the background
    )
    try:
        assert script.stdout.readline() == "began\n"
        (os.killpg if to_all else os.kill)(script.pid, kind)
        assert script.communicate(timeout=120)[0] == "its last words\n"
        assert script.returncode == 7
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
    assert (tmp_path / "out/log.txt").read_text() == "began\nits last words\n"


def test_control_c_is_one_line_and_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "main", interrupted)
    with pytest.raises(SystemExit, match="130"):
        runpy.run_module("gpt4roi.train", run_name="__main__")
    assert capsys.readouterr().err == (
        "gpt4roi train: interrupted; rerun with only --output_dir to resume from the last checkpoint\n"
    )


@pytest.mark.heavy
def test_training_from_python_names_the_help():
    result = subprocess.run(
        [sys.executable, "-m", "gpt4roi.train", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0
    assert "--align_regions" in result.stdout


@pytest.mark.heavy
def test_what_a_gpu_shows_runs_at_tiny_size_on_a_cpu(tmp_path):
    checks = ["attention", "bfloat16", "roi_align", "memory", "fsdp"]
    result = run("scripts/gpu_check.sh", tmp_path, "--dry", "--only", *checks)
    found = json.loads((tmp_path / "gpu_check.json").read_text())["checks"]
    assert {name: row["outcome"] for name, row in found.items()} == dict.fromkeys(checks, "passed") | {
        "fsdp": "skipped"
    }
    assert result.returncode == 0
    assert found["roi_align"]["figures"]["gradcheck"] is True
    assert found["attention"]["figures"]["sdpa differs by"] < 1e-4
    assert found["fsdp"]["why"].startswith("needs a GPU")
    assert "| memory | passed |" in (tmp_path / "gpu_check.md").read_text()


@pytest.mark.heavy
def test_the_way_of_the_released_weights_is_rehearsed_and_resumed(tmp_path):
    command = [
        sys.executable,
        "-m",
        "scripts.rehearse_real_size",
        tmp_path,
        "--like",
        "tests/golden/original_format_folder",
    ]
    first, second = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert "the base is the one the delta was made from" in first.stdout
    assert "as the delta promises" in first.stdout
    assert "== " not in second.stdout
    assert second.stdout.count("\n| ") == 6 == first.stdout.count("\n| ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "image.png", "rehearsal.json", "result"]
