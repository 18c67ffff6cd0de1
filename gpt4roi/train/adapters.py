"""LoRA and QLoRA: low-rank adapters for the language model, and full training of the modules beside it.

The adapters and those modules are saved alone, as peft does; `gpt4roi merge-adapter` merges them into the model that
they were trained on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from gpt4roi import devices
from gpt4roi.checkpoint.lora import quiet_peft
from gpt4roi.errors import InputError
from gpt4roi.models.vision_tower import VisionTower
from gpt4roi.train.arguments import DTYPES, AdapterArguments
from gpt4roi.train.param_groups import module_of


def check_adapters(given: AdapterArguments, modules: tuple[str, ...], from_checkpoint: bool) -> None:
    """Raises InputError for adapters that do not fit the trainable modules, or what the run starts from."""
    if given.lora_r == 0:
        if given.quantization and "language_model" in modules:
            raise InputError(
                f"--quantization {given.quantization}: quantized weights cannot be trained; add --lora_r 16"
            )
        return
    if "language_model" not in modules:
        raise InputError(
            f"--lora_r {given.lora_r} is for a language model that is trained, but --trainable_modules is "
            f"{','.join(modules)}; add language_model"
        )
    if not from_checkpoint:
        raise InputError(
            f"--lora_r {given.lora_r} needs a GPT4RoI folder to start from, because adapters are saved without the "
            "model: run stage 1 first, and give its folder as --model_name_or_path"
        )


def quantization_config(given: AdapterArguments) -> Any:
    """Returns the bitsandbytes configuration, None for none; raises InputError where it is not installed."""
    if given.quantization is None:
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise InputError(
            f"--quantization {given.quantization} needs bitsandbytes; install it with pip install "
            "'gpt4roi[bitsandbytes]'"
        ) from None
    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return devices.quantization_config(given.quantization, compute)


@torch.no_grad()
def cast_frozen_parameters(model: nn.Module, dtype: str) -> None:
    """Casts frozen parameters to a dtype, the tower with its statistics; quantized ones stay as they are."""
    wanted = DTYPES[dtype]
    for module in model.modules():
        if isinstance(module, VisionTower):
            module.to(wanted)
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point() and parameter.dtype != wanted:
            parameter.data = parameter.data.to(wanted)


def fully_trained(modules: tuple[str, ...], given: AdapterArguments) -> list[str]:
    """Returns the modules whose own weights are trained: all of them, but a language model with adapters."""
    return [name for name in modules if name != "language_model" or not given.lora_r]


def add_adapters(model: Any, given: AdapterArguments, modules: tuple[str, ...]) -> nn.Module:
    """Returns the peft model whose language model is trained by adapters and whose other `modules` in full.

    Raises InputError where peft is not installed, or the language model has no such layer.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise InputError("--lora_r needs peft; install it with pip install 'gpt4roi[train]'") from None
    layers = _linear_layers(model)
    asked = [name.strip() for name in (given.lora_target_modules or ",".join(layers)).split(",") if name.strip()]
    unknown = [name for name in asked if name not in layers]
    if unknown or not asked:
        raise InputError(
            f"--lora_target_modules: no {', '.join(unknown) or 'layer'} in the language model; it has "
            f"{', '.join(layers)}"
        )
    own = hasattr(model, "language_model")  # a pretrained base has its decoder further inside
    decoder = "language_model" if own else r"(.*\.)?(language_model|text_model)"
    beside = [name for name in modules if name != "language_model"]
    if not own and "mm_projector" in beside:
        beside = [name for name in beside if name != "mm_projector"] + _projectors(model)
    alpha: Any = 2 * given.lora_r if given.lora_alpha is None else given.lora_alpha  # peft takes fractions too
    config = LoraConfig(
        r=given.lora_r,
        lora_alpha=alpha,
        lora_dropout=given.lora_dropout,
        target_modules=rf"{decoder}\..*\.({'|'.join(asked)})",
        fan_in_fan_out=bool(_linear_layers(model, Conv1D)),  # GPT-2's layers keep their weights transposed
        modules_to_save=beside or None,
    )
    with quiet_peft():
        return get_peft_model(model, config)


def _linear_layers(model: Any, kind: Any = (nn.Linear, Conv1D)) -> list[str]:
    """Returns the last names of the language model's linear layers, without its output layer."""
    output = model.get_output_embeddings()
    found = (
        name.rpartition(".")[2]
        for name, module in (getattr(model, "language_model", None) or model.get_decoder()).named_modules()
        if isinstance(module, kind) and module is not output
    )
    return list(dict.fromkeys(found))


def _projectors(model: nn.Module) -> list[str]:
    """Returns the ends of the names of the modules that join a pretrained base's tower and decoder."""
    found = [name for name, module in model.named_modules() if "." in name and _is_projector(name, module)]
    outer = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    # One of a list is named with its list: peft wraps no list.
    return list(dict.fromkeys(".".join(name.split(".")[-2 if name[-1].isdigit() else -1 :]) for name in outer))


def _is_projector(name: str, module: nn.Module) -> bool:
    own = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
    return bool(own) and not isinstance(module, nn.ModuleList) and {*map(module_of, own)} == {"mm_projector"}
