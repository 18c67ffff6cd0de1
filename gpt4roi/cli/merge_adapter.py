"""`gpt4roi merge-adapter`: merges a peft adapter (LoRA) into the model that it was trained on."""

from __future__ import annotations

import argparse

from gpt4roi.cli import output
from gpt4roi.cli._writing import add_writing_arguments, writing_options

HELP = "join a peft adapter with the model it was trained on, into one folder"
EXAMPLE = """
  gpt4roi merge-adapter ./GPT4RoI-7B ./my-adapter ./my-model
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("base", metavar="BASE", help="the model's folder or hub name")
    parser.add_argument("adapter", metavar="ADAPTER", help="the folder that peft's save_pretrained wrote")
    parser.add_argument("target", metavar="OUT", help="where the result goes")
    add_writing_arguments(parser, "OUT", tower="if BASE has none")


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand."""
    from gpt4roi.checkpoint.adapter import merge_adapter

    summary = merge_adapter(args.base, args.adapter, args.target, **writing_options(args))
    output.line(f"wrote {args.target}: {summary}")
    return 0
