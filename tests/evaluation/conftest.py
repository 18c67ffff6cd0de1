"""Recordings of the field's metric tools, pictures to ask about, and answerers that know or do not look."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics" / "metrics_shared.json"


@pytest.fixture(scope="session")
def golden():
    """Predictions with the scores that the field's tools gave them."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def pictures():
    """A function that writes noise pictures of 96 x 64 pixels under the given paths."""

    def write(*paths: Path) -> None:
        for number, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (8, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((96, 64), Image.Resampling.NEAREST).save(path)

    return write
