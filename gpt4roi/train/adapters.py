"""LoRA and QLoRA: the language model learns by low-rank adapters, the region encoder and the projector in full.

The adapters and the modules beside them are saved alone, as peft does; `gpt4roi merge-adapter` joins them with the
model that they were trained on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gpt4roi import devices
from gpt4roi.errors import InputError
from gpt4roi.models.vision_tower import VisionTower
from gpt4roi.train.arguments import AdapterArguments

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_adapters(given: AdapterArguments, modules: tuple[str, ...], starts_from_ours: bool) -> None:
    """Raises InputError for arguments that contradict each other.

    modules: what learns; starts_from_ours: whether the run starts from a GPT4RoI folder.
    """
    if given.frozen_dtype not in DTYPES:
        raise InputError(f"--frozen_dtype: got {given.frozen_dtype!r}, expected one of {', '.join(DTYPES)}")
    if given.quantization not in (None, *devices.QUANTIZATIONS):
        raise InputError(f"--quantization: got {given.quantization!r}, expected {' or '.join(devices.QUANTIZATIONS)}")
    if given.lora_r < 0:
        raise InputError(f"--lora_r: got {given.lora_r}, expected a rank above 0, or 0 for no adapters")
    if not 0 <= given.lora_dropout < 1:
        raise InputError(f"--lora_dropout: got {given.lora_dropout}, expected 0 or more and below 1")
    if given.lora_r == 0:
        _refuse_without_rank(given, modules)
        return
    if "language_model" not in modules:
        raise InputError(
            f"--lora_r {given.lora_r} is for a language model that learns, but --trainable_modules is "
            f"{','.join(modules)}; add language_model"
        )
    if not starts_from_ours:
        raise InputError(
            f"--lora_r {given.lora_r} needs a GPT4RoI folder to start from, because adapters are saved without the "
            "model: run stage 1 first, and give its folder as --model_name_or_path"
        )


def _refuse_without_rank(given: AdapterArguments, modules: tuple[str, ...]) -> None:
    set_names = [name for name in ("lora_alpha", "lora_target_modules") if getattr(given, name) is not None]
    if set_names or given.lora_dropout:
        raise InputError(f"--{(set_names or ['lora_dropout'])[0]} does nothing without --lora_r; give a rank, as 16")
    if given.quantization and "language_model" in modules:
        raise InputError(f"--quantization {given.quantization}: quantized weights cannot learn; add --lora_r 16")


def quantization_config(given: AdapterArguments) -> Any:
    """Returns the bitsandbytes configuration that was asked for, None for none.

    Raises InputError where bitsandbytes is not installed.
    """
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
def keep_frozen(model: nn.Module, dtype: str) -> None:
    """Casts every parameter that does not learn to a dtype, the tower with its statistics; quantized ones stay."""
    wanted = DTYPES[dtype]
    for module in model.modules():
        if isinstance(module, VisionTower):
            module.to(wanted)
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point() and parameter.dtype != wanted:
            parameter.data = parameter.data.to(wanted)


def add_adapters(model: nn.Module, given: AdapterArguments, modules: tuple[str, ...]) -> nn.Module:
    """Returns the peft model whose language model learns by adapters and whose other `modules` learn in full.

    Raises InputError where a layer that is to get an adapter is not there.
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
    config = LoraConfig(
        r=given.lora_r,
        lora_alpha=2 * given.lora_r if given.lora_alpha is None else given.lora_alpha,
        lora_dropout=given.lora_dropout,
        target_modules=rf"language_model\..*\.({'|'.join(asked)})",
        modules_to_save=[name for name in modules if name != "language_model"] or None,
    )
    return get_peft_model(model, config)


def _linear_layers(model: nn.Module) -> list[str]:
    """Returns the last names of the language model's linear layers, without its output layer."""
    output = model.get_output_embeddings()
    found = (
        name.rpartition(".")[2]
        for name, module in model.language_model.named_modules()
        if isinstance(module, nn.Linear) and module is not output
    )
    return list(dict.fromkeys(found))
