"""Offers RoIAlign (He et al., Mask R-CNN, 2017) with the arguments that mmcv 1.4.7 documents."""

import functools
import warnings
from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor, nn

from mmcv.ops.compiled import COMPILED_FOR
from mmcv.ops.plain import roi_align_plain


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) of a size given as one number or two; raises ValueError unless both are positive."""
    height, width = (size, size) if isinstance(size, Integral) else size
    if height < 1 or width < 1:
        raise ValueError(f"output_size must be one positive number or (height, width), got {size}")
    return int(height), int(width)


def _check(input: Tensor, rois: Tensor, pool_mode: str) -> None:
    """Raises ValueError for shapes, dtypes, devices or a pool mode that RoIAlign cannot work with."""
    if pool_mode not in ("avg", "max"):
        raise ValueError(f"pool_mode must be 'avg' or 'max', got {pool_mode!r}")
    if input.ndim != 4 or not input.is_floating_point() or 0 in input.shape[2:]:
        raise ValueError(f"input must be float[B, C, H, W] with H, W > 0, got {input.dtype} {tuple(input.shape)}")
    if rois.ndim != 2 or rois.shape[1] != 5 or not rois.is_floating_point():
        raise ValueError(f"rois must be float[M, 5] (image, x1, y1, x2, y2), got {rois.dtype} {tuple(rois.shape)}")
    if input.device != rois.device:
        raise ValueError(f"input is on {input.device} but rois are on {rois.device}; move one to the other")


def roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    pool_mode: str = "avg",
    aligned: bool = True,
) -> Tensor:
    """Pools every box into a grid of bins by bilinear samples, and returns float[M, C, output_h, output_w].

    Args:
        input: float[B, C, H, W] feature maps in float32, float64, float16 or bfloat16; the result has this dtype, and
            sums are taken in float32 or better.
        rois: float[M, 5], one box a row: image in the batch, x1, y1, x2, y2 in pixels of the input picture; M may be 0.
        output_size: height and width of the grid of bins, or one number for both.
        spatial_scale: cells of the map per input pixel.
        sampling_ratio: samples per bin along each axis; 0 takes as many as there are cells under a bin.
        pool_mode: 'avg' or 'max' over the samples of a bin; samples farther than one cell outside the map count as 0.
        aligned: True puts the centre of cell i at i + 0.5; False is the old convention, half a cell off.

    Raises:
        ValueError: wrong shapes; on the CPU also a box that is inverted (x2 < x1 or y2 < y1, when aligned), is not
            finite or names an image that is not there.
    """
    _check(input, rois, pool_mode)
    output_size = _pair(output_size)
    max_pool = pool_mode == "max"
    rois = rois.detach().to(torch.float64 if input.dtype == torch.float64 else torch.float32)
    options = (float(spatial_scale), int(sampling_ratio), max_pool, bool(aligned))
    if input.device.type in COMPILED_FOR:
        return torch.ops.gpt4roi_mmcv.roi_align(input, rois, *output_size, *options)[0]
    return roi_align_plain(input, rois, output_size, *options)


def _accept_old_names(**new_names: str) -> Callable:
    """Lets a function be called with the argument names of older mmcv releases, with a DeprecationWarning."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            for old, new in new_names.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(f"got both {old!r} (old name) and {new!r}; pass only {new!r}")
                warnings.warn(f"{old!r} is now called {new!r}", DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapper

    return decorate


class RoIAlign(nn.Module):
    """Pools boxes from feature maps; see `roi_align` for the arguments.

    `use_torchvision` hands the work to torchvision's operator, which has only the average.
    """

    @_accept_old_names(out_size="output_size", sample_num="sampling_ratio")
    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        pool_mode: str = "avg",
        aligned: bool = True,
        use_torchvision: bool = False,
    ) -> None:
        super().__init__()
        if use_torchvision and pool_mode != "avg":
            raise ValueError(f"torchvision's RoIAlign has only pool_mode 'avg', got {pool_mode!r}")
        self.output_size = _pair(output_size)
        self.spatial_scale = float(spatial_scale)
        self.sampling_ratio = int(sampling_ratio)
        self.pool_mode = pool_mode
        self.aligned = aligned
        self.use_torchvision = use_torchvision

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Returns float[M, C, output_h, output_w] for `input` float[B, C, H, W] and `rois` float[M, 5]."""
        if self.use_torchvision:
            from torchvision.ops import roi_align as torchvision_roi_align

            options = (self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)
            return torchvision_roi_align(input, rois, *options)
        options = (self.output_size, self.spatial_scale, self.sampling_ratio, self.pool_mode, self.aligned)
        return roi_align(input, rois, *options)

    def extra_repr(self) -> str:
        """Returns the arguments, for printing the module."""
        names = ("output_size", "spatial_scale", "sampling_ratio", "pool_mode", "aligned", "use_torchvision")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
