"""A saved tiny model and an image for the command line."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tiny import region_sensitive_chat


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A folder as a training writes it."""
    folder = tmp_path_factory.mktemp("model")
    chat = region_sensitive_chat()
    chat.model.save_pretrained(folder)
    chat.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def image(tmp_path):
    """A file of 96 x 64 pixels of coarse noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).resize((96, 64), Image.Resampling.NEAREST).save(path)
    return path
