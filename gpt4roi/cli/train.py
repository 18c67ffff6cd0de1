"""Subcommand `gpt4roi train`: trains a stage, or estimates the memory that it takes."""

from __future__ import annotations

import argparse

from gpt4roi.cli import output

HELP = "train a stage on this process's device, or estimate the memory it takes"
EXAMPLE = """
  gpt4roi train --stage 1 --output_dir exp/stage1 --dataset_config my/train.jsonl \\
      --model_name_or_path ./vicuna-7b --vision_tower openai/clip-vit-large-patch14
  gpt4roi train --stage 2 --output_dir exp/stage2            resumes the run of that folder
  gpt4roi train --stage 2 --model_name_or_path exp/stage1 --estimate --estimate_gpus 8

Every flag of the training is taken; `python -m gpt4roi.train --help` lists them all. On several GPUs start it with
train_stage1.sh and train_stage2.sh, which find them.
"""
ALLOWS_EXTRA_ARGS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that this command itself reads."""
    parser.add_argument("--stage", metavar="N", help="1: trains the region encoder; 2: all but the vision tower")
    parser.add_argument("--output_dir", metavar="DIR", help="the work directory; alone, it resumes its run")
    parser.add_argument(
        "--estimate",
        metavar="BOOL",
        nargs="?",
        const="true",
        help="print the memory on each GPU by part, and end",
    )


def run(args: argparse.Namespace) -> int:
    """Trains, or prints the estimate."""
    from gpt4roi.train import main
    from gpt4roi.train.estimate import estimate_from_flags
    from gpt4roi.train.work_dir import is_on, parse_flags

    words = [*args.extra_args]
    for name in ("stage", "output_dir", "estimate"):
        if getattr(args, name) is not None:
            words += [f"--{name}", getattr(args, name)]
    flags = parse_flags(words)
    if is_on(flags, "estimate"):
        output.line(estimate_from_flags(flags))
    else:
        main(words)
    return 0
