"""Trainings of tiny models on images of coloured squares."""

from __future__ import annotations

import json

from safetensors.torch import load_file

from gpt4roi.train import main

COMMON = [
    "--model_max_length",
    "512",
    "--report_to",
    "none",
    "--disable_tqdm",
    "true",
    "--attn_implementation",
    "eager",
]
ONE_BY_ONE = ["--global_batch_size", "1", "--per_device_train_batch_size", "1"]
FAST = ["--global_batch_size", "4", "--per_device_train_batch_size", "4", "--learning_rate", "1e-2"]


def stage1(folder, parts, *more, tower="pyramid", steps=3):
    """Trains stage 1 and returns its folder."""
    light = ["--region_encoder_type", "light"] if tower == "pyramid" else []
    chosen = ["--model_name_or_path", f"{parts}/language_model", "--vision_tower", f"{parts}/{tower}"]
    data = ["--dataset_config", f"{parts}/train.jsonl", "--prompt_format", "chat", "--max_steps", str(steps)]
    return main(["--stage", "1", "--output_dir", str(folder), *chosen, *light, *data, *COMMON, *FAST, *more])


def losses(folder):
    """Returns the losses that the newest checkpoint of a folder has logged."""
    state = json.loads(sorted(folder.glob("checkpoint-*/trainer_state.json"))[-1].read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def tensors(folder):
    """Returns a folder's weights by name."""
    return load_file(folder / "model.safetensors")
