"""Training regions on pretrained vision-language models: both stages, adapters, and a run that is resumed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_vlms import BUILDERS, tiny_vlm
from train.squares import write_squares

from gpt4roi import RegionChat
from gpt4roi.errors import InputError
from gpt4roi.train import main

QUICK = ["--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true", "--global_batch_size", "2"]
QUICK += ["--per_device_train_batch_size", "2", "--learning_rate", "1e-2", "--lr_scheduler_type", "constant"]
BOX = [[2, 2, 28, 30]]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    write_squares(folder, 6)
    return folder / "train.jsonl"


def base_folder(name, folder):
    vlm = tiny_vlm(name)
    vlm.base.save_pretrained(folder)
    vlm.processor.base.save_pretrained(folder)
    return folder


def train(stage, base, data, folder, *more):
    given = ["--stage", str(stage), "--model_name_or_path", str(base), "--dataset_config", str(data)]
    return main([*given, "--output_dir", str(folder), *QUICK, *more])


def weights(folder):
    return load_file(folder / "model.safetensors")


def changed(before, after):
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def losses(folder):
    state = json.loads(sorted(folder.glob("checkpoint-*/trainer_state.json"))[-1].read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.parametrize(
    "name", [one if one == "qwen2_5_vl" else pytest.param(one, marks=pytest.mark.slow) for one in BUILDERS]
)
def test_each_stage_trains_its_modules_of_a_base_and_a_run_resumes_to_the_bit(name, data, tmp_path):
    base = base_folder(name, tmp_path / "base")
    one = train(1, base, data, tmp_path / "one", "--max_steps", "4", "--save_steps", "2")
    assert not changed(weights(base), weights(one))
    first = load_file(one / "checkpoint-2" / "region_encoder" / "model.safetensors")
    assert changed(first, load_file(one / "region_encoder" / "model.safetensors"))
    again = tmp_path / "again"
    shutil.copytree(one, again, ignore=shutil.ignore_patterns("checkpoint-4", "trained.json"))
    (again / "model.safetensors").unlink()
    shutil.rmtree(again / "region_encoder")
    main(["--stage", "1", "--output_dir", str(again)])
    resumed = load_file(again / "region_encoder" / "model.safetensors")
    assert not changed(load_file(one / "region_encoder" / "model.safetensors"), resumed)
    two = train(2, one, data, tmp_path / "two", "--max_steps", "1", "--warmup_steps", "0")
    trained = changed(weights(one), weights(two))
    tower = ("vision_tower", "visual.", "vision_model")
    assert any("layers" in each for each in trained)
    assert not [each for each in trained if any(part in each for part in tower) and "merger" not in each]


@pytest.mark.slow
def test_adapters_on_a_base_are_trained_and_opened_with_it(data, tmp_path):
    one = train(1, base_folder("qwen2_5_vl", tmp_path / "base"), data, tmp_path / "one", "--max_steps", "1")
    adapted = train(2, one, data, tmp_path / "lora", "--max_steps", "1", "--warmup_steps", "0", "--lora_r", "2")
    chat = RegionChat.from_pretrained(adapted, device="cpu")
    assert isinstance(chat.describe(str(data.parent / "images" / "0.png"), BOX, max_new_tokens=2)[0], str)


@pytest.mark.slow
def test_the_loss_of_a_tiny_qwen_falls(data, tmp_path):
    base = base_folder("qwen2_5_vl", tmp_path / "base")
    one = train(1, base, data, tmp_path / "one", "--max_steps", "40", "--save_steps", "40")
    found = losses(one)
    assert sum(found[-5:]) < 0.8 * sum(found[:5])


def test_choices_that_a_base_leaves_no_room_for_are_refused(data, tmp_path):
    base = base_folder("llava", tmp_path / "base")
    with pytest.raises(InputError, match=r"--feature_cache: .* is a pretrained vision-language model, whose own tower"):
        train(1, base, data, tmp_path / "one", "--feature_cache", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="stage 2 starts from stage 1's"):
        train(2, base, data, tmp_path / "two")
