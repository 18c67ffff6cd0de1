"""Checks the CUDA kernels against the CPU; needs a GPU and a build with a CUDA toolkit."""

import pytest
import torch
from conftest import SCALE, make_map, make_rois
from mmcv.ops import COMPILED_FOR, roi_align
from torch.testing import assert_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif("cuda" not in COMPILED_FOR, reason="the operator was not compiled for CUDA"),
]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("pool_mode", ["avg", "max"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)],
)
def test_cuda_agrees_with_the_cpu(dtype, tolerance, pool_mode, sampling_ratio, aligned):
    results = []
    for device in ("cpu", "cuda"):
        feature = make_map(dtype).to(device).requires_grad_()
        rois = make_rois(dtype=torch.float64).to(device)
        output = roi_align(feature, rois, (7, 5), SCALE, sampling_ratio, pool_mode, aligned)
        output.sum().backward()
        results.append((output.detach().cpu(), feature.grad.cpu()))
    assert_close(results[1][0], results[0][0], rtol=tolerance, atol=tolerance)
    assert_close(results[1][1], results[0][1], rtol=tolerance, atol=tolerance * 10)


def test_inverted_boxes_do_not_raise_on_cuda():
    rois = torch.tensor([[0, 150.0, 150.0, 20.0, 20.0]], device="cuda")
    upright = torch.tensor([[0, 20.0, 20.0, 150.0, 150.0]], device="cuda")
    feature = make_map().cuda()
    # An inverted box samples the same places in the opposite order.
    assert_close(roi_align(feature, rois, 4, SCALE, 2), roi_align(feature, upright, 4, SCALE, 2).flip(2, 3))
    assert torch.equal(roi_align(feature, rois, 4, SCALE, 0), torch.zeros(1, 5, 4, 4, device="cuda"))


def test_no_boxes_work_on_cuda():
    feature = make_map().cuda().requires_grad_()
    roi_align(feature, torch.zeros(0, 5, device="cuda"), 7).sum().backward()
    assert torch.equal(feature.grad, torch.zeros_like(feature))


def test_nondeterminism_is_announced():
    feature = make_map().cuda().requires_grad_()
    output = roi_align(feature, make_rois().cuda(), 7, SCALE, 2)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            output.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
