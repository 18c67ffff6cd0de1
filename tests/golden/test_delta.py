"""The delta arithmetic is held, bit for bit, to what the original's two scripts gave.

Recorded at small size: a base (float32), the delta and, of target and result, the tensors that the base has too. The
others (region encoder, projector) are equal in delta, target and result and lie in the delta only.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt4roi.checkpoint.convert import plan_convert
from gpt4roi.checkpoint.delta import model_fingerprint, plan_apply, plan_make
from gpt4roi.models import GPT4RoIForConditionalGeneration
from gpt4roi.models.original_format import to_ours

GOLDEN = Path(__file__).parent
RECORDED = GOLDEN / "delta"
FOLDER = GOLDEN / "original_format_folder"


def recorded(name: str) -> dict[str, torch.Tensor]:
    delta = load_file(RECORDED / "delta.safetensors")
    if name == "delta":
        return delta
    if name == "base":
        return load_file(RECORDED / "base.safetensors")
    return delta | load_file(RECORDED / f"{name}_of_base.safetensors")


def write(folder: Path, tensors: dict[str, torch.Tensor], kind: str) -> Path:
    folder.mkdir()
    if kind == "safetensors":
        save_file(tensors, folder / "model.safetensors")
    else:
        torch.save(tensors, folder / "pytorch_model.bin")
    for name in ("added_tokens.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(FOLDER / name, folder)
    shutil.copy(RECORDED / "config.json", folder)
    shutil.copytree(FOLDER / "clip", folder / "clip_tiny")
    return folder


def assert_equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


@pytest.fixture(params=["safetensors", "bin"])
def folders(tmp_path, request) -> Path:
    for name in ("base", "delta", "target"):
        write(tmp_path / name, recorded(name), request.param)
    return tmp_path


def test_applying_gives_the_recorded_result_rotary_buffers_included(folders):
    plan_apply(folders / "base", folders / "delta", folders / "out", output_format="original").write()
    assert_equal(load_file(folders / "out/model.safetensors"), recorded("result"))


def test_making_gives_the_recorded_delta_rotary_buffers_included(folders):
    plan_make(folders / "base", folders / "target", folders / "out").write()
    assert_equal(load_file(folders / "out/model.safetensors"), recorded("delta"))


def test_applying_in_our_format_gives_the_recorded_numbers_under_our_names_and_opens(folders):
    plan_apply(folders / "base", folders / "delta", folders / "out").write()
    got = load_file(folders / "out/model.safetensors")
    renamed = {to_ours(name): tensor for name, tensor in recorded("result").items()}
    tower = {name for name in got if name.startswith("vision_tower.")}
    assert_equal({name: got[name] for name in got.keys() - tower}, {n: t for n, t in renamed.items() if n is not None})
    model = GPT4RoIForConditionalGeneration.from_pretrained(folders / "out")
    assert model.dtype == torch.float16
    assert torch.equal(
        model.state_dict()["region_encoder.pooler.output_linear.weight"],
        got["region_encoder.pooler.output_linear.weight"],
    )


def test_both_output_formats_have_one_fingerprint(folders):
    for layout in ("hf", "original"):
        plan_apply(folders / "base", folders / "delta", folders / layout, output_format=layout).write()
    assert model_fingerprint(folders / "hf") == model_fingerprint(folders / "original")


def test_the_recorded_folder_converts_to_what_opening_it_gives_and_back(tmp_path):
    plan_convert(FOLDER, tmp_path / "ours", "hf").write()
    opened = GPT4RoIForConditionalGeneration.from_pretrained(FOLDER).state_dict()
    assert_equal(load_file(tmp_path / "ours/model.safetensors"), dict(opened))
    plan_convert(tmp_path / "ours", tmp_path / "back", "original").write()
    before = torch.load(FOLDER / "pytorch_model.bin", weights_only=True)
    assert_equal(
        load_file(tmp_path / "back/model.safetensors"), {n: t for n, t in before.items() if "inv_freq" not in n}
    )
