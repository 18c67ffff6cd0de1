"""Checks values and gradients against answers worked out by hand, the definition, and torchvision."""

import math

import pytest
import torch
from conftest import BOXES, SCALE, make_map, make_rois
from torch.testing import assert_close
from torchvision.ops import roi_align as torchvision_roi_align

# On the ramp the cell (y, x) has the value 5 y + x, so inside the map a bilinear sample at (y, x) is 5 y + x too, and
# so is the mean over a bin with its centre there.
RAMP = torch.arange(25.0).reshape(1, 1, 5, 5)


def definition(feature, roi, output_size, scale, sampling_ratio, pool_mode, aligned):
    """Pools one box from `feature` float[C, H, W] sample by sample, following the definition."""
    height, width = feature.shape[1:]
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (float(value) * scale - shift for value in roi[1:])
    box_h, box_w = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
    bin_h, bin_w = box_h / output_size[0], box_w / output_size[1]
    grid_h, grid_w = sampling_ratio or math.ceil(bin_h), sampling_ratio or math.ceil(bin_w)

    def sample(y, x):
        if not (-1 <= y <= height and -1 <= x <= width):
            return torch.zeros_like(feature[:, 0, 0])
        y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        above = feature[:, top, left] * (1 - (x - left)) + feature[:, top, right] * (x - left)
        below = feature[:, bottom, left] * (1 - (x - left)) + feature[:, bottom, right] * (x - left)
        return above * (1 - (y - top)) + below * (y - top)

    output = torch.zeros(feature.shape[0], *output_size, dtype=feature.dtype)
    for i in range(output_size[0]):
        for j in range(output_size[1]):
            values = [
                sample(y1 + i * bin_h + (a + 0.5) * bin_h / grid_h, x1 + j * bin_w + (b + 0.5) * bin_w / grid_w)
                for a in range(grid_h)
                for b in range(grid_w)
            ]
            if values:
                stack = torch.stack(values)
                output[:, i, j] = stack.mean(0) if pool_mode == "avg" else stack.max(0).values
    return output


def test_ramp_aligned(pool):
    # The box (1, 1)-(3, 3) reaches over cells 0.5 to 2.5; bin centres at 1 and 2: 5*1+1, 5*1+2, 5*2+1, 5*2+2.
    output = pool(RAMP, torch.tensor([[0.0, 1.0, 1.0, 3.0, 3.0]]), 2, 1.0, 2, "avg", True)
    assert_close(output, torch.tensor([[[[6.0, 7.0], [11.0, 12.0]]]]))


def test_ramp_in_the_old_convention_is_half_a_cell_off(pool):
    # Without the shift the bin centres are at 1.5 and 2.5: 5*1.5+1.5, 5*1.5+2.5, 5*2.5+1.5, 5*2.5+2.5.
    output = pool(RAMP, torch.tensor([[0.0, 1.0, 1.0, 3.0, 3.0]]), 2, 1.0, 2, "avg", False)
    assert_close(output, torch.tensor([[[[9.0, 10.0], [14.0, 15.0]]]]))


def test_ramp_with_rectangular_bins(pool):
    # The box (0.5, 1)-(4.5, 4) reaches over x 0 to 4 and y 0.5 to 3.5; three rows (1, 2, 3) by two columns (1, 3).
    output = pool(RAMP, torch.tensor([[0.0, 0.5, 1.0, 4.5, 4.0]]), (3, 2), 1.0, 0, "avg", True)
    assert_close(output, torch.tensor([[[[6.0, 8.0], [11.0, 13.0], [16.0, 18.0]]]]))


def test_ramp_maximum_takes_the_lower_right_sample(pool):
    # Two samples a bin and axis lie 0.25 before and after the bin centres 1 and 2, so the largest is 0.25 * 6 above.
    output = pool(RAMP, torch.tensor([[0.0, 1.0, 1.0, 3.0, 3.0]]), 2, 1.0, 2, "max", True)
    assert_close(output, torch.tensor([[[[7.5, 8.5], [12.5, 13.5]]]]))


