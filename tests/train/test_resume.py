"""Going on exactly where a training stopped, in one process."""

import json
import logging
import resource

import pytest
import torch
from safetensors.torch import load_file

from gpt4roi.data.registry import build_mixture
from gpt4roi.data.training_dataset import EncodedDataset
from gpt4roi.errors import InputError
from gpt4roi.train import main, saving, training
from gpt4roi.train.command_line import parse
from gpt4roi.train.resume import check_position, describe_data, realign

pytestmark = pytest.mark.heavy

STEPS = 7


def arguments(parts, folder):
    return [
        *("--stage", "1", "--output_dir", str(folder), "--max_steps", str(STEPS), "--save_steps", "3"),
        *("--model_name_or_path", f"{parts}/language_model", "--vision_tower", f"{parts}/pyramid"),
        *("--region_encoder_type", "light", "--region_noise", "0.5", "--prompt_format", "chat"),
        *("--dataset_config", f"{parts}/train.jsonl", "--logging_steps", "2", "--save_total_limit", "1"),
        *("--global_batch_size", "3", "--per_device_train_batch_size", "3", "--learning_rate", "3e-3"),
        *("--report_to", "none", "--disable_tqdm", "true", "--attn_implementation", "eager"),
    ]


def history(folder):
    """Returns steps, losses and learning rates that the newest checkpoint remembers."""
    state = json.loads((saving.last_checkpoint(folder) / "trainer_state.json").read_text())
    return [(entry["step"], entry["loss"], entry["learning_rate"]) for entry in state["log_history"] if "loss" in entry]


def same_tensors(one, other):
    before, after = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


class Stopped(Exception):  # noqa: N818
    pass


def train_until(argv, step, monkeypatch):
    """Runs a training and stops it in the forward pass of the step after `step`."""
    original = training.GPT4RoITrainer.training_step

    def stop(self, *args, **kwargs):
        if self.state.global_step == step:
            raise Stopped
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(training.GPT4RoITrainer, "training_step", stop)
        with pytest.raises(Stopped):
            main(argv)


