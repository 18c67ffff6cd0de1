"""Where a model computes, and in which precision, when nobody says."""

from __future__ import annotations

import torch

from gpt4roi.errors import InputError


def choose_device(name: str | None = None) -> torch.device:
    """Returns the named device, or the best there is: CUDA, Apple's MPS, the CPU. Raises InputError if it is absent."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
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
