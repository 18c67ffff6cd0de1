"""The commands and the scripts of the delta take the original's flags, in both spellings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt4roi.cli import main

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
WIDTH, ROWS = 8, 10
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
REGION = "model.spi_module.roi_align."
CONFIG = {"model_type": "llava", "hidden_size": WIDTH, "mm_vision_tower": "./tower", "max_position_embeddings": 64}


@pytest.fixture
def folders(tmp_path) -> Path:
    """A base of two tables and a norm, and a trained model with a region encoder."""
    base = {name: torch.randn(ROWS, WIDTH) for name in TABLES} | {"model.norm.weight": torch.ones(WIDTH)}
    trained = {name: torch.cat([base[name], torch.ones(6, WIDTH)]).half() + 0.5 for name in TABLES}
    trained |= {"model.norm.weight": torch.ones(WIDTH).half(), "model.mm_projector.weight": torch.ones(WIDTH, 4).half()}
    shapes = {"updims": (WIDTH, 4), "flatten_linear": (4, 16), "pos_embedd.0": (6, 4)}
    trained |= {f"{REGION}{name}.weight": torch.randn(shape).half() for name, shape in shapes.items()}
    for name, tensors in (("base", base), ("trained", trained)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    (tmp_path / "trained/config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "trained/tokenizer.model").write_bytes(b"carried along")
    return tmp_path


def script(name: str, folders: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", f"scripts.{name}", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, cwd=folders, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_scripts_make_and_apply_a_delta_with_the_short_and_the_long_flags(folders):
    script("make_delta", folders, "--base", "./base", "--target", "./trained", "--delta", "./delta")
    long = ["--base-model-path", "./base", "--target-model-path", "./out", "--delta-path", "./delta"]
    said = script("apply_delta", folders, *long, "--format", "original", "--verify")
    got, trained = load_file(folders / "out/model.safetensors"), load_file(folders / "trained/model.safetensors")
    assert got.keys() == trained.keys()
    assert max(float((got[name].float() - trained[name].float()).abs().max()) for name in got) < 5e-3
    promised = json.loads((folders / "delta/delta.json").read_text())["result"]
    assert said.startswith("wrote ./out: ")
    assert said.endswith(
        f"the base is the one the delta was made from; fingerprint {promised}, as the delta promises\n"
    )


def test_verify_prints_one_fingerprint_for_both_formats_and_any_shards(folders, capsys):
    base, trained, delta = (str(folders / role) for role in ("base", "trained", "delta"))
    assert main(["make-delta", "--base", base, "--target", trained, "--delta", delta]) == 0
    for target, *more in (("ours", "--max-shard-size", "100"), ("theirs", "--format", "original")):
        flags = ["--base", base, "--delta", delta, "--target", str(folders / target), *more]
        assert main(["apply-delta", *flags, "--verify"]) == 0
    prints = re.findall(r"sha256:[0-9a-f]{64}", capsys.readouterr().out)
    assert len(prints) == 2
    assert len(set(prints)) == 1
    assert len(list((folders / "ours").glob("model-*.safetensors"))) > 3


def test_the_help_names_both_spellings(capsys):
    for name in ("apply-delta", "make-delta"):
        assert main([name, "--help"]) == 0
        said = capsys.readouterr().out
        for flag in ("--base", "--base-model-path", "--target", "--target-model-path", "--delta", "--delta-path"):
            assert f"{flag} " in said or f"{flag}," in said
