"""Activation checkpointing and the kind of attention change the memory of a training, not what it learns."""

import pytest
import torch
from tiny_training import losses, tensors

from gpt4roi.train import main, training

pytestmark = pytest.mark.heavy

STEPS, BATCHES = 2, 4


def train(parts, folder, *flags, monkeypatch):
    """Takes two steps of four batches; returns the losses, the attention used and how often a layer's MLP ran."""
    attention, runs = set(), []
    step = training.GPT4RoITrainer.training_step

    def step_and_tell(self, *args, **kwargs):
        if not attention:
            self.model.language_model.model.layers[0].mlp.register_forward_pre_hook(lambda *of_layer: runs.append(1))
        attention.add(self.model.config.text_config._attn_implementation)
        return step(self, *args, **kwargs)

    data = ["--dataset_config", f"{parts}/train.jsonl", "--prompt_format", "chat", "--max_steps", str(STEPS)]
    model = ["--model_name_or_path", f"{parts}/language_model", "--vision_tower", f"{parts}/pyramid"]
    more = [
        "--region_encoder_type",
        "light",
        "--report_to",
        "none",
        "--disable_tqdm",
        "true",
        "--learning_rate",
        "1e-2",
    ]
    learns = ["--trainable_modules", "region_encoder,language_model"]
    with monkeypatch.context() as patch:
        patch.setattr(training.GPT4RoITrainer, "training_step", step_and_tell)
        main(["--stage", "1", "--output_dir", str(folder), *model, *data, *more, *learns, *flags])
    return losses(folder), attention, len(runs)


def test_checkpointing_and_attention_by_flag_learn_the_same(parts, tmp_path, monkeypatch):
    plain, attention, runs = train(parts, tmp_path / "1", "--attn_implementation", "eager", monkeypatch=monkeypatch)
    assert (attention, runs) == ({"eager"}, STEPS * BATCHES)
    flags = ["--attn_implementation", "sdpa", "--gradient_checkpointing", "true"]
    other, attention, runs = train(parts, tmp_path / "2", *flags, monkeypatch=monkeypatch)
    # What is not kept is computed once more on the way back.
    assert (attention, runs) == ({"sdpa"}, 2 * STEPS * BATCHES)
    assert other == pytest.approx(plain, rel=1e-4)


def test_a_tower_of_convolutions_can_be_kept_in_16_bits(parts, tmp_path, monkeypatch):
    plain, _, _ = train(parts, tmp_path / "1", monkeypatch=monkeypatch)
    half, _, _ = train(parts, tmp_path / "2", "--frozen_dtype", "bfloat16", monkeypatch=monkeypatch)
    assert half == pytest.approx(plain, rel=0.02)
    assert half != plain
    tower = [tensor for name, tensor in tensors(tmp_path / "2").items() if name.startswith("vision_tower.")]
    assert {tensor.dtype for tensor in tower if tensor.is_floating_point()} == {torch.bfloat16}
