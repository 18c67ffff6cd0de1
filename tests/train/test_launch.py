import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt4roi.train.launch import main, processes, settings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("devices", "nodes", "step_size", "at_once", "expected"),
    [
        (1, 1, 4, 1, 1),
        (4, 1, 4, 1, 4),
        (8, 1, 4, 1, 4),
        (3, 1, 4, 1, 2),
        (8, 1, 16, 2, 8),
        (6, 1, 16, 2, 4),
        (8, 2, 32, 2, 8),
        (8, 2, 16, 2, 4),
        (5, 1, 5, 1, 5),
    ],
)
def test_as_many_gpus_are_used_as_can_share_a_step_equally(devices, nodes, step_size, at_once, expected):
    assert processes(devices, nodes, step_size, at_once) == expected


def test_what_cannot_be_shared_is_left_to_the_training_to_refuse():
    assert processes(2, 1, 3, 2) == 2


def test_a_launch_knows_the_defaults_the_folders_own_arguments_and_what_is_given_now(tmp_path):
    assert settings("2", tmp_path, [])["global_batch_size"] == ("16",)
    (tmp_path / "run.json").write_text(json.dumps({"stage": 2, "arguments": ["--global_batch_size", "64"]}))
    given = settings("2", tmp_path, ["--per-device-train-batch-size=8"])
    assert given["global_batch_size"] == ("64",)
    assert given["per_device_train_batch_size"] == ("8",)
    (tmp_path / "run.json").write_text("{")
    assert settings("2", tmp_path, [])["global_batch_size"] == ("16",)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--per_device_train_batch_size 1", 4),
        ("--per_device_train_batch_size 1 --gradient_accumulation_steps 2", 8),
        ("--gradient_accumulation_steps 3", 8),
        ("--global_batch_size 8 --gradient_accumulation_steps 2", 4),
        ("--global_batch_size 8 --gradient_accumulation_steps 3", 8),
        ("--gradient_accumulation_steps few", 8),
        ("--global_batch_size many", 8),
        ("--use_cpu", 0),
    ],
)
def test_eight_gpus_are_used_as_the_numbers_of_a_step_ask_for(tmp_path, monkeypatch, capsys, words, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    main(["1", str(tmp_path), "1", *words.split()])
    said = capsys.readouterr()
    assert said.out == f"{expected}\n"
    assert ("8 GPUs, 4 of them are used" in said.err) == (expected == 4)


def test_the_folders_own_accumulation_counts_as_given(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    run = {"stage": 1, "arguments": ["--gradient_accumulation_steps", "2"]}
    (tmp_path / "run.json").write_text(json.dumps(run))
    main(["1", str(tmp_path), "1"])
    assert capsys.readouterr().out == "8\n"


def test_without_gpus_no_number_of_processes_is_asked_for():
    command = [sys.executable, "-m", "gpt4roi.train.launch", "1", "nowhere", "1", "--use_cpu", "true"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600).stdout == "0\n"


@pytest.mark.slow
def test_two_machines_meet_and_train_together(parts, tmp_path):
    data = ["--dataset_config", f"{parts}/train.jsonl", "--prompt_format", "chat", "--max_steps", "2"]
    model = ["--model_name_or_path", f"{parts}/language_model", "--vision_tower", f"{parts}/pyramid"]
    more = ["--region_encoder_type", "light", "--report_to", "none", "--attn_implementation", "eager"]
    line = ["scripts/launch_nodes.sh", "2", "127.0.0.1:29571", "train_stage1.sh", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    machines = [
        subprocess.Popen(["bash", *line, *model, *data, *more], cwd=ROOT, env=environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [machine.communicate(timeout=500)[0].decode() for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["processes"] == 2
    assert json.loads((tmp_path / "out" / "trained.json").read_text())["steps"] == 2
    assert len(list((tmp_path / "out").glob("log-*.txt"))) == 2
