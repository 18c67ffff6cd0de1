"""Every implementation of RoIAlign gives the recorded region embeddings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.heavy
@pytest.mark.parametrize("backend", ["torchvision", "sparse", "mmcv", "auto"])
def test_region_embeddings_equal_the_recording_with_each_backend(narrow, recorded, boxes, backend, monkeypatch):
    before = set(sys.modules)
    # Behind what is installed: an mmcv of the user's own goes first.
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[2] / "mmcv-1.4.7")])
    monkeypatch.setattr(narrow.region_encoder.pooler, "backend", backend)
    with torch.no_grad():
        features = narrow.get_region_features(recorded["pixel_values"], boxes)
    expected = torch.cat([recorded[f"region_{sample}"] for sample in range(3)])
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=0)
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "mmcv":
            del sys.modules[name]
