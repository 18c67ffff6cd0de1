"""A language model, towers and data in folders, as a training finds them; all tiny."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny import tiny_text_config, tiny_tokenizer, tiny_vision_config
from transformers import CLIPVisionModel, LlamaForCausalLM, TimmBackbone

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}


def write_parts(root: Path, images: int = 8) -> Path:
    """Writes folders `language_model`, `clip` and `pyramid`, and `train.jsonl` with images of coloured squares."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = tiny_tokenizer(with_region_tokens=False)
        LlamaForCausalLM(tiny_text_config(vocab_size=len(tokenizer))).save_pretrained(root / "language_model")
        tokenizer.save_pretrained(root / "language_model")
        CLIPVisionModel(tiny_vision_config()).save_pretrained(root / "clip")
        TimmBackbone(tiny_vision_config("timm_backbone")).save_pretrained(root / "pyramid")
    (root / "pyramid" / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 64, "width": 64}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    write_squares(root, images)
    return root


def write_squares(root, count):
    """Writes images with two coloured squares each, and questions about their colours and places."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    lines = []
    for number in range(count):
        image = np.full((64, 64, 3), 128, dtype=np.uint8)
        turns, tasks = [], []
        boxes = [[2, 2, 28, 30], [34, 30, 62, 60]]
        for region, (x1, y1, x2, y2) in enumerate(boxes, start=1):
            name = list(COLOURS)[rng.integers(3)]
            image[y1:y2, x1:x2] = COLOURS[name]
            turns += [{"from": "human", "value": f"What is <region{region}>?"}, {"from": "gpt", "value": name}]
            tasks.append("caption")
        turns += [
            {"from": "human", "value": "Is <region1> left of <region2>?"},
            {"from": "gpt", "value": "yes"},
        ]
        tasks.append("left")
        Image.fromarray(image).save(root / "images" / f"{number}.png")
        lines.append(
            {
                "image": f"images/{number}.png",
                "boxes": boxes,
                "conversations": turns,
                "tasks": tasks,
                "independent": True,
            }
        )
    (root / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
