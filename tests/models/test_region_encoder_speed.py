"""The fast region encoder computes the same function as the plain one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from plain_region_encoder import plain_pyramid, plain_region_features
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gpt4roi.models.kernels import winograd
from gpt4roi.models.kernels.fast_paths import is_cheaper_mixed_first
from gpt4roi.models.kernels.interpolation import MIN_SPEEDUP, LazyUpsampled, convolve_levels
from gpt4roi.models.region_encoder import RegionEncoder

CASES = {
    # sides of the tower's levels, side of the smallest map, channels, boxes of each image
    "many boxes": ([4, 4, 4, 4], 4, 64, [9, 0, 12]),
    "one box": ([4, 4, 4, 4], 4, 64, [1]),
    "a narrow encoder": ([2, 2, 2, 2], 2, 16, [3]),
    "two levels": ([5, 5], 5, 32, [2, 2]),
    "a tower that is a pyramid": ([24, 12, 6, 3], 3, 32, [2]),
    "levels larger than their maps": ([9, 9, 9], 3, 32, [1, 2]),
    "one cell": ([1, 1, 1], 1, 16, [2]),
}


def build(case: str, backend: str = "torchvision", dtype: torch.dtype = torch.float64):
    """Builds an encoder with weights that leave no part without a say, maps and boxes."""
    sides, grid, channels, counts = CASES[case]
    draw = torch.Generator().manual_seed(0)
    config = SimpleNamespace(
        num_fusion_rounds=3,
        fusion_groups=4,
        roi_output_size=5,
        roi_sampling_ratio=2,
        roi_align_backend=backend,
        position_hidden_size=8,
        tokens_per_region=1,
        region_shape="box",
        text_config=SimpleNamespace(hidden_size=12, initializer_range=0.05),
    )
    tower = SimpleNamespace(
        image_size=grid * 14,
        grid_size=grid,
        level_strides=[14] * len(sides),
        hidden_size=channels,
        level_channels=[channels - 2] * len(sides),
    )
    encoder = RegionEncoder(config, tower).double()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw, dtype=torch.float64), alpha=0.05)
    maps = [torch.randn(len(counts), channels - 2, side, side, generator=draw, dtype=torch.float64) for side in sides]
    corners = [torch.rand(count, 2, 2, generator=draw, dtype=torch.float64) * 1.2 - 0.1 for count in counts]
    boxes = [torch.cat([pair.min(1).values, pair.max(1).values], dim=1) for pair in corners]
    return encoder.to(dtype), [level.to(dtype) for level in maps], [rows.to(dtype) for rows in boxes]


def differentiate(encoder, features):
    """Returns the gradient of a weighted sum of the features to every parameter."""
    draw = torch.Generator().manual_seed(1)
    weights = torch.randn(features.shape, generator=draw, dtype=torch.float64).to(features.dtype)
    return torch.autograd.grad((features * weights).sum(), list(encoder.parameters()))


@pytest.mark.heavy
@pytest.mark.parametrize("kernels", ["chosen by cost", "in tiles wherever possible"])
@pytest.mark.parametrize("backend", ["torchvision", "sparse"])
@pytest.mark.parametrize("case", CASES)
def test_features_and_gradients_equal_the_plain_formulation(case, backend, kernels, monkeypatch):
    if kernels != "chosen by cost":
        monkeypatch.setattr(winograd, "is_cheaper", lambda cells, weight: True)
    encoder, maps, boxes = build(case, backend)
    ours, plain = encoder(maps, boxes), plain_region_features(encoder, maps, boxes)
    torch.testing.assert_close(ours, plain, atol=1e-10, rtol=0)
    pairs = zip(differentiate(encoder, ours), differentiate(encoder, plain), strict=True)
    for (name, _), (actual, expected) in zip(encoder.named_parameters(), pairs, strict=True):
        assert (actual - expected).norm() <= 1e-8 * expected.norm() + 1e-10, name


@pytest.mark.parametrize("case", CASES)
def test_every_level_of_the_pyramid_equals_the_plain_one(case):
    encoder, maps, _ = build(case)
    with torch.no_grad():
        for ours, plain in zip(encoder.fusion(maps), plain_pyramid(encoder, maps), strict=True):
            torch.testing.assert_close(ours, plain, atol=1e-10, rtol=0)


def test_single_precision_is_within_1e_5_of_the_largest_feature(monkeypatch):
    monkeypatch.setattr(winograd, "is_cheaper", lambda cells, weight: winograd.is_supported(weight))
    encoder, maps, boxes = build("many boxes", dtype=torch.float32)
    with torch.no_grad():
        ours, plain = encoder(maps, boxes), plain_region_features(encoder, maps, boxes)
    assert (ours - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_a_map_is_mixed_before_pooling_only_where_that_is_cheaper():
    encoder, _, _ = build("many boxes", "sparse")
    encoder.pooler.output_size = 14
    with torch.device("meta"):
        conv = torch.nn.Conv2d(1024, 1024, 3)
        choices = {
            (side, count): is_cheaper_mixed_first(encoder.pooler, conv, torch.empty(1, 1024, side, side), count)
            for side in (16, 128)
            for count in (1, 32)
        }
    # 256 or 16384 cells of the map against 196 of each box.
    assert choices == {(16, 1): False, (16, 32): True, (128, 1): False, (128, 32): False}


@pytest.mark.parametrize("sides", [(7,), (8, 16), (6, 12, 9)])
def test_a_lazily_upsampled_map_is_convolved_as_if_it_were_computed(sides, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(2, 6, 4, 3, generator=draw, dtype=torch.float64)
    weight = torch.randn(5, 6, 3, 3, generator=draw, dtype=torch.float64)
    upsampled = LazyUpsampled(values, sides)
    expected = F.conv2d(upsampled.computed(), weight, padding=1)
    for threshold in (0.0, 1e9):
        monkeypatch.setitem(MIN_SPEEDUP, "cpu", threshold)
        assert upsampled.is_cheaper_at_low_resolution(5) == (threshold == 0)
        (result,) = convolve_levels([[upsampled]], weight)
        torch.testing.assert_close(result, expected, atol=1e-12, rtol=0)


def test_bfloat16_is_no_further_from_the_truth_than_the_plain_formulation():
    encoder, maps, boxes = build("many boxes")
    with torch.no_grad():
        truth = plain_region_features(encoder, maps, boxes)
        encoder, maps, boxes = build("many boxes", dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            ours, plain = encoder(maps, boxes), plain_region_features(encoder, maps, boxes)
        encoder, maps, _ = build("many boxes", dtype=torch.bfloat16)
        whole = encoder(maps, boxes)
    assert ours.dtype == whole.dtype == torch.bfloat16
    allowed = 1.5 * (plain - truth).norm()
    assert (ours - truth).norm() <= allowed
    assert (whole - truth).norm() <= allowed


def test_gradients_under_bfloat16_autocast_are_finite():
    encoder, maps, boxes = build("many boxes", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(maps, boxes)
    assert all(gradient.isfinite().all() for gradient in differentiate(encoder, features))


@pytest.mark.heavy
def test_gradient_checkpointing_changes_no_gradient():
    encoder, maps, boxes = build("many boxes")
    expected = differentiate(encoder, encoder(maps, boxes))
    actual = differentiate(encoder, checkpoint(encoder, maps, boxes, use_reentrant=False))
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
