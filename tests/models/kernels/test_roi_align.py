"""RoIAlign: one function, whichever implementation computes it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from gpt4roi.errors import InputError
from gpt4roi.models.kernels.roi_align import choose_backend, roi_align

ISLAND = Path(__file__).parents[3] / "mmcv-1.4.7"
BACKENDS = ("torchvision", "sparse", "mmcv", "auto")
OTHERS = BACKENDS[1:]

RAMP = torch.arange(25.0).view(1, 1, 5, 5)
MIDDLE = torch.tensor([[0.0, 1.0, 1.0, 3.0, 3.0]])

BOXES = {
    "fractional": [3.3, 5.7, 40.1, 28.9],
    "whole image": [0, 0, 56, 56],
    "tiny": [20.2, 20.3, 20.9, 20.6],
    "less than a cell across the border": [-1.5, 10, 2, 20],
    "more than a cell across the border": [-30, -30, 30, 30],
    "across the far corner": [40, 44, 90, 70],
    "outside": [80, 80, 100, 100],
    "without area": [30, 30, 30, 30],
    "without width": [12, 4, 12, 50],
    "on the border": [56, 0, 56, 56],
    "far larger than the image": [-500, -500, 500, 500],
}


@pytest.fixture(autouse=True)
def mmcv():
    """Makes the island importable where no mmcv is installed, for one test."""
    before = set(sys.modules)
    sys.path.append(str(ISLAND))
    yield
    sys.path.remove(str(ISLAND))
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "mmcv":
            del sys.modules[name]


def pool_and_differentiate(backend: str, rois: torch.Tensor, dtype: torch.dtype, size: int = 14, samples: int = 2):
    """Pools two images of 16 x 12 cells; returns the result and the gradient of a weighted sum of it."""
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(2, 6, 16, 12, generator=draw).to(dtype).requires_grad_()
    pooled = roi_align(values, rois, size, 16 / 56, samples, backend)
    weights = torch.randn(pooled.shape, generator=draw).to(dtype)
    (gradient,) = torch.autograd.grad((pooled * weights).sum(), values)
    return pooled.detach(), gradient


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_box_on_a_ramp_is_shifted_by_half_a_cell(backend):
    assert roi_align(RAMP, MIDDLE, 2, 1.0, 2, backend)[0, 0].tolist() == [[6.0, 7.0], [11.0, 12.0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_over_the_border_are_clamped_up_to_one_cell_and_0_beyond(backend):
    # Across x the four cells have samples at -1.75, -1.25, ..., 1.75: 0, 0, then -0.75 and -0.25 read cell 0, then
    # 0.25 and 0.75, 1.25 and 1.75. Down y all samples are at 2.
    over = torch.tensor([[0.0, -1.5, 2.5, 2.5, 2.5]])
    pooled = roi_align(RAMP, over, 4, 1.0, 2, backend)
    assert pooled[0, 0].tolist() == [[0.0, 10.0, 10.5, 11.5]] * 4
    # At the far border the last cell counts up to x = 5: samples at 3.25, 3.75, 4.25, 4.75, then 5.25 and 5.75.
    over = torch.tensor([[0.0, 3.5, 2.5, 6.5, 2.5]])
    assert roi_align(RAMP, over, 3, 1.0, 2, backend)[0, 0, 0].tolist() == [13.5, 14.0, 0.0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_and_double_precision_come_back_as_they_went_in(backend, dtype):
    pooled = roi_align(RAMP.to(dtype), MIDDLE, 2, 1.0, 2, backend)
    assert pooled.dtype == dtype
    assert pooled[0, 0].tolist() == [[6.0, 7.0], [11.0, 12.0]]


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("kind", BOXES)
def test_each_kind_of_box_pools_the_same_and_sends_the_same_gradient(backend, kind):
    rois = torch.tensor([[1.0, *BOXES[kind]]])
    for actual, expected in zip(
        pool_and_differentiate(backend, rois, torch.float32),
        pool_and_differentiate("torchvision", rois, torch.float32),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, atol=1e-5 * max(1.0, expected.abs().max().item()), rtol=0)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize(("size", "samples"), [(14, 2), (3, 1), (1, 4)])
def test_boxes_of_two_images_pool_the_same_in_double_precision(backend, size, samples):
    rois = torch.tensor([[index % 2, *box] for index, box in enumerate(BOXES.values())])
    for actual, expected in zip(
        pool_and_differentiate(backend, rois, torch.float64, size, samples),
        pool_and_differentiate("torchvision", rois, torch.float64, size, samples),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_boxes_pool_to_no_rows_and_a_gradient_of_zero(backend):
    pooled, gradient = pool_and_differentiate(backend, torch.zeros(0, 5), torch.float32)
    assert pooled.shape == (0, 6, 14, 14)
    assert not gradient.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_pooling_under_autocast_keeps_the_precision_of_the_map(backend):
    values = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = roi_align(values, MIDDLE, 3, 1.0, 2, backend)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = roi_align(values, MIDDLE, 3, 1.0, 2, backend)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, expected)


def test_auto_takes_the_matrix_where_it_is_faster_on_the_cpu_only():
    level = torch.zeros(1, 64, 64, 64)
    ordered = level.to(memory_format=torch.channels_last)
    assert [choose_backend("auto", ordered, boxes, 2) for boxes in (7, 8)] == ["torchvision", "sparse"]
    assert [choose_backend("auto", level, boxes, 2) for boxes in (7, 8)] == ["torchvision", "sparse"]
    wide = torch.zeros(1, 256, 64, 64)  # to be rearranged for few boxes
    assert [choose_backend("auto", wide, boxes, 2) for boxes in (3, 4)] == ["torchvision", "sparse"]
    assert choose_backend("auto", wide.to(memory_format=torch.channels_last), 3, 2) == "sparse"
    assert choose_backend("auto", wide.to("meta"), 32, 2) == "torchvision"
    assert choose_backend("auto", wide, 32, 0) == "torchvision"


def test_an_adaptive_number_of_samples_is_refused_by_the_matrix():
    with pytest.raises(InputError, match="takes a fixed number of samples, got roi_sampling_ratio=0"):
        roi_align(RAMP, MIDDLE, 2, 1.0, 0, "sparse")


def test_a_missing_mmcv_is_an_error_that_says_how_to_get_it(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "mmcv"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mmcv", None)
    wanted = re.escape("`MMCV_WITH_OPS=1 pip install --no-build-isolation -e .` in mmcv-1.4.7/")
    with pytest.raises(InputError, match=wanted):
        roi_align(RAMP, MIDDLE, 2, 1.0, 2, "mmcv")


def test_an_unknown_backend_is_refused():
    with pytest.raises(InputError, match="roi_align_backend is 'magic', expected one of torchvision, sparse"):
        roi_align(RAMP, MIDDLE, 2, 1.0, 2, "magic")
