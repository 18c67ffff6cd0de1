"""A saved tiny model."""

from __future__ import annotations

import pytest
from tiny import tiny_model, tiny_processor


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A folder as a training writes it."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model("pyramid")
    model.save_pretrained(folder)
    tiny_processor(model.config).save_pretrained(folder)
    return folder
