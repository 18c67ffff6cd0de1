"""What the subcommands that open a model have in common."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.io.hub import is_hub_name
from gpt4roi.io.model_folders import ADAPTER, identify

DEFAULT_MODEL = "exp/quickstart/stage2"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares which model, where it computes, and in which precision."""
    parser.add_argument(
        "--model", metavar="DIR", default=DEFAULT_MODEL, help="a model's folder or hub name (default: %(default)s)"
    )
    parser.add_argument(
        "--vision-tower", metavar="DIR", help="folder or hub name of the vision tower, for a model saved without it"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, mps, … (default: the best available)")
    parser.add_argument(
        "--dtype", metavar="NAME", help="float32, bfloat16 or float16 (default: the best that the device supports)"
    )
    parser.add_argument("--quantize", choices=("4bit", "8bit"), help="quantize the language model (needs bitsandbytes)")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the language model; the first answers are slow"
    )


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the sampling parameters: how answers are chosen and where they end."""
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="longest answer, in tokens (default: %(default)s)"
    )
    parser.add_argument("--temperature", type=float, metavar="T", help="sampling temperature; greedy unless given")
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="nucleus sampling: the most likely tokens that sum to P"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the sampling")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="stop string: answers end before it"
    )


def sampling_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what RegionChat's methods take. Raises InputError on a number out of range."""
    if args.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens must be at least 1, got {args.max_new_tokens}")
    from gpt4roi.generation.sampling import SamplingParams

    names = ("max_new_tokens", "temperature", "top_p", "seed", "stop")
    settings = {name: getattr(args, name) for name in names}
    SamplingParams(**settings)
    return settings


def check_model_folder(path: str) -> str:
    """Returns the folder or hub name of a model. Raises InputError with the next step where it can be neither."""
    folder = Path(path)
    if not folder.exists() and path != DEFAULT_MODEL and is_hub_name(path):
        return path
    if folder.is_file():
        raise InputError(f"no model in {path}, which is a file; give its folder: --model {folder.parent}")
    if not folder.is_dir():
        raise InputError(
            f"no model in {path}: no such folder; give --model DIR, or run scripts/quickstart.sh to make one"
        )
    found = identify(folder)
    if found.kind == ADAPTER:  # opened together with its base
        folder = Path(found.base_folder())
        found = identify(folder)
    if folder.is_dir():
        found.require_model().require_quantization_library()
    return path


def reads_masks(path: str) -> bool:
    """Tells whether the model in a folder reads masks; of one that is not in a folder yet, it is not known."""
    found = identify(path)
    found = identify(found.base_folder()) if found.kind == ADAPTER else found
    return found.config.get("region_shape") == "mask"


def open_chat(args: argparse.Namespace, **settings: Any):
    """Opens the model of the arguments as a RegionChat; progress bars only where somebody watches."""
    from transformers.utils import logging as transformers_logging

    from gpt4roi.region_chat import RegionChat

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    return RegionChat.from_pretrained(
        check_model_folder(args.model),
        device=args.device,
        dtype=args.dtype,
        vision_tower=args.vision_tower,
        quantize=args.quantize,
        compile=args.compile,
        **settings,
    )
