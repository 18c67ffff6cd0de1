"""GPT4RoI: draw boxes on an image and talk about them.

The names below are the public interface. They are imported when first used, so `import gpt4roi` does not import torch.
The first one that needs torch, or `import gpt4roi.auto`, also lets transformers' Auto classes open folders of ours.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what __getattr__ gives
    from gpt4roi.errors import InputError as InputError
    from gpt4roi.models import GPT4RoIConfig as GPT4RoIConfig
    from gpt4roi.models import GPT4RoIForConditionalGeneration as GPT4RoIForConditionalGeneration
    from gpt4roi.models import MLVLROIQueryModule as MLVLROIQueryModule
    from gpt4roi.models import SPILlavaMPTForCausalLM as SPILlavaMPTForCausalLM
    from gpt4roi.processing.processor import GPT4RoIProcessor as GPT4RoIProcessor
    from gpt4roi.region_chat import RegionChat as RegionChat
    from gpt4roi.structures import Augmentation as Augmentation
    from gpt4roi.structures import RegionSample as RegionSample
    from gpt4roi.structures import Turn as Turn

_EXPORTS = {
    "Augmentation": "gpt4roi.structures",
    "RegionSample": "gpt4roi.structures",
    "Turn": "gpt4roi.structures",
    "InputError": "gpt4roi.errors",
    "GPT4RoIConfig": "gpt4roi.models",
    "GPT4RoIForConditionalGeneration": "gpt4roi.models",
    "SPILlavaMPTForCausalLM": "gpt4roi.models",
    "MLVLROIQueryModule": "gpt4roi.models",
    "GPT4RoIProcessor": "gpt4roi.processing.processor",
    "RegionChat": "gpt4roi.region_chat",
}

_NEED_TORCH = ("gpt4roi.models", "gpt4roi.processing.processor", "gpt4roi.region_chat")

__all__ = sorted(_EXPORTS)
__version__ = "0.2.0"

# fmt: off
_MOVED = {
    "answers": "generation.sampling", "auto": "checkpoint.auto_classes", "boxes": "geometry.boxes",
    "captioning.journal": "io.journal", "checkpoint.comparison": "checkpoint.compare",
    "checkpoint.folder_plan": "checkpoint.writer", "checkpoint.layout": "checkpoint.convert",
    "checkpoint.legacy": "models.original_format", "checkpoint.numbers": "io.digests",
    "checkpoint.pairing": "checkpoint.delta", "checkpoint.safetensors_stream": "checkpoint.writer",
    "checkpoint.shards": "checkpoint.writer", "checkpoint.staging": "checkpoint.writer",
    "checkpoint.stored": "checkpoint.tensor_files", "checkpoint.streams": "checkpoint.tensor_files",
    "checkpoint.tower": "checkpoint.clip_tower", "checkpoint.zip_bin": "checkpoint.tensor_files",
    "conversation": "processing.templates", "datasets": "data", "datasets.coco_det": "data.readers.coco_det",
    "datasets.coco_format": "data.readers.coco_format", "datasets.collator": "processing.batch",
    "datasets.conversion": "data.convert", "datasets.det_llava": "data.readers.det_llava",
    "datasets.detections": "data.readers.detections", "datasets.dialogues": "data.readers.dialogues",
    "datasets.encoded": "data.training_dataset", "datasets.flickr30k": "data.readers.flickr30k",
    "datasets.indexed": "data.index", "datasets.labels": "data.tables", "datasets.refcoco": "data.readers.refcoco",
    "datasets.selection": "data.registry", "datasets.vcr": "data.readers.vcr",
    "datasets.vcr_tags": "data.readers.vcr", "datasets.vg": "data.readers.vg", "decoding": "generation.engine",
    "describing": "generation.many", "doctor": "data_check", "doctor.common": "data_check.duplicates",
    "doctor.page": "data_check.html_report", "doctor.pictures": "data_check.images", "drawing": "report.drawing",
    "encoded_picture": "generation.encoded_image", "encoding": "processing.tokenizer",
    "evaluation.answering": "evaluation.predictions", "evaluation.asking": "evaluation.predictor",
    "evaluation.benchmarks._categories": "evaluation.benchmarks.categories",
    "evaluation.benchmarks._expressions": "evaluation.benchmarks.referring_expressions",
    "evaluation.benchmarks._names": "evaluation.benchmarks.object_names",
    "evaluation.benchmarks._visual7w": "evaluation.benchmarks.visual7w",
    "evaluation.benchmarks.coco_classes": "evaluation.benchmarks.categories",
    "evaluation.benchmarks.coco_two_way": "evaluation.benchmarks.categories",
    "evaluation.benchmarks.lvis": "evaluation.benchmarks.object_names",
    "evaluation.benchmarks.lvis_classes": "evaluation.benchmarks.categories",
    "evaluation.benchmarks.lvis_two_way": "evaluation.benchmarks.categories",
    "evaluation.benchmarks.paco": "evaluation.benchmarks.object_names",
    "evaluation.benchmarks.refcoco": "evaluation.benchmarks.referring_expressions",
    "evaluation.benchmarks.refcoco_plus": "evaluation.benchmarks.referring_expressions",
    "evaluation.benchmarks.refcocog": "evaluation.benchmarks.referring_expressions",
    "evaluation.benchmarks.v7w_pointing": "evaluation.benchmarks.visual7w",
    "evaluation.benchmarks.v7w_telling": "evaluation.benchmarks.visual7w",
    "evaluation.likelihood": "generation.likelihood",
    "evaluation.models": "evaluation.predictor", "evaluation.page": "evaluation.html_report", "hub": "io.hub",
    "inference": "region_chat", "inputs": "processing.user_input", "masks": "geometry.masks",
    "mentions": "processing.mentions", "models.caching": "models.compat",
    "models.interpolation": "models.kernels.interpolation", "models.light": "models.light_encoder",
    "models.offloading": "models.compat", "models.opening": "models.pretrained",
    "models.prefix": "models.frozen_prefix", "models.roi_align": "models.kernels.roi_align",
    "models.sparse_roi_align": "models.kernels.sparse_roi_align", "models.splice": "models.placeholders",
    "models.vision": "models.vision_tower", "models.winograd": "models.kernels.winograd",
    "padding": "processing.batch", "pictures": "processing.images", "processor": "processing.processor",
    "prompts": "processing.prompts", "ranks": "distributed", "recall": "generation.engine",
    "regions_file": "processing.region_files", "report_gallery": "report.report", "report_style": "report.rendering",
    "sampling": "generation.sampling", "serve": "demo", "serve.gate": "demo.request_filter",
    "tokenization": "processing.tokenizer", "train.checks": "train.sanity_checks",
    "train.defaults": "train.arguments", "train.features": "train.feature_cache", "train.grouping": "train.sampler",
    "train.guard": "train.nonfinite", "train.opening": "train.build_model",
    "train.planned_model": "train.build_model", "train.rates": "train.throughput",
    "train.refusals": "train.command_line", "train.run": "train.work_dir", "train.trainable": "train.param_groups",
    "writing": "io.atomic",
}
# fmt: on
"""Module paths of version 0.1, and where the modules are now; modules of a package moved with it."""


class _MovedModules(MetaPathFinder, Loader):
    """Imports a module under the path that it had in version 0.1."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Finds a module that has moved; None for any other."""
        parts = fullname.split(".")
        for end in range(len(parts), 1, -1):
            new = _MOVED.get(".".join(parts[1:end])) if parts[0] == __name__ else None
            if new is not None:
                origin = ".".join([__name__, new, *parts[end:]])
                return ModuleSpec(fullname, self, origin=origin) if find_spec(origin) else None
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Returns the module itself, imported under the path that it has now."""
        module = import_module(str(spec.origin))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leaves the module as it is, with the spec of its own path."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state


# Before the finder of files, which would find a moved package's modules a second time, under their old names.
sys.meta_path.insert(0, _MovedModules())


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'gpt4roi' has no attribute {name!r}")
    if _EXPORTS[name] in _NEED_TORCH:
        import_module("gpt4roi.checkpoint.auto_classes")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
