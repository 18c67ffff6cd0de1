"""ClassifierHead: a vision tower's own classifier as a fixed part of region embeddings; ours, not the original's.

A backbone that was trained to classify images brings a head that names what it sees. On the pooled cells of a box the
same head names the region, and the names' own token embeddings, mixed by its probabilities, are what a small language
model has only to copy. LightRegionEncoder decides whether the head or the learned part speaks.

    cells = activation(conv1x1(RoIAlign(last map, box)));  p = softmax(classifier(mean of cells) / 0.5)
    token j of the region = sum over classes c of p(c) * E(token j of the name of c)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from gpt4roi.errors import InputError

TEMPERATURE = 0.5
"""Of the softmax: the head was trained on whole images, and is less sure of a region than it could be."""


class ClassifierHead(nn.Module):
    """Names pooled boxes; nothing of it is trained.

    Args:
        channels: C of the tower's last map.
        hidden_size: Channels of the 1x1 convolution before the classifier; None where there is none.
        activation: Behind that convolution, as transformers names it.
        classes: How many there are.
        width: k * D of the output.
    """

    conv_weight: torch.Tensor
    conv_bias: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    names: torch.Tensor
    """float[N, k * D]: the embedding of each name's j-th token."""

    def __init__(self, channels: int, hidden_size: int | None, activation: str, classes: int, width: int) -> None:
        super().__init__()
        self.activation = None if hidden_size is None else ACT2FN[activation]
        shapes: dict[str, tuple[int, ...]] = {"weight": (classes, hidden_size or channels), "bias": (classes,)}
        if hidden_size is not None:
            shapes |= {"conv_weight": (hidden_size, channels), "conv_bias": (hidden_size,)}
        for name, shape in (shapes | {"names": (classes, width)}).items():
            self.register_buffer(name, torch.zeros(shape))

    def logits(self, cells: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Returns float32[M, N] of pooled cells of the last map as the tower made it, float[M, C, h, w].

        weights: float[M, 1, h, w], by how much each cell counts in the mean.
        """
        # In full precision: half of it would move a probability by a tenth.
        with torch.autocast(cells.device.type, enabled=False):
            cells = cells.float()
            if self.activation is not None:
                weight, bias = self.conv_weight[..., None, None].float(), self.conv_bias.float()
                cells = self.activation(F.conv2d(cells, weight, bias))
            if weights is not None:
                cells = cells * (weights.float() / weights.float().mean((2, 3), keepdim=True).clamp(min=1e-6))
            return F.linear(cells.mean((2, 3)), self.weight.float(), self.bias.float())

    def mix(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Returns float[M, k * D], the names' embeddings mixed by probabilities, float[M, N]."""
        return probabilities.to(self.names.dtype) @ self.names

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor], names: torch.Tensor) -> None:
        """Fills the fixed tensors; names: float[N, k * D]."""
        for name, tensor in {**tensors, "names": names}.items():
            getattr(self, name).copy_(tensor)


def read_classifier_head(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Reads what save_classifier_head wrote: the fields of GPT4RoIConfig that it decides, and its tensors.

    Raises:
        InputError: It is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            settings = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        hidden = len(tensors["conv_bias"]) if "conv_bias" in tensors else None
        names, activation = settings["class_names"], settings["activation"]
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"--classifier_head {path}: expected a file of save_classifier_head ({type(error).__name__}: {error})"
        ) from None
    return {"class_names": names, "classifier_hidden_size": hidden, "classifier_activation": activation}, tensors


@torch.no_grad()
def save_classifier_head(classifier: nn.Module, class_names: Sequence[str], path: Path) -> None:
    """Writes the head of a timm classifier, whose pyramid is the tower, to a safetensors file.

    These are its `conv_head` with the norm behind it, where it has them, and the classifier; class_names: what a region
    of each class is called, in the classifier's order.

    Raises:
        InputError: The head does more than these tensors say, or has another number of classes.
    """
    model = cast(Any, classifier.eval())
    linear, conv, norm = model.get_classifier(), getattr(model, "conv_head", None), getattr(model, "bn2", None)
    if len(class_names) != linear.out_features:
        raise InputError(f"{len(class_names)} class names for a classifier of {linear.out_features} classes")
    tensors, hidden, activation = {"weight": linear.weight, "bias": linear.bias}, None, ""
    if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
        gain = norm.weight / (cast(torch.Tensor, norm.running_var) + norm.eps).sqrt()
        tensors["conv_weight"] = conv.weight[:, :, 0, 0] * gain[:, None]
        tensors["conv_bias"] = norm.bias - cast(torch.Tensor, norm.running_mean) * gain
        hidden, activation = conv.out_channels, type(cast(Any, norm).act).__name__.lower()
    channels = tensors.get("conv_weight", linear.weight).shape[1]
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    if hidden is None or activation in ACT2FN:
        head = ClassifierHead(channels, hidden, activation, len(class_names), 1)
        head.load(plain, torch.zeros(len(class_names), 1))
        if _answers_alike(model, head, cast(nn.Module, conv) if hidden else getattr(model, "global_pool", linear)):
            settings = {"class_names": list(class_names), "activation": activation}
            return save_file(plain, path, {name: json.dumps(value) for name, value in settings.items()})
    raise InputError(
        f"the head of {type(model).__name__} is more than a 1x1 convolution with a norm, an activation, the mean over "
        "cells and a linear classifier; only such heads can name regions"
    )


def _answers_alike(classifier: nn.Module, head: ClassifierHead, reads_the_map: nn.Module) -> bool:
    """Tells whether a head makes of a random image's last map what the classifier itself does."""
    maps: list[torch.Tensor] = []
    hook = reads_the_map.register_forward_pre_hook(lambda _module, given: maps.append(given[0].clone()))
    own = classifier(torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    hook.remove()
    fits = maps[0].ndim == 4 and maps[0].shape[1] == (head.conv_weight if head.activation else head.weight).shape[1]
    return fits and torch.allclose(head.logits(maps[0]), own, atol=1e-3, rtol=1e-3)
