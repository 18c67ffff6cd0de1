"""Device and dtype of inference: the defaults, quantization (bitsandbytes), torch.compile, moving modules."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gpt4roi.errors import InputError

QUANTIZATIONS = ("4bit", "8bit")

FLOAT_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
"""Floating dtypes by the names that options take."""


def choose_device(name: str | None = None) -> torch.device:
    """Returns the named device, or the best there is: CUDA, Apple's MPS, the CPU. Raises InputError if it is absent."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError) as error:  # torch raises the latter where it was built without CUDA
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here: {reason}; expected cpu, cuda, cuda:0, mps …") from None
    return device


def choose_dtype(device: torch.device, name: str | torch.dtype | None = None) -> torch.dtype:
    """Returns the named floating dtype, or bfloat16 where the device computes in it, else float32.

    Raises:
        InputError: The name is no floating dtype.
    """
    if name is None:
        return torch.bfloat16 if _computes_in_bfloat16(device) else torch.float32
    dtype = name if isinstance(name, torch.dtype) else FLOAT_DTYPES.get(name)
    if dtype is None or not dtype.is_floating_point:
        raise InputError(f"dtype {name!r} is not known; expected one of {', '.join(FLOAT_DTYPES)}")
    return dtype


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def quantization_config(bits: str, dtype: torch.dtype) -> Any:
    """Returns the bitsandbytes configuration of one of QUANTIZATIONS; 4-bit weights (NF4) compute in `dtype`."""
    from transformers import BitsAndBytesConfig

    if bits == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return BitsAndBytesConfig(load_in_8bit=True)


def check_quantization(bits: str, device: torch.device) -> None:
    """Raises InputError where weights cannot be quantized to `bits` for inference on a device."""
    if bits not in QUANTIZATIONS:
        raise InputError(f"quantize must be one of {', '.join(QUANTIZATIONS)}, got {bits!r}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"{bits} needs the package bitsandbytes; pip install 'gpt4roi[bitsandbytes]'")
    if device.type == "mps":
        raise InputError(f"{bits} is not possible on mps; leave quantization out, or compute on cuda or cpu")
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_no_cast)


def _is_no_cast(record: logging.LogRecord) -> bool:
    """Filters out what every 8-bit layer logs at every token: that it casts its input."""
    return "inputs will be cast" not in record.getMessage()


def compile_model(model: Any) -> None:
    """Marks the language model for torch.compile at its first use, with dynamic batch and sequence sizes.

    Raises:
        InputError: There is no compiler for the model's device.
    """
    if model.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise InputError("compiling for the CPU needs a C++ compiler such as g++; install one, or leave it out")
    (model.get_decoder() if hasattr(model, "region_config") else model.language_model).compile(dynamic=True)


def move_for_inference(model: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Moves a model to a device for inference, and returns it.

    On a CPU only the language model takes the dtype: it has the most to compute, and the tower and the region encoder
    are quicker and exact in float32.
    """
    if device.type == "cpu":
        if hasattr(model, "region_config"):  # a base of another kind computes in one dtype
            model.to(dtype).region_encoder.float()
            return model
        for name, part in model.named_children():  # never the language model in float32, which may not fit
            part.to(dtype if name == "language_model" else torch.float32)
        return model
    return model.to(device, dtype)


@contextmanager
def moved_to(device: torch.device, module: torch.nn.Module) -> Iterator[None]:
    """Moves a module to a device, and back at the end."""
    before = next(module.parameters()).device
    module.to(device)
    try:
        yield
    finally:
        module.to(before)
