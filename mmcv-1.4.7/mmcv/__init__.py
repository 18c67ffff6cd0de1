"""Offers RoIAlign as mmcv 1.4.7 does, for today's PyTorch, and nothing else of mmcv."""

from mmcv.version import __version__

__all__ = ["__version__"]


def __getattr__(name: str) -> object:
    """Explains a missing name, because people expect the whole of mmcv behind this import."""
    raise AttributeError(
        f"mmcv.{name} is not here: this mmcv is gpt4roi-mmcv {__version__}, only mmcv.ops.RoIAlign and roi_align; "
        "for the rest uninstall gpt4roi-mmcv and install mmcv"
    )
