"""Convolutions in tiles equal those of PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gpt4roi.models.kernels import winograd

SIZES = [(16, 16), (5, 20), (33, 1), (1, 1), (32, 17)]


def draw(dtype: torch.dtype, channels: int = 6, outputs: int = 5) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Maps of several sizes and kernels."""
    source = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, channels, *size, generator=source, dtype=torch.float64) for size in SIZES]
    weight = torch.randn(outputs, channels, 3, 3, generator=source, dtype=torch.float64)
    return [values.to(dtype) for values in maps], weight.to(dtype)


def test_maps_of_any_size_are_convolved_in_one_call():
    maps, weight = draw(torch.float64)
    for values, result in zip(maps, winograd.convolve(maps, weight), strict=True):
        torch.testing.assert_close(result, F.conv2d(values, weight, padding=1), atol=1e-11, rtol=0)


def test_gradients_are_those_of_the_convolution():
    maps, weight = draw(torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (*maps, weight)]
    ours = sum(result.square().sum() for result in winograd.convolve(maps, weight))
    plain = sum(F.conv2d(values, weight, padding=1).square().sum() for values in maps)
    for actual, expected in zip(*(torch.autograd.grad(total, leaves) for total in (ours, plain)), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-8, rtol=0)


def test_frozen_kernels_and_maps_without_a_gradient():
    maps, weight = draw(torch.float64)
    for leaf in (maps[0], weight):
        leaf.requires_grad_()
        ours, plain = winograd.convolve(maps[:1], weight)[0], F.conv2d(maps[0], weight, padding=1)
        actual, expected = (torch.autograd.grad(result.square().sum(), leaf)[0] for result in (ours, plain))
        torch.testing.assert_close(actual, expected, atol=1e-8, rtol=0)
        leaf.requires_grad_(False)


def test_single_precision_is_within_1e_5_of_the_largest_value():
    maps, weight = draw(torch.float32, 256, 64)
    for values, result in zip(maps, winograd.convolve(maps, weight), strict=True):
        exact = F.conv2d(values.double(), weight.double(), padding=1)
        assert (result - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.heavy
def test_gradients_in_single_precision_are_within_1e_5_of_the_largest_value():
    maps, weight = draw(torch.float32, 256, 64)
    gradients = []
    for dtype, convolve in (
        (torch.float32, winograd.convolve),
        (torch.float64, lambda maps, weight: [F.conv2d(values, weight, padding=1) for values in maps]),
    ):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (*maps, weight)]
        total = sum(result.square().sum() for result in convolve(leaves[:-1], leaves[-1]))
        gradients.append(torch.autograd.grad(total, leaves))
    for ours, exact in zip(*gradients, strict=True):
        assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_a_gradient_inside_autocast_is_that_outside():
    maps, weight = draw(torch.float32)
    leaves = [tensor.requires_grad_() for tensor in (*maps, weight)]
    total = sum(result.square().sum() for result in winograd.convolve(maps, weight))
    outside = torch.autograd.grad(total, leaves, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(total, leaves)
    assert all(map(torch.equal, inside, outside))


def test_the_result_lies_channels_last_as_the_sparse_roi_align_wants_it():
    maps, weight = draw(torch.float32)
    assert winograd.convolve(maps[:1], weight)[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("channels", "cells", "expected"), [(1024, 21760, True), (1024, 256, False), (64, 21760, False)]
)
def test_tiles_are_chosen_where_maps_are_wide_and_have_many_cells(channels, cells, expected):
    assert winograd.is_cheaper(cells, torch.empty(channels, channels, 3, 3)) == expected


def test_half_precision_and_other_devices_keep_their_own_kernels():
    weight = torch.empty(1024, 1024, 3, 3)
    assert winograd.is_supported(weight)
    assert not winograd.is_supported(weight.bfloat16())
    assert not winograd.is_supported(weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.is_supported(weight)
