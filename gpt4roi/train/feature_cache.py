"""Feature cache: the frozen vision tower's outputs for every training image, computed once.

Valid because a frozen tower's outputs are deterministic without augmentation.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from tqdm import tqdm

from gpt4roi.data.mixture import Mixture
from gpt4roi.devices import moved_to
from gpt4roi.errors import InputError
from gpt4roi.processing.images import load_image
from gpt4roi.processing.processor import GPT4RoIProcessor
from gpt4roi.structures import ImagePipeline
from gpt4roi.train.saving import save_tensors

logger = logging.getLogger(__name__)

IMAGE_BATCH_SIZE = 16
_NAMES_IN_FINGERPRINTS = {"detection": "bilinear", "dialogue": "bicubic"}
"""Former names of the image pipelines, so that caches of version 0.1 are still found."""


class FeatureCache:
    """The tower's outputs for a list of images, in memory, as float16.

    Args:
        tensors: `image_tokens` [N, P, C] and `level0` … [N, C, H, W], shallow first.
        images: Paths of the N images; those that cannot be read are not among them.
        sizes: (height, width) of each image.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], images: list[str], sizes: list[tuple[int, int]]) -> None:
        self.tensors, self.sizes = tensors, sizes
        self.row = {image: row for row, image in enumerate(images)}
        self.levels = sorted(name for name in tensors if name.startswith("level"))

    def __contains__(self, image: str) -> bool:
        return image in self.row

    def get(self, image: str) -> dict[str, Any]:
        """Returns `image_tokens` float16[P, C] and `feature_maps`, a list of float16[C, H, W], of one image."""
        row, tokens = self.row[image], self.tensors["image_tokens"]
        return {"image_tokens": tokens[row], "feature_maps": [self.tensors[level][row] for level in self.levels]}

    def sample_maps(self, count: int) -> list[torch.Tensor]:
        """Returns the maps of the first images, a list of float16[count, C, H, W], for calibration."""
        return [self.tensors[level][:count] for level in self.levels]

    def image_size(self, image: str) -> tuple[int, int]:
        """Returns (height, width) of the image that the tower encoded."""
        return self.sizes[self.row[image]]


def cache_features(
    folder: Path,
    mixture: Mixture,
    processor: GPT4RoIProcessor,
    model: Any,
    bf16: bool = False,
    device: torch.device | None = None,
) -> FeatureCache:
    """Returns the tower's outputs for every image of a mixture, from `folder` where they are cached.

    The file's name is made of the tower's weights, the precision, the image pipeline and each image's path, size and
    time of change, so that nothing stale is read. Images that cannot be read are left out and logged: their samples
    are skipped and counted in training. They are encoded on `device` (by default the tower's), and under autocast
    with `bf16`, as in the training itself.

    Raises:
        InputError: A sample augments its image, no image can be read, or the folder cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--feature_cache {folder} is a file; name a folder")
    images, pipeline = _images(mixture)
    how = f"{_NAMES_IN_FINGERPRINTS[pipeline]} {bf16}"
    path = folder / f"features-{_fingerprint(model.vision_tower, how, images)}.safetensors"
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            sizes = [tuple(size) for size in json.loads(file.metadata()["sizes"])]
            unreadable = json.loads(file.metadata().get("unreadable", "[]"))
        cached = FeatureCache(tensors, [image for image in images if image not in set(unreadable)], sizes)
        logger.info("Image features: %d images, cached in %s", len(cached.row), path)
        return cached
    tower = model.vision_tower
    with moved_to(device or next(tower.parameters()).device, tower):
        cached = _encode_images(images, pipeline, processor, model, bf16)
    unreadable = [image for image in images if image not in cached]
    save_tensors(path, cached.tensors, {"sizes": json.dumps(cached.sizes), "unreadable": json.dumps(unreadable)})
    return cached


def _images(mixture: Mixture) -> tuple[dict[str, bool], ImagePipeline]:
    """Returns the distinct images of a mixture with their `ignore_alpha`, and the one pipeline they all go through.

    Samples that cannot be drawn have none here: they are skipped and counted in training.
    """
    images: dict[str, bool] = {}
    pipelines: set[ImagePipeline] = set()
    for index in range(len(mixture)):
        try:
            sample = mixture.sample(index, np.random.default_rng(0))
        except InputError:
            continue
        if sample.augmentation is not None:
            raise InputError(f"{sample.source}: --feature_cache needs data sets that do not augment images")
        if sample.image is not None:
            images[sample.image] = sample.ignore_alpha
            pipelines.add(sample.image_pipeline)
    if len(pipelines) > 1:
        raise InputError("--feature_cache: the data sets use both image pipelines; choose one for all of them")
    return images, next(iter(pipelines), "dialogue")


def _fingerprint(tower: nn.Module, how: str, images: dict[str, bool]) -> str:
    digest = hashlib.sha256(how.encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    for image, ignore_alpha in images.items():
        on_white = "" if ignore_alpha or image.lower().endswith((".jpg", ".jpeg")) else " on white"
        digest.update(f"{image} {_file_state(image)}{on_white}\n".encode(errors="backslashreplace"))
    return digest.hexdigest()[:16]


def _file_state(image: str) -> str:
    try:
        facts = os.stat(image)
    except (OSError, ValueError):  # every run tries it again
        return "missing"
    return f"{facts.st_size} {facts.st_mtime_ns}"


@torch.no_grad()
def _encode_images(
    images: dict[str, bool], pipeline: ImagePipeline, processor: GPT4RoIProcessor, model: Any, bf16: bool
) -> FeatureCache:
    tensors: dict[str, torch.Tensor] = {}
    encoded: list[str] = []
    sizes: list[tuple[int, int]] = []
    reasons: list[str] = []
    parameter = next(model.vision_tower.parameters())
    with tqdm(total=len(images), desc="encoding images", unit="image") as bar:
        for start in range(0, len(images), IMAGE_BATCH_SIZE):
            batch = list(images)[start : start + IMAGE_BATCH_SIZE]
            bar.update(len(batch))
            opened = []
            for image in batch:
                try:
                    loaded = load_image(image, pipeline, ignore_alpha=images[image])
                except InputError as error:
                    reasons.append(str(error))
                    continue
                encoded.append(image)
                sizes.append((loaded.height, loaded.width))
                opened.append(processor.pixel_values(loaded, pipeline))
            if not opened:
                continue
            # Convolutions are several times faster on channels-last images, and in bfloat16, on a CPU.
            pixels = torch.stack(opened).to(parameter.device, parameter.dtype, memory_format=torch.channels_last)
            with torch.autocast(parameter.device.type, torch.bfloat16, enabled=bf16):
                tokens, maps = model.encode_image(pixels)
            parts = {"image_tokens": tokens} | {f"level{number}": level for number, level in enumerate(maps)}
            for name, part in parts.items():
                if name not in tensors:
                    tensors[name] = torch.empty(len(images), *part.shape[1:], dtype=torch.float16)
                tensors[name][len(encoded) - len(part) : len(encoded)] = part
    if reasons:
        message = f"{len(reasons)} of {len(images)} images cannot be read"
        if not encoded:
            raise InputError(f"--feature_cache: {message}; the first: {reasons[0]}")
        logger.warning("%s, and their samples are skipped; the first: %s", message, reasons[0])
        tensors = {name: rows[: len(encoded)].clone() for name, rows in tensors.items()}
    return FeatureCache(tensors, encoded, sizes)
