"""A small file of boxes, its images, and a tiny model that looks at regions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from coco_tables import tables
from PIL import Image
from tiny import tiny_model, tiny_processor

from gpt4roi import RegionChat


@pytest.fixture(scope="session")
def chat():
    model = tiny_model("pyramid")
    with torch.no_grad():
        for weight in model.region_encoder.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)
    return RegionChat(model, tiny_processor(model.config))


@pytest.fixture
def images(tmp_path):
    """Six files of 96 x 64 pixels, 0.png to 5.png."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 64), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def ann_file(tmp_path):
    """The tables as a file."""
    path = tmp_path / "ann.json"
    path.write_text(json.dumps(tables()))
    return path
