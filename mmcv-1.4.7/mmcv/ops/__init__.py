"""Holds RoIAlign, compiled where it was built with MMCV_WITH_OPS=1 and in plain PyTorch elsewhere.

`COMPILED_FOR` names the devices that have a compiled operator: (), ("cpu",) or ("cpu", "cuda").
"""

from mmcv.ops.compiled import COMPILED_FOR
from mmcv.ops.roi_align import RoIAlign, roi_align

__all__ = ["COMPILED_FOR", "RoIAlign", "roi_align"]
