"""A small file of boxes, its images, and a tiny model that looks at regions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from coco_tables import tables
from PIL import Image
from tiny import region_sensitive_chat


@pytest.fixture(scope="session")
def chat():
    return region_sensitive_chat()


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
