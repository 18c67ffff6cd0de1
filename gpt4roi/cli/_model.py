"""What the verbs that open a model have in common."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpt4roi.errors import InputError
from gpt4roi.hub import is_hub_name

DEFAULT_MODEL = "exp/quickstart/stage2"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares which model, where it computes, and in which precision."""
    parser.add_argument(
        "--model", metavar="DIR", default=DEFAULT_MODEL, help="a model's folder or hub name (default: %(default)s)"
    )
    parser.add_argument(
        "--vision-tower", metavar="DIR", help="the tower's folder or hub name, for a model that lies without it"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, mps, … (default: the best there is)")
    parser.add_argument(
        "--dtype", metavar="NAME", help="float32, bfloat16 or float16 (default: what the device can do)"
    )


def check_model_folder(path: str) -> str:
    """Returns the folder or hub name of a model. Raises InputError with the next step where it can be neither."""
    folder = Path(path)
    if not folder.exists() and path != DEFAULT_MODEL and is_hub_name(path):
        return path
    if not folder.is_dir():
        raise InputError(
            f"no model in {path}: no such folder; give --model DIR, or run scripts/quickstart.sh to make one"
        )
    if not (folder / "config.json").is_file():
        raise InputError(f"no model in {path}: the folder has no config.json; give the folder that a training wrote")
    return path


def open_chat(args: argparse.Namespace):
    """Opens the model of the arguments as a RegionChat; progress bars only where somebody watches."""
    from transformers.utils import logging as transformers_logging

    from gpt4roi.inference import RegionChat

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    return RegionChat.from_pretrained(
        check_model_folder(args.model), device=args.device, dtype=args.dtype, vision_tower=args.vision_tower
    )
