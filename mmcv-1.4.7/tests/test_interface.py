"""Checks the names, arguments and messages that people know from mmcv 1.4.7."""

import inspect

import mmcv
import numpy as np
import pytest
import torch
from conftest import SCALE, make_map, make_rois
from mmcv.ops import RoIAlign, roi_align
from torch.testing import assert_close
from torchvision.ops import roi_align as torchvision_roi_align


def test_version_says_it_is_a_subset():
    assert mmcv.__version__ == "1.4.7+gpt4roi.subset"


def test_arguments_have_the_order_and_defaults_of_mmcv():
    names = ["output_size", "spatial_scale", "sampling_ratio", "pool_mode", "aligned"]
    function, module = inspect.signature(roi_align).parameters, inspect.signature(RoIAlign).parameters
    assert list(function) == ["input", "rois", *names]
    assert list(module) == [*names, "use_torchvision"]
    for parameters in (function, module):
        assert [parameters[name].default for name in names[1:]] == [1.0, 0, "avg", True]
    assert module["use_torchvision"].default is False


def test_module_and_function_agree_and_the_module_prints_its_arguments():
    module = RoIAlign((7, 5), SCALE, 2, "max", False)
    assert torch.equal(
        module(make_map(), make_rois()), roi_align(make_map(), make_rois(), (7, 5), SCALE, 2, "max", False)
    )
    assert repr(RoIAlign(7, 0.25)) == (
        "RoIAlign(output_size=(7, 7), spatial_scale=0.25, sampling_ratio=0, pool_mode=avg, aligned=True, "
        "use_torchvision=False)"
    )


def test_sizes_may_be_numpy_s_as_in_mmcv():
    assert RoIAlign(np.int64(7)).output_size == RoIAlign(np.array([7, 7])).output_size == (7, 7)
    assert roi_align(make_map(), make_rois("ordinary"), np.int32(3), SCALE).shape == (1, 5, 3, 3)


def test_old_argument_names_still_work_with_a_warning():
    with (
        pytest.warns(DeprecationWarning, match="'out_size' is now called 'output_size'"),
        pytest.warns(DeprecationWarning, match="'sample_num' is now called 'sampling_ratio'"),
    ):
        module = RoIAlign(out_size=7, spatial_scale=0.5, sample_num=2)
    assert (module.output_size, module.sampling_ratio) == ((7, 7), 2)
    with pytest.raises(TypeError, match=r"both 'sample_num' \(old name\) and 'sampling_ratio'"):
        RoIAlign(7, sample_num=2, sampling_ratio=2)


def test_torchvision_can_do_the_work():
    output = RoIAlign(7, SCALE, 2, use_torchvision=True)(make_map(), make_rois())
    assert torch.equal(output, torchvision_roi_align(make_map(), make_rois(), 7, SCALE, 2, True))
    assert_close(output, RoIAlign(7, SCALE, 2)(make_map(), make_rois()), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="only pool_mode 'avg'"):
        RoIAlign(7, pool_mode="max", use_torchvision=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pool_mode": "sum"}, "pool_mode must be 'avg' or 'max', got 'sum'"),
        ({"output_size": (7, 0)}, r"output_size must be one positive number or \(height, width\), got \(7, 0\)"),
        ({"input": torch.zeros(5, 16, 16)}, r"input must be float\[B, C, H, W\].*got torch.float32 \(5, 16, 16\)"),
        ({"input": torch.zeros(2, 5, 0, 16)}, r"with H, W > 0, got torch.float32 \(2, 5, 0, 16\)"),
        ({"rois": torch.zeros(3, 4)}, r"rois must be float\[M, 5\].*got torch.float32 \(3, 4\)"),
        ({"rois": torch.zeros(3, 5, dtype=torch.int64)}, "got torch.int64"),
        ({"rois": torch.zeros(3, 5, device="meta")}, "input is on cpu but rois are on meta"),
    ],
)
def test_wrong_arguments_are_named(pool, changed, message):
    arguments = {"input": make_map(), "rois": make_rois(), "output_size": 7} | changed
    with pytest.raises(ValueError, match=message):
        pool(**arguments)


def test_the_rest_of_mmcv_is_missed_with_an_explanation():
    with pytest.raises(AttributeError, match=r"mmcv\.Config is not here: .* only mmcv\.ops\.RoIAlign and roi_align"):
        _ = mmcv.Config
    assert not hasattr(mmcv, "runner")
