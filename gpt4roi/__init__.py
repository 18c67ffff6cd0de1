"""GPT4RoI: draw boxes on a picture and talk about them.

The names below are the public interface. They are imported when first used, so `import gpt4roi` does not import torch.
The first one that needs torch, or `import gpt4roi.auto`, also lets transformers' Auto classes open folders of ours.
"""

from importlib import import_module

_EXPORTS = {
    "Augmentation": "gpt4roi.structures",
    "RegionSample": "gpt4roi.structures",
    "Turn": "gpt4roi.structures",
    "InputError": "gpt4roi.errors",
    "GPT4RoIConfig": "gpt4roi.models",
    "GPT4RoIForConditionalGeneration": "gpt4roi.models",
    "SPILlavaMPTForCausalLM": "gpt4roi.models",
    "MLVLROIQueryModule": "gpt4roi.models",
    "GPT4RoIProcessor": "gpt4roi.processor",
    "RegionChat": "gpt4roi.inference",
}

_NEED_TORCH = ("gpt4roi.models", "gpt4roi.processor", "gpt4roi.inference")

__all__ = sorted(_EXPORTS)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'gpt4roi' has no attribute {name!r}")
    if _EXPORTS[name] in _NEED_TORCH:
        import_module("gpt4roi.auto")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