def test_ramp_scaled_and_over_the_border(pool):
    # At scale 0.5 the box (-2, 4)-(2, 8) is x -1.5 to 0.5, y 1.5 to 3.5: four columns of samples at -1.25 (too far: 0),
    # -0.75 and -0.25 (both count as x = 0) and 0.25, at y = 1.75, 2.25 (mean 2) and y = 2.75, 3.25 (mean 3).
    output = pool(RAMP, torch.tensor([[0.0, -2.0, 4.0, 2.0, 8.0]]), 2, 0.5, 2, "avg", True)
    assert_close(output, torch.tensor([[[[5.0, 10.125], [7.5, 15.125]]]]))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_every_kind_of_box_follows_the_definition(pool, pool_mode, sampling_ratio, aligned):
    feature, rois = make_map(torch.float64), make_rois(dtype=torch.float64)
    output = pool(feature, rois, (3, 2), SCALE, sampling_ratio, pool_mode, aligned)
    for kind, roi, got in zip(BOXES, rois, output, strict=True):
        expected = definition(feature[int(roi[0])], roi, (3, 2), SCALE, sampling_ratio, pool_mode, aligned)
        assert_close(got, expected, rtol=1e-12, atol=1e-12, msg=lambda text, kind=kind: f"{kind}: {text}")


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_torchvision_agrees_in_values_and_gradients(pool, dtype, tolerance, sampling_ratio, aligned):
    ours, theirs = make_map(dtype).requires_grad_(), make_map(dtype).requires_grad_()
    rois = make_rois(dtype=dtype)
    output = pool(ours, rois, 7, SCALE, sampling_ratio, "avg", aligned)
    expected = torchvision_roi_align(theirs, rois, 7, SCALE, sampling_ratio, aligned)
    assert_close(output, expected, rtol=tolerance, atol=tolerance)
    weights = torch.randn(output.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_close(ours.grad, theirs.grad, rtol=tolerance, atol=tolerance * 50)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_float32_rounded_once(pool, dtype, memory_format):
    ours = make_map(dtype).to(memory_format=memory_format).requires_grad_()
    theirs = ours.detach().float().contiguous().requires_grad_()
    rois = make_rois()
    output = pool(ours, rois, 7, SCALE, 2)
    expected = torchvision_roi_align(theirs, rois, 7, SCALE, 2, True)
    half_unit = torch.finfo(dtype).eps / 2
    assert output.dtype == dtype
    assert_close(output.float(), expected, rtol=half_unit * 1.01, atol=1e-6)
    output.sum().backward()
    expected.sum().backward()
    assert ours.grad.dtype == dtype
    assert_close(ours.grad.float(), theirs.grad, rtol=half_unit * 1.01, atol=1e-5)


def test_torchvision_in_float16_agrees_to_its_own_rounding(pool):
    rois = make_rois("ordinary", "tiny", "zero size", "whole picture", dtype=torch.float16)
    feature = make_map(torch.float16)
    expected = torchvision_roi_align(feature, rois, 7, SCALE, 2, True)
    assert_close(pool(feature, rois, 7, SCALE, 2), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_channels_last_maps_give_the_same(pool, pool_mode):
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        feature = make_map(channels=70).to(memory_format=memory_format).requires_grad_()
        output = pool(feature, make_rois(), 7, SCALE, 2, pool_mode)
        output.square().sum().backward()
        results.append((output, feature.grad))
    assert_close(results[1][0], results[0][0], rtol=1e-6, atol=1e-6)
    assert_close(results[1][1], results[0][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_gradients_lie_as_the_maps_do(pool, pool_mode):
    feature = make_map().to(memory_format=torch.channels_last).requires_grad_()
    output = pool(feature, make_rois(), 7, SCALE, 2, pool_mode)
    (grad,) = torch.autograd.grad(output.sum(), feature)
    assert output.is_contiguous()
    assert grad.stride() == feature.stride()


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_gradients_match_finite_differences(pool, pool_mode, sampling_ratio):
    feature = make_map(torch.float64, channels=2, size=(6, 5)).requires_grad_()
    rois = make_rois(dtype=torch.float64)
    torch.autograd.gradcheck(lambda x: pool(x, rois, (2, 3), 1 / 40, sampling_ratio, pool_mode, True), feature)


@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_no_boxes_give_no_rows_and_zero_gradients(pool, pool_mode):
    feature = make_map().requires_grad_()
    output = pool(feature, torch.zeros(0, 5), 7, SCALE, 0, pool_mode)
    assert output.shape == (0, 5, 7, 7)
    output.sum().backward()
    assert torch.equal(feature.grad, torch.zeros_like(feature))


def test_order_of_the_boxes_is_kept(pool):
    rois = make_rois()
    output = pool(make_map(), rois, 4, SCALE, 2)
    shuffled = torch.randperm(len(rois), generator=torch.Generator().manual_seed(3))
    assert torch.equal(pool(make_map(), rois[shuffled], 4, SCALE, 2), output[shuffled])


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        ((0, 50.0, 20.0, 10.0, 90.0), "roi 1 is inverted"),
        ((0, 10.0, 90.0, 50.0, 20.0), "roi 1 is inverted"),
        ((0, 10.0, float("nan"), 50.0, 20.0), "roi 1 has a coordinate that is not finite"),
        ((0, 10.0, 20.0, float("inf"), 50.0), "roi 1 has a coordinate that is not finite"),
        ((2, 10.0, 20.0, 30.0, 50.0), "roi 1 names image 2 of a batch of 2"),
        ((-1, 10.0, 20.0, 30.0, 50.0), "roi 1 names image -1 of a batch of 2"),
    ],
)
def test_impossible_boxes_are_refused_on_the_cpu(pool, roi, message):
    rois = torch.cat([make_rois("ordinary"), torch.tensor([roi])])
    with pytest.raises(ValueError, match=message):
        pool(make_map(), rois, 7, SCALE, 2)


def test_inverted_boxes_have_one_cell_in_the_old_convention(pool):
    inverted, cell = torch.tensor([[[0, 84.0, 84.0, 14.0, 14.0]], [[0, 84.0, 84.0, 98.0, 98.0]]])
    assert_close(
        pool(make_map(), inverted, 2, SCALE, 2, "avg", False), pool(make_map(), cell, 2, SCALE, 2, "avg", False)
    )
