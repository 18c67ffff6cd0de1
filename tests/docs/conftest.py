"""A tiny model and an image in a folder, for the examples of the documentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import region_sensitive_chat


@pytest.fixture(scope="session")
def model_and_photo(tmp_path_factory) -> Path:
    """A folder with `model/` and `photo.jpg`."""
    folder = tmp_path_factory.mktemp("examples")
    noise = np.random.default_rng(0).integers(0, 255, (300, 420, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.jpg")
    chat = region_sensitive_chat()
    chat.model.save_pretrained(folder / "model")
    chat.processor.save_pretrained(folder / "model")
    return folder
