"""Loads the compiled operator, if it was built, and tells autograd and torch.compile about it.

Autocast needs no rule: the kernels read every dtype and accumulate in float32 (float64 for float64), which is what
casting to float32 and back around the call would give.
"""

import warnings
from importlib.util import find_spec

import torch
from torch import Tensor


def _load() -> tuple[str, ...]:
    """Loads the shared library beside this package and returns the device types it was compiled for."""
    spec = find_spec("mmcv._ext")
    if spec is None or spec.origin is None:
        return ()
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        warnings.warn(
            f"{spec.origin} was not built for PyTorch {torch.__version__}; RoIAlign runs in plain PyTorch. Rebuild it "
            f"with MMCV_WITH_OPS=1 pip install --no-build-isolation -e . ({error})",
            RuntimeWarning,
            stacklevel=2,
        )
        return ()
    return ("cpu", "cuda") if torch.ops.gpt4roi_mmcv.has_cuda() else ("cpu",)


def _fake_forward(
    input: Tensor,
    rois: Tensor,
    output_h: int,
    output_w: int,
    spatial_scale: float,
    sampling_ratio: int,
    max_pool: bool,
    aligned: bool,
) -> tuple[Tensor, Tensor]:
    """Gives the shapes of the pooled maps and of the winning samples (empty for the average)."""
    shape = (rois.shape[0], input.shape[1], output_h, output_w)
    return input.new_empty(shape), input.new_empty(shape if max_pool else (0,), dtype=torch.int32)


def _fake_backward(
    grad: Tensor,
    rois: Tensor,
    argmax: Tensor,
    batch: int,
    height: int,
    width: int,
    spatial_scale: float,
    sampling_ratio: int,
    max_pool: bool,
    aligned: bool,
    channels_last: bool,
) -> Tensor:
    """Gives the shape and layout of the gradient of the feature maps."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (batch, grad.shape[1], height, width)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=memory_format)


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    """Keeps the boxes and the winning samples; of the feature maps only shape and layout are needed again."""
    input, rois, _, _, *options = inputs
    channels_last = not input.is_contiguous() and input.is_contiguous(memory_format=torch.channels_last)
    ctx.options = (*options, channels_last)
    ctx.batch, _, ctx.height, ctx.width = input.shape
    ctx.save_for_backward(rois, output[1])


def _backward(ctx, grad: Tensor, _grad_argmax: Tensor | None) -> tuple[Tensor | None, ...]:
    """Sends the gradient to the feature maps; boxes get none, as in mmcv."""
    rois, argmax = ctx.saved_tensors
    size = (ctx.batch, ctx.height, ctx.width)
    grad_input = torch.ops.gpt4roi_mmcv.roi_align_backward(grad.contiguous(), rois, argmax, *size, *ctx.options)
    return grad_input, None, None, None, None, None, None, None


def _no_second_derivative(ctx, grad: Tensor) -> None:
    raise NotImplementedError("RoIAlign has no second derivative: call backward without create_graph=True")


COMPILED_FOR = _load()

if COMPILED_FOR:
    torch.library.register_fake("gpt4roi_mmcv::roi_align", _fake_forward)
    torch.library.register_fake("gpt4roi_mmcv::roi_align_backward", _fake_backward)
    torch.library.register_autograd("gpt4roi_mmcv::roi_align", _backward, setup_context=_save)
    torch.library.register_autograd("gpt4roi_mmcv::roi_align_backward", _no_second_derivative)