def test_a_run_that_goes_on_evaluates_when_an_uninterrupted_one_would(parts, tmp_path, monkeypatch):
    argv = [*arguments(parts, tmp_path), "--eval_dataset", f"{parts}/train.jsonl", "--eval_steps", "4"]
    train_until(argv, 5, monkeypatch)
    main(["--stage", "1", "--output_dir", str(tmp_path)])
    state = json.loads((saving.last_checkpoint(tmp_path) / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "eval_loss" in entry] == [0, 4, 7]
    assert list(json.loads((tmp_path / "watch.json").read_text())) == ["0", "4", "7"]


def test_a_run_that_goes_on_logs_evaluates_and_saves_as_it_is_told_anew(parts, tmp_path, monkeypatch):
    argv = [*arguments(parts, tmp_path), "--eval_dataset", f"{parts}/train.jsonl", "--eval_steps", "2"]
    train_until([*argv, "--save_steps", "1"], 1, monkeypatch)
    main([*argv, "--logging_steps", "3", "--eval_steps", "5", "--save_steps", "4", "--save_total_limit", "9"])
    logged = [*json.loads((saving.last_checkpoint(tmp_path) / "trainer_state.json").read_text())["log_history"]]
    assert [entry["step"] for entry in logged if "loss" in entry] == [3, 6]
    assert [entry["step"] for entry in logged if "eval_loss" in entry] == [0, 5, 7]
    assert [saving.step_of(path) for path in saving.checkpoints(tmp_path)] == [1, 4, 7]


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    return main(arguments(parts, tmp_path_factory.mktemp("runs") / "whole"))


@pytest.fixture
def stopped(parts, tmp_path, monkeypatch):
    """A run that was stopped in step 6, after its checkpoint of step 3."""
    train_until(arguments(parts, tmp_path / "stopped"), 5, monkeypatch)
    return tmp_path / "stopped"


def test_counts_of_another_number_of_processes_are_summed_except_those_that_all_share(parts, tmp_path):
    args = parse(["--stage", "1", "--output_dir", str(tmp_path), "--report_to", "none"]).training
    dataset = EncodedDataset(build_mixture(parts / "train.jsonl"), None, 0)
    trainer = training.GPT4RoITrainer(args, model=torch.nn.Linear(1, 1), train_dataset=dataset, rates={}, decays={})
    own = {"seen": 50, "skipped": 1, "dropped_turns": 2, "bad_steps": 2, "loss": 1.0, "last_logged": 4}
    for rank in range(2):
        (tmp_path / f"rank_{rank}.json").write_text(json.dumps(own))
    trainer.load_own_state(tmp_path)
    assert (trainer.seen, trainer.skipped, trainer.dropped_turns, trainer.bad_steps) == (100, 2, 4, 2)


def test_a_sample_that_cannot_be_drawn_does_not_keep_a_run_from_beginning(parts, monkeypatch):
    dataset = EncodedDataset(build_mixture(parts / "train.jsonl"), None, 0)
    before = describe_data(dataset)
    original = dataset.mixture.sample

    def without_the_first(index, rng):
        if index == 0:
            raise InputError("no boxes")
        return original(index, rng)

    monkeypatch.setattr(dataset.mixture, "sample", without_the_first)
    described = describe_data(dataset)
    assert described["samples"] == before["samples"] and described["digest"] != before["digest"]


def test_a_resumed_run_has_the_losses_and_weights_of_an_uninterrupted_one_to_the_bit(whole, stopped):
    assert saving.step_of(saving.last_checkpoint(stopped)) == 3
    main(["--stage", "1", "--output_dir", str(stopped)])
    # The log line of step 4 is the mean of steps 3 and 4, which lie on both sides of the checkpoint.
    assert [step for step, _, _ in history(whole)] == [2, 4, 6]
    assert history(stopped) == history(whole)
    assert same_tensors(stopped, whole)


def test_nothing_is_read_to_get_to_the_right_place_within_an_epoch(parts, tmp_path, monkeypatch):
    flags = ["--per_device_train_batch_size", "2", "--global_batch_size", "4", "--max_steps", "2", "--save_steps", "1"]
    uninterrupted = main([*arguments(parts, tmp_path / "one"), *flags])
    train_until([*arguments(parts, tmp_path / "two"), *flags], 1, monkeypatch)
    read = {"lengths": [], "samples": []}
    for name, method in (("lengths", "text_length"), ("samples", "__getitem__")):
        original = getattr(EncodedDataset, method)

        def get(self, index, original=original, name=name):
            read[name].append(index)
            return original(self, index)

        monkeypatch.setattr(EncodedDataset, method, get)
    main(["--stage", "1", "--output_dir", str(tmp_path / "two")])
    assert len(read["lengths"]) == len(read["samples"]) == 4
    assert history(tmp_path / "two") == history(uninterrupted)
    assert same_tensors(tmp_path / "two", uninterrupted)


def test_images_that_a_16_bit_tower_looked_at_are_the_same_after_resuming(parts, tmp_path, monkeypatch):
    kept = ["--frozen_dtype", "bfloat16", "--feature_cache", str(tmp_path / "kept")]
    uninterrupted = main([*arguments(parts, tmp_path / "one"), *kept])
    train_until([*arguments(parts, tmp_path / "two"), *kept], 5, monkeypatch)
    main(["--stage", "1", "--output_dir", str(tmp_path / "two")])
    assert len(list((tmp_path / "kept").iterdir())) == 1
    assert history(tmp_path / "two") == history(uninterrupted)


def test_a_run_that_was_stopped_before_its_first_step_is_remembered(parts, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise Stopped

    for name in ("cache_features", "open_model"):
        monkeypatch.setattr(training, name, stop)
        folder = tmp_path / name
        with pytest.raises(Stopped):
            main([*arguments(parts, folder), "--feature_cache", str(tmp_path / "kept")])
        kept = json.loads((folder / "run.json").read_text())
        assert (kept["arguments"][:2], kept["begun"]) == (["--max_steps", str(STEPS)], False)


def test_a_run_that_was_killed_before_its_model_was_written_only_writes_it(whole, parts, tmp_path, monkeypatch):
    folder = main(arguments(parts, tmp_path / "again"))
    (folder / "trained.json").unlink()
    (folder / "model.safetensors").write_bytes(b"torn")
    with monkeypatch.context() as patch:
        patch.setattr(training.GPT4RoITrainer, "training_step", None)
        main(["--stage", "1", "--output_dir", str(folder)])
    assert json.loads((folder / "trained.json").read_text())["steps"] == STEPS
    assert same_tensors(folder, whole)


def test_no_checkpoint_but_the_last_stays_and_nothing_unfinished(whole):
    names = sorted(path.name for path in whole.iterdir() if path.is_dir())
    assert names == ["checkpoint-7"]
    assert json.loads((whole / "settings.json").read_text())["settings"]["learning_rate"] == 3e-3


def test_a_torn_checkpoint_is_passed_over_and_written_again(whole, stopped, caplog):
    torn = stopped / "checkpoint-5"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"torn")
    (stopped / ".partial-checkpoint-6").mkdir()
    with caplog.at_level(logging.INFO):
        main(["--stage", "1", "--output_dir", str(stopped)])
    assert "checkpoint-5 is corrupt (it has no whole.json" in caplog.text
    assert ".partial-checkpoint-6 was left unfinished" in caplog.text
    assert same_tensors(stopped, whole)


def test_a_disk_that_is_full_ends_the_run_with_the_old_checkpoint_whole(whole, stopped):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"checkpoint 6 cannot be written to .*checkpoint-3 is complete: make"):
            main(["--stage", "1", "--output_dir", str(stopped)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in stopped.iterdir() if path.is_dir()] == ["checkpoint-3"]
    main(["--stage", "1", "--output_dir", str(stopped)])
    assert same_tensors(stopped, whole)


def test_other_data_or_another_step_size_is_refused(parts, tmp_path, pyramid_processor):
    data = describe_data(EncodedDataset(build_mixture(parts / "train.jsonl"), pyramid_processor, 0))
    assert data["samples"] == 8
    (tmp_path / "position.json").write_text(json.dumps(data | {"step_size": 4}))
    check_position(tmp_path, data, 4)
    with pytest.raises(InputError, match=r"the samples in a step changed since it was written \(4 then, 8 now\)"):
        check_position(tmp_path, data, 8)
    lines = (parts / "train.jsonl").read_text().replace("yes", "no").splitlines()
    lines = [line.replace('"images/', f'"{parts}/images/') for line in lines]
    (tmp_path / "changed.jsonl").write_text("\n".join(lines))
    changed = describe_data(EncodedDataset(build_mixture(tmp_path / "changed.jsonl"), pyramid_processor, 0))
    with pytest.raises(InputError, match="the samples changed since it was written"):
        check_position(tmp_path, changed, 4)


def test_tensors_from_a_file_are_moved_to_the_allocators_alignment(pyramid_model, tmp_path):
    pyramid_model.save_pretrained(tmp_path)
    loaded = load_file(tmp_path / "model.safetensors")
    model = type(pyramid_model)(pyramid_model.config)
    state = dict(model.named_parameters())
    for name, parameter in state.items():
        parameter.data = loaded[name]
    assert any(parameter.data_ptr() % 64 for parameter in state.values())
    realign(model)
    assert all(parameter.data_ptr() % 64 == 0 for parameter in state.values())
    assert all(torch.equal(parameter, loaded[name]) for name, parameter in state.items())
