"""Checks what PyTorch asks of an operator: registration, torch.compile, autocast, threads; needs the compiled one."""

import pytest
import torch
from conftest import SCALE, make_map, make_rois
from mmcv.ops import COMPILED_FOR, RoIAlign, roi_align
from torch.testing import assert_close

pytestmark = pytest.mark.skipif(not COMPILED_FOR, reason="built without MMCV_WITH_OPS=1")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("max_pool", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck_finds_nothing(dtype, max_pool, memory_format):
    feature = make_map(dtype, channels=2).to(memory_format=memory_format).requires_grad_()
    arguments = (feature, make_rois(dtype=dtype), 3, 2, SCALE, 2, max_pool, True)
    torch.library.opcheck(torch.ops.gpt4roi_mmcv.roi_align.default, arguments)


def test_compile_takes_it_whole_with_any_number_of_boxes():
    torch.compiler.reset()
    pooled = torch.compile(
        lambda x, rois: roi_align(x * 2, rois, 4, SCALE, 2).relu(), fullgraph=True, backend="aot_eager"
    )
    for count in (3, 7, 10):
        feature, again = (make_map().requires_grad_() for _ in range(2))
        rois = make_rois()[:count]
        output, expected = pooled(feature, rois), roi_align(again * 2, rois, 4, SCALE, 2).relu()
        assert_close(output, expected)
        output.sum().backward()
        expected.sum().backward()
        assert_close(feature.grad, again.grad)


@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_meta_tensors_give_shape_and_dtype(pool_mode):
    rois = torch.empty(9, 5, device="meta")
    feature = torch.empty(2, 6, 16, 16, device="meta", dtype=torch.bfloat16)
    output, argmax = torch.ops.gpt4roi_mmcv.roi_align(feature, rois, 3, 2, SCALE, 2, pool_mode == "max", True)
    assert (output.shape, output.dtype, output.device.type) == ((9, 6, 3, 2), torch.bfloat16, "meta")
    assert argmax.shape == ((9, 6, 3, 2) if pool_mode == "max" else (0,))


def test_autocast_keeps_the_dtype_of_the_maps_and_sums_in_float32():
    convolution = torch.nn.Conv2d(5, 8, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        feature = convolution(make_map())
        output = RoIAlign(7, SCALE, 2)(feature, make_rois())
        unchanged = roi_align(make_map(), make_rois(), 7, SCALE, 2)
    assert (feature.dtype, output.dtype, unchanged.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert torch.equal(output, roi_align(feature.detach().float(), make_rois(), 7, SCALE, 2).bfloat16())
    output.float().sum().backward()
    assert convolution.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_results_are_bit_equal_for_any_number_of_threads(pool_mode, memory_format):
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            feature = make_map(channels=200).to(memory_format=memory_format).requires_grad_()
            output = roi_align(feature, make_rois().repeat(3, 1), 7, SCALE, 2, pool_mode)
            output.square().sum().backward()
            results.append((output.detach(), feature.grad))
    finally:
        torch.set_num_threads(before)
    for output, grad in results[1:]:
        assert torch.equal(output, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_second_derivatives_are_refused():
    feature = make_map().requires_grad_()
    output = roi_align(feature, make_rois(), 7, SCALE, 2)
    (grad,) = torch.autograd.grad(output.square().sum(), feature, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


def test_boxes_in_the_wrong_dtype_are_refused_by_the_operator():
    with pytest.raises(ValueError, match="expected rois in Float beside Half"):
        torch.ops.gpt4roi_mmcv.roi_align(make_map(torch.float16), make_rois().half(), 3, 2, SCALE, 2, False, True)
