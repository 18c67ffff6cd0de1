"""Where a model computes, and in which precision, when nobody says; quantized or compiled when somebody does."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gpt4roi.checkpoint.loading import load_model
from gpt4roi.errors import InputError

logger = logging.getLogger(__name__)

QUANTIZATIONS = ("4bit", "8bit")


def open_model(
    path: str | Path,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    vision_tower: str | Path | None = None,
    quantize: str | None = None,
    compiled: bool = False,
) -> torch.nn.Module:
    """Opens a saved model where it will compute, and says where and how.

    path: folder or hub name; device, dtype: as choose_device and choose_dtype take them; vision_tower: as load_model;
    quantize: one of QUANTIZATIONS, for the language model; compiled: as compile_model does.
    Raises InputError where the machine or the folder does not allow it.
    """
    target = choose_device(device)
    precision = choose_dtype(target, dtype)
    if quantize is None:
        model = place(load_model(path, vision_tower=vision_tower), target, precision)
    else:
        model = _open_quantized(path, target, precision, vision_tower, quantize)
    if compiled:
        compile_model(model)
    extras = [f"the language model in {quantize}"] * bool(quantize) + ["compiled"] * compiled
    logger.info("computing on %s", ", ".join([f"{target} in {str(precision).removeprefix('torch.')}", *extras]))
    return model


def _open_quantized(
    path: str | Path, device: torch.device, dtype: torch.dtype, vision_tower: str | Path | None, quantize: str
) -> torch.nn.Module:
    if quantize not in QUANTIZATIONS:
        raise InputError(f"quantize must be one of {', '.join(QUANTIZATIONS)}, got {quantize!r}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"{quantize} needs the package bitsandbytes; pip install 'gpt4roi[bitsandbytes]'")
    if device.type == "mps":
        raise InputError(f"{quantize} is not possible on mps; leave quantization out, or compute on cuda or cpu")
    from transformers import BitsAndBytesConfig

    if quantize == "4bit":
        settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    else:
        settings = BitsAndBytesConfig(load_in_8bit=True)
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_no_cast)
    return load_model(
        path, vision_tower=vision_tower, quantization_config=settings, dtype=dtype, device_map={"": str(device)}
    )


def _is_no_cast(record: logging.LogRecord) -> bool:
    """Leaves out what every layer in 8 bits says at every token: that it casts its input."""
    return "inputs will be cast" not in record.getMessage()


def compile_model(model: torch.nn.Module) -> None:
    """Lets torch.compile translate the language model, for batches and prompts of any length, when it is first used.

    Raises InputError where there is no compiler for the model's device.
    """
    if model.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise InputError("compiling for the CPU needs a C++ compiler such as g++; install one, or leave it out")
    model.language_model.compile(dynamic=True)


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
    """Returns the named floating type, or bfloat16 where the device computes in it, else float32.

    Raises InputError on a name that is no floating type.
    """
    if name is None:
        return torch.bfloat16 if _computes_in_bfloat16(device) else torch.float32
    dtype = name if isinstance(name, torch.dtype) else _BY_NAME.get(name)
    if dtype is None or not dtype.is_floating_point:
        raise InputError(f"dtype {name!r} is not known; expected one of {', '.join(_BY_NAME)}")
    return dtype


_BY_NAME = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def place(model: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """Moves a model to a device for answering, and returns it.

    On a CPU only the language model takes the dtype: it has the most to compute, and the tower and the region encoder
    are quicker and exact in float32.
    """
    if device.type == "cpu":
        model.float().language_model.to(dtype)
        return model
    return model.to(device, dtype)


@contextmanager
def moved_to(device: torch.device, module: torch.nn.Module) -> Iterator[None]:
    """Keeps a module on a device for a while, and puts it back to where it was."""
    before = next(module.parameters()).device
    module.to(device)
    try:
        yield
    finally:
        module.to(before)
