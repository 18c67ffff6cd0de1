"""Runs tests over both implementations, and holds the boxes of every kind that they pool."""

import sys

import pytest
import torch
from mmcv.ops import COMPILED_FOR, roi_align

BOXES = {
    "ordinary": (1, 10.0, 20.0, 150.0, 180.0),
    "fractional": (0, 33.37, 41.91, 97.13, 58.29),
    "whole picture": (1, 0.0, 0.0, 224.0, 224.0),
    "tiny": (0, 100.0, 100.0, 100.5, 100.25),
    "zero size": (1, 60.0, 70.0, 60.0, 70.0),
    "thin": (0, 5.0, 110.0, 219.0, 110.0),
    "over the border": (1, -40.0, 180.0, 60.0, 300.0),
    "around the picture": (0, -100.0, -100.0, 400.0, 400.0),
    "outside": (1, 300.0, 300.0, 340.0, 350.0),
    "touching from outside": (0, 224.0, 0.0, 260.0, 40.0),
}
SCALE = 1 / 14


def make_rois(*kinds, dtype=torch.float32):
    """Returns float[M, 5] of the named kinds of box, or of all."""
    return torch.tensor([BOXES[kind] for kind in kinds or BOXES], dtype=dtype)


def make_map(dtype=torch.float32, channels=5, size=(16, 15), seed=0):
    """Returns random feature maps float[2, channels, *size]."""
    return torch.randn(2, channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=["compiled", "plain"])
def pool(request, monkeypatch):
    """Gives `roi_align` with the compiled operator, and again with the one in plain PyTorch."""
    if request.param == "compiled" and not COMPILED_FOR:
        pytest.skip("built without MMCV_WITH_OPS=1")
    if request.param == "plain":
        monkeypatch.setattr(sys.modules["mmcv.ops.roi_align"], "COMPILED_FOR", ())
    return roi_align
