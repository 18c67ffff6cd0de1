"""transformers' own Trainer with the model and a collator of the user: labels, evaluation, the best checkpoint."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_processor
from transformers import Trainer, TrainingArguments
from transformers.utils import find_labels

from gpt4roi.models import GPT4RoIForConditionalGeneration
from gpt4roi.structures import RegionSample, Turn


@pytest.mark.heavy
def test_the_labels_of_the_model_are_found():
    assert find_labels(GPT4RoIForConditionalGeneration) == ["labels"]


def samples():
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    talks = [("What is <region1>?", "fox"), ("And <region1>?", "a hen"), ("This: <region1>?", "dog")]
    return [
        RegionSample(image, (Turn("user", asked), Turn("assistant", answer)), [[2, 2, 20 + index, 30]])
        for index, (asked, answer) in enumerate(talks)
    ]


def trainer(folder, **settings):
    model = tiny_model()
    processor = tiny_processor(model.config)
    arguments = TrainingArguments(
        folder, report_to="none", disable_tqdm=True, per_device_train_batch_size=3, use_cpu=True, **settings
    )
    return Trainer(
        model, arguments, train_dataset=samples(), eval_dataset=samples(), data_collator=lambda rows: processor(rows)
    )


@pytest.mark.heavy
def test_evaluation_has_the_loss_of_the_model(tmp_path):
    ours = trainer(tmp_path, per_device_eval_batch_size=3)
    found = ours.evaluate()["eval_loss"]
    with torch.no_grad():
        expected = ours.model(**ours.data_collator(samples())).loss.item()
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.heavy
def test_the_best_checkpoint_is_found_by_its_loss_and_loaded_at_the_end(tmp_path):
    ours = trainer(
        tmp_path, max_steps=3, eval_strategy="steps", eval_steps=1, save_steps=1, load_best_model_at_end=True,
        learning_rate=1.0, lr_scheduler_type="constant", warmup_steps=0,
    )  # fmt: skip
    ours.train()
    losses = [entry["eval_loss"] for entry in ours.state.log_history if "eval_loss" in entry]
    assert len(losses) == 3 and all(map(math.isfinite, losses)) and losses[0] != losses[-1]
    assert ours.state.best_metric == min(losses)
    assert ours.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)
