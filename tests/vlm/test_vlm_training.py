"""Training regions on pretrained vision-language models: both stages, adapters, and a run that is resumed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_vlms import BUILDERS, tiny_vlm
from train.squares import write_squares

from gpt4roi.cli import main as cli
from gpt4roi.errors import InputError
from gpt4roi.train import main

QUICK = ["--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true", "--global_batch_size", "2"]
LOGGED = ["--save_steps", "21", "--logging_steps", "1"]
QUICK += ["--per_device_train_batch_size", "2", "--learning_rate", "1e-2", "--lr_scheduler_type", "constant"]


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


def of_families(*in_ci):
    return [name if name in in_ci else pytest.param(name, marks=pytest.mark.slow) for name in BUILDERS]


@pytest.mark.heavy
@pytest.mark.parametrize("name", of_families("qwen2_5_vl"))
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


@pytest.fixture(scope="module", params=of_families("qwen2_5_vl"))
def stage1(request, data, tmp_path_factory):
    """A family's base and what 21 steps of stage 1 made of it, or 63 where a frozen router passes less on."""
    steps = "63" if "moe" in request.param else "21"
    folder = tmp_path_factory.mktemp(request.param)
    base = base_folder(request.param, folder / "base")
    return base, train(1, base, data, folder / "one", "--max_steps", steps, *LOGGED)


@pytest.mark.heavy
def test_the_loss_falls_in_stage_1_with_the_base_frozen_and_further_in_stage_2(stage1, data, tmp_path, record_property):
    base, one = stage1
    assert not changed(weights(base), weights(one))
    two = train(2, one, data, tmp_path / "two", "--max_steps", "12", "--warmup_steps", "0", *LOGGED)
    found = losses(one), losses(two)
    start, middle, end = (sum(part) / 6 for part in (found[0][:6], found[0][-6:], found[1][-6:]))  # of two epochs
    record_property("loss", f"{start:.2f} → {middle:.2f} → {end:.2f}")
    assert middle < 0.98 * start  # a random decoder that is frozen leaves little to gain
    assert end < 0.5 * middle


@pytest.mark.heavy
def test_adapters_on_a_base_are_trained_and_both_are_described_from_the_command_line(stage1, data, tmp_path, capsys):
    one, image = stage1[1], str(data.parent / "images" / "0.png")
    lora = train(2, one, data, tmp_path / "lora", "--max_steps", "1", "--warmup_steps", "0", "--lora_r", "2")
    adapter = load_file(lora / "adapter_model.safetensors")
    assert all(value.any() for name, value in adapter.items() if "lora_B" in name)  # they begin at zero
    assert any("region_encoder" in name for name in adapter)
    capsys.readouterr()
    for folder in (one, lora):
        command = ["describe", image, "--box", "2,2,28,30", "--model", str(folder), "--device", "cpu"]
        assert cli([*command, "--max-new-tokens", "4"]) == 0
        assert capsys.readouterr().out.startswith("1\t2,2,28,30\t")


@pytest.mark.heavy
def test_the_best_checkpoint_is_restored_base_and_region_encoder(data, tmp_path, caplog):
    given = ["--eval_dataset", str(data), "--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1"]
    given += ["--load_best_model_at_end", "true", "--metric_for_best_model", "eval_loss", "--learning_rate", "3"]
    one = train(1, base_folder("qwen2_5_vl", tmp_path / "base"), data, tmp_path / "one", "--max_steps", "1")
    two = train(2, one, data, tmp_path / "two", "--max_steps", "2", "--warmup_steps", "0", *given)
    best = json.loads((two / "checkpoint-2" / "trainer_state.json").read_text())["best_global_step"]
    assert best == 1
    for file in ("model.safetensors", "region_encoder/model.safetensors"):
        first, last, kept = (load_file(path / file) for path in (two / "checkpoint-1", two / "checkpoint-2", two))
        assert changed(first, last) and not changed(first, kept)
    assert "missing keys" not in caplog.text


def test_choices_that_a_base_leaves_no_room_for_are_refused(data, tmp_path):
    base = base_folder("llava", tmp_path / "base")
    with pytest.raises(InputError, match=r"--feature_cache: .* is a pretrained vision-language model, whose own tower"):
        train(1, base, data, tmp_path / "one", "--feature_cache", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="stage 2 starts from stage 1's"):
        train(2, base, data, tmp_path / "two")
