"""`gpt4roi merge-adapter`: a model and what peft trained on it in, one ordinary folder out."""

from __future__ import annotations

import argparse

from gpt4roi.cli import output
from gpt4roi.cli._writing import add_tower_argument, add_writing_arguments

HELP = "join a peft adapter with the model it was trained on, into one folder"
EXAMPLE = """
  gpt4roi merge-adapter ./GPT4RoI-7B ./my-adapter ./my-model
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="the model's folder or hub name")
    parser.add_argument("adapter", metavar="ADAPTER", help="the folder that peft's save_pretrained wrote")
    parser.add_argument("target", metavar="OUT", help="where the result goes")
    add_tower_argument(parser, "if BASE has none")
    add_writing_arguments(parser, "OUT")


def run(args: argparse.Namespace) -> int:
    from gpt4roi.checkpoint.adapter import merge_adapter

    summary = merge_adapter(
        args.base,
        args.adapter,
        args.target,
        max_shard_size=args.max_shard_size,
        overwrite=args.overwrite,
        vision_tower=args.vision_tower,
    )
    output.line(f"wrote {args.target}: {summary}")
    return 0
