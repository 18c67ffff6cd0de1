"""A tiny model and an image in a folder, for the examples of the documentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor


@pytest.fixture(scope="session")
def model_and_photo(tmp_path_factory) -> Path:
    """A folder with `model/` and `photo.jpg`."""
    folder = tmp_path_factory.mktemp("examples")
    noise = np.random.default_rng(0).integers(0, 255, (300, 420, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.jpg")
    model = tiny_model("pyramid")
    with torch.no_grad():  # so that answers depend on the region
        for weight in model.region_encoder.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)
    model.save_pretrained(folder / "model")
    tiny_processor(model.config).save_pretrained(folder / "model")
    return folder
