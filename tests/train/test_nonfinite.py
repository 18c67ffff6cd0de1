"""NaN or inf in loss or gradients stops a training, and sanity checks before its first step."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_model, tiny_processor
from tiny_training import ONE_BY_ONE, losses, stage1

from gpt4roi.data.registry import build_mixture
from gpt4roi.data.training_dataset import EncodedDataset
from gpt4roi.errors import InputError
from gpt4roi.processing.batch import RegionCollator
from gpt4roi.structures import RegionSample, Turn
from gpt4roi.train.command_line import parse
from gpt4roi.train.nonfinite import NonFiniteGuard
from gpt4roi.train.sanity_checks import check_first_batch, check_fit
from gpt4roi.train.trainer import GPT4RoITrainer


def batch_of(processor, *answers):
    """A batch of dialogues about nothing, one for each answer."""
    samples = [RegionSample(None, (Turn("user", "Hi?"), Turn("assistant", text))) for text in answers]
    return RegionCollator(0)([processor.encode(sample) for sample in samples])


def test_the_first_set_batch_info_rendered_with_what_is_learnt_marked(caplog):
    processor = tiny_processor()
    caplog.set_level("INFO")
    check_first_batch([batch_of(processor, "yes", "no, never")], processor)
    assert "<|start|>user\nHi?<|end|>\n<|start|>assistant\n«yes<|end|>»" in caplog.text
    assert re.search(r"First batch: 14 supervised tokens; .*'input_ids': \(2, \d+\)", caplog.text)


def test_a_format_whose_answers_have_no_end_is_refused():
    processor = tiny_processor()
    batch = batch_of(processor, "yes")
    batch["labels"][batch["input_ids"] == processor.tokenizer.eos_token_id] = -100
    with pytest.raises(InputError, match=r"does not fit the tokenizer: no answer .* never stop; supervised is 'yes'"):
        check_first_batch([batch], processor)


def test_a_batch_that_learns_nothing_is_refused():
    processor = tiny_processor()
    batch = batch_of(processor, "yes")
    batch["labels"][:] = -100
    with pytest.raises(InputError, match="no token of the first batch is supervised"):
        check_first_batch([batch], processor)


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused():
    model, processor = tiny_model(), tiny_processor()
    check_fit(processor, model)
    model.language_model.resize_token_embeddings(200)
    with pytest.raises(InputError, match="numbers tokens up to 263, the model has 200 rows"):
        check_fit(processor, model)


@pytest.mark.heavy
def test_another_prompt_format_than_the_model_was_trained_with_is_refused(parts, tmp_path):
    first = stage1(tmp_path / "a", parts, steps=1)
    from gpt4roi.train import main

    again = ["--stage", "2", "--output_dir", str(tmp_path / "b"), "--model_name_or_path", str(first)]
    with pytest.raises(InputError, match=r"--prompt_format v0 does not fit the model: .*/a was trained with 'chat'"):
        main([*again, "--prompt_format", "v0", "--dataset_config", f"{parts}/train.jsonl"])


def test_a_first_loss_that_is_not_finite_names_the_broken_weights_and_the_sample():
    model = tiny_model()
    model.language_model.model.norm.weight.data[3] = float("nan")
    with pytest.raises(InputError, match=r"first loss is nan in step 1 \(samples a#1\); 1 tensors .*model.norm.weight"):
        NonFiniteGuard(3).check_loss(float("nan"), 5, ["a#1"], 0, model)


def test_a_first_loss_of_exactly_zero_stops_only_where_something_is_learnt():
    guard, model = NonFiniteGuard(3), torch.nn.Linear(1, 1)
    guard.check_loss(0.0, 0, [], 0, model)
    with pytest.raises(InputError, match="first loss is exactly 0 on 7 supervised tokens"):
        guard.check_loss(0.0, 7, ["a#1"], 0, model)
    guard.began = True
    guard.check_loss(0.0, 7, ["a#1"], 1, model)


def a_trainer(parts, tmp_path, *more):
    """A trainer of a tiny model on the squares."""
    args = parse(["--stage", "1", "--output_dir", str(tmp_path), "--report_to", "none", *more]).training
    dataset = EncodedDataset(build_mixture(parts / "train.jsonl"), tiny_processor(), 0)
    return GPT4RoITrainer(args, model=tiny_model(), train_dataset=dataset, rates={}, decays={})


def test_in_fp16_the_first_loss_is_the_first_alone_and_later_ones_that_are_not_finite_are_counted(parts, tmp_path):
    trainer, model = a_trainer(parts, tmp_path, "--max_bad_steps", "1"), torch.nn.Linear(1, 1)
    trainer.accelerator.scaler = object()  # as in fp16
    guard = trainer.guard
    guard.check_loss(2.0, 5, ["a#1"], 0, model)
    assert trainer._get_grad_norm(model, float("inf")) == float("inf")  # the scaler looks for its scale
    assert (guard.began, guard.bad_steps, guard.sources) == (True, 0, [])
    guard.check_loss(float("nan"), 5, ["a#2"], 1, model)
    trainer._get_grad_norm(model, float("nan"))
    assert trainer.bad_steps == 1
    guard.check_loss(float("nan"), 5, ["a#3"], 2, model)
    with pytest.raises(InputError, match=r"not finite in 2 steps.*\(samples a#3\)"):
        trainer._get_grad_norm(model, float("nan"))


def with_a_loss_of_nan(monkeypatch, steps):
    """Lets the loss of some steps be NaN, as an overflow would."""
    original = GPT4RoITrainer.compute_loss

    def poisoned(self, model, inputs, *args, **kwargs):
        loss = original(self, model, inputs, *args, **kwargs)
        return loss * float("nan") if self.state.global_step in steps else loss

    monkeypatch.setattr(GPT4RoITrainer, "compute_loss", poisoned)


@pytest.mark.heavy
def test_a_step_of_nan_changes_nothing_is_counted_and_names_its_samples(parts, tmp_path, monkeypatch, caplog):
    with_a_loss_of_nan(monkeypatch, {2})
    folder = stage1(tmp_path / "out", parts, *ONE_BY_ONE, steps=5)
    assert json.loads((folder / "trained.json").read_text())["steps"] == 5
    assert re.search(r"Step 3 is skipped: its loss is not finite \(samples .*train.jsonl#\d+\)", caplog.text)
    state = json.loads((folder / "checkpoint-5" / "trainer_state.json").read_text())
    lines = [(entry["step"], entry.get("bad_steps")) for entry in state["log_history"] if "grad_norm" in entry]
    assert lines == [(1, None), (2, None), (3, 1), (4, 1), (5, 1)]
    assert len(losses(folder)) == 4
    assert all(0.1 < loss < 20 for loss in losses(folder))


@pytest.mark.heavy
def test_too_many_bad_steps_stop_the_run_with_the_samples(parts, tmp_path, monkeypatch):
    with_a_loss_of_nan(monkeypatch, {1, 2, 3, 4})
    with pytest.raises(InputError, match=r"not finite in 3 steps, more than --max_bad_steps 2.*train.jsonl#\d+"):
        stage1(tmp_path / "out", parts, *ONE_BY_ONE, "--max_bad_steps", "2", steps=8)


@pytest.mark.heavy
def test_a_run_whose_first_loss_is_nan_stops_before_it_changes_a_weight(parts, tmp_path, monkeypatch):
    with_a_loss_of_nan(monkeypatch, {0})
    with pytest.raises(InputError, match=r"the first loss is nan in step 1 .*all weights are finite"):
        stage1(tmp_path / "out", parts, *ONE_BY_ONE, steps=3)
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_what_a_batch_consists_of_is_counted_where_it_is_made_and_no_gpu_is_asked(parts, tmp_path):
    batch = batch_of(tiny_processor(), "yes", "no, never")
    expected = int((batch["labels"] != -100).sum()), int(batch["attention_mask"].sum())
    assert (batch["n_supervised"], batch["n_tokens"]) == expected == (14, 60)
    trainer = a_trainer(parts, tmp_path)
    # A tensor of the meta device has no values, so that asking for one raises; on a GPU it would wait.
    inputs = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    received = []

    class Model:
        training = True

        def __call__(self, logits_at_targets_only, num_items_in_batch, **inputs):
            received.extend(sorted(inputs))
            return SimpleNamespace(loss=torch.tensor(2.0))

    assert trainer.compute_loss(Model(), inputs) == 2
    assert received == ["attention_mask", "input_ids", "labels"]
    assert (trainer.seen, trainer.throughput.tokens, trainer.throughput.regions) == (2, 60, 0)
    with pytest.raises(InputError, match=r"first loss is nan in step 1 \(samples "):  # with what the batch consists of
        trainer.guard.check_loss(float("nan"), 14, batch["sources"], 0, tiny_model())


def test_a_batch_without_a_usable_sample_has_nothing_to_learn():
    nothing = RegionCollator(0)([{"skipped": "it is gone"}])
    assert (nothing["n_supervised"], nothing["n_tokens"], nothing["skipped"]) == (0, 2, ["it is gone"])
