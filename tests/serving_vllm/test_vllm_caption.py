"""Captions of a file by vLLM and on Ray, against those of our own engine; scripts/test_vllm.sh runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vllm_models import save, tiny_chat

from gpt4roi.cli import main

pytest.importorskip("vllm")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def job(tmp_path):
    """The words of the command without --out: eight boxes on three images."""
    return job_of(tmp_path, "box")


def job_of(tmp_path: Path, region_shape: str) -> list[str]:
    """The same over a model of boxes or of masks; every box has a triangle inside it as its mask."""
    annotations = []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 64), Image.Resampling.NEAREST).save(tmp_path / f"{number}.png")
        for box in ([3, 4, 40, 30], [50, 20, 30, 40], [0, 0, 96, 64])[: 3 - number % 2]:
            x, y, width, height = box
            mask = [[x, y, x + width, y, x, y + height]]
            annotations.append({"id": len(annotations), "image_id": number, "bbox": box, "segmentation": mask})
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(3)]
    (tmp_path / "ann.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    model = save(tiny_chat("pyramid", region_shape=region_shape), tmp_path / "model")
    words = ["caption", tmp_path / "ann.json", "--images", tmp_path, "--model", model, "--device", "cpu"]
    return [str(word) for word in [*words, "--dtype", "float32", "--max-new-tokens", "24", "--batch-size", "3"]]


def texts(file: Path) -> list[str]:
    return [row.get("caption") for row in json.loads(file.read_text())["annotations"]]


@pytest.mark.parametrize("region_shape", ["box", "mask"])
def test_vllm_resumes_a_job_of_our_own_engine_and_writes_the_same_bytes(region_shape, tmp_path, capsys):
    job = job_of(tmp_path, region_shape)
    expected, found = tmp_path / "expected.json", tmp_path / "found.json"
    assert main([*job, "--out", str(expected)]) == 0
    assert None not in texts(expected) and len(set(texts(expected))) > 4
    (tmp_path / "2.png").rename(tmp_path / "aside.png")
    main([*job, "--out", str(found)])
    assert texts(found).count(None) == 3
    (tmp_path / "aside.png").rename(tmp_path / "2.png")
    assert main([*job, "--out", str(found), "--engine", "vllm"]) == 0
    assert "trying these again" in capsys.readouterr().err
    assert found.read_bytes() == expected.read_bytes()


def test_two_processes_of_torchrun_share_a_job_each_with_an_engine(job, tmp_path):
    assert main([*job, "--out", str(tmp_path / "expected.json")]) == 0
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "gpt4roi.cli",
    ]
    command = [*torchrun, *job, "--out", str(tmp_path / "found.json"), "--engine", "vllm"]
    subprocess.run(command, check=True, timeout=500)
    assert (tmp_path / "found.json").read_bytes() == (tmp_path / "expected.json").read_bytes()


def test_two_workers_of_ray_write_the_same_texts(job, tmp_path):
    pytest.importorskip("ray")
    assert main([*job, "--out", str(tmp_path / "expected.json")]) == 0
    command = [sys.executable, ROOT / "examples/caption_with_ray.py", tmp_path / "ann.json", tmp_path, tmp_path / "out"]
    options = ["--model", tmp_path / "model", "--workers", "2", "--max-new-tokens", "24", "--dtype", "float32"]
    subprocess.run([str(word) for word in [*command, *options]], check=True, timeout=400)
    rows = [json.loads(line) for file in sorted((tmp_path / "out").glob("*.json")) for line in file.open()]
    found = {row["annotation"]: row["caption"] for row in rows}
    assert [found[number] for number in range(len(found))] == texts(tmp_path / "expected.json")
