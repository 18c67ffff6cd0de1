"""Looks at every training image once: a frozen tower without augmentation always says the same."""

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
from gpt4roi.train.saving import save_tensors

logger = logging.getLogger(__name__)

IMAGE_BATCH_SIZE = 16


class KeptFeatures:
    """Holds the tower's outputs for a list of images in memory, as float16.

    tensors: `image_tokens` [N, P, C] and `level0` … [N, C, H, W], shallow first;
    sizes: (height, width) of each image. Images that cannot be read are not among them.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], images: list[str], sizes: list[tuple[int, int]]) -> None:
        self.tensors, self.sizes = tensors, sizes
        self.row = {image: row for row, image in enumerate(images)}
        self.levels = sorted(name for name in tensors if name.startswith("level"))

    def __contains__(self, image: str) -> bool:
        return image in self.row

    def get(self, image: str) -> dict[str, Any]:
        """Returns `image_tokens` float16[P, C] and `feature_maps`, a list of float16[C, H, W], of one image."""
        row = self.row[image]
        return {
            "image_tokens": self.tensors["image_tokens"][row],
            "feature_maps": [self.tensors[level][row] for level in self.levels],
        }

    def sample_maps(self, count: int) -> list[torch.Tensor]:
        """Returns the maps of the first images, a list of float16[count, C, H, W], to measure channels by."""
        return [self.tensors[level][:count] for level in self.levels]

    def image_size(self, image: str) -> tuple[int, int]:
        """Returns (height, width) of the image that the tower saw."""
        return self.sizes[self.row[image]]


def keep_features(
    folder: Path,
    mixture: Mixture,
    processor: GPT4RoIProcessor,
    model: nn.Module,
    bf16: bool = False,
    device: torch.device | None = None,
) -> KeptFeatures:
    """Returns the tower's outputs for every image of a mixture, from `folder` where they were kept before.

    bf16: compute them under autocast, as the training itself; device: where, None for where the tower is. They are
    kept under a name made of the tower's weights, the precision, the image pipeline and each file's path, size and
    time of change, so that nothing stale is read. Images that cannot be read are left out and named in the log: their
    samples are skipped and counted in training.
    Raises InputError where a sample augments its image, where no image can be read, and where they cannot
    be written to the folder.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--picture_features {folder} is a file; name a folder")
    images, pipeline = _images(mixture)
    path = folder / f"features-{_fingerprint(model.vision_tower, f'{pipeline} {bf16}', images)}.safetensors"
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            sizes = [tuple(size) for size in json.loads(file.metadata()["sizes"])]
            unreadable = set(json.loads(file.metadata().get("unreadable", "[]")))
        kept = KeptFeatures(tensors, [image for image in images if image not in unreadable], sizes)
        logger.info("Image features: %d images, kept in %s", len(kept.row), path)
        return kept
    tower = model.vision_tower
    with moved_to(device or next(tower.parameters()).device, tower):
        kept = _look(images, pipeline, processor, model, bf16)
    unreadable = [image for image in images if image not in kept]
    save_tensors(path, kept.tensors, {"sizes": json.dumps(kept.sizes), "unreadable": json.dumps(unreadable)})
    return kept


def _images(mixture: Mixture) -> tuple[list[str], str]:
    """Returns the distinct images of a mixture in order of appearance, and the one pipeline they all go through.

    Samples that cannot be drawn have none here: they are skipped and counted in training.
    """
    pipelines: dict[str, str] = {}
    for index in range(len(mixture)):
        try:
            sample = mixture.sample(index, np.random.default_rng(0))
        except InputError:
            continue
        if sample.augmentation is not None:
            raise InputError(f"{sample.source}: --picture_features needs data sets that do not augment images")
        if sample.image is not None:
            pipelines[sample.image] = sample.image_pipeline
    if len(set(pipelines.values())) > 1:
        raise InputError("--picture_features: the data sets use both image pipelines; choose one for all of them")
    return list(pipelines), next(iter(pipelines.values()), "dialogue")


def _fingerprint(tower: nn.Module, how: str, images: list[str]) -> str:
    digest = hashlib.sha256(how.encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    for image in images:
        digest.update(f"{image} {_state(image)}\n".encode(errors="backslashreplace"))
    return digest.hexdigest()[:16]


def _state(image: str) -> str:
    try:
        facts = os.stat(image)
    except (OSError, ValueError):  # it is looked for again in every run, in case it came
        return "missing"
    return f"{facts.st_size} {facts.st_mtime_ns}"


@torch.no_grad()
def _look(images: list[str], pipeline: str, processor: GPT4RoIProcessor, model: nn.Module, bf16: bool) -> KeptFeatures:
    tensors: dict[str, torch.Tensor] = {}
    seen: list[str] = []
    sizes: list[tuple[int, int]] = []
    reasons: list[str] = []
    parameter = next(model.vision_tower.parameters())
    with tqdm(total=len(images), desc="looking at images", unit="image") as bar:
        for start in range(0, len(images), IMAGE_BATCH_SIZE):
            portion = images[start : start + IMAGE_BATCH_SIZE]
            bar.update(len(portion))
            opened = []
            for image in portion:
                try:
                    loaded = load_image(image, pipeline)
                except InputError as error:
                    reasons.append(str(error))
                    continue
                seen.append(image)
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
                tensors[name][len(seen) - len(part) : len(seen)] = part
    if reasons:
        said = f"{len(reasons)} of {len(images)} images cannot be read"
        if not seen:
            raise InputError(f"--picture_features: {said}; the first: {reasons[0]}")
        logger.warning("%s, and their samples are skipped; the first: %s", said, reasons[0])
        tensors = {name: whole[: len(seen)].clone() for name, whole in tensors.items()}
    return KeptFeatures(tensors, seen, sizes)
