"""`gpt4roi convert`: converts a checkpoint between the original's format and ours, byte for byte."""

from __future__ import annotations

import argparse

from gpt4roi.cli import output
from gpt4roi.cli._writing import add_writing_arguments, write_with_bar, writing_options

HELP = "convert a folder between our format (hf) and the original's, with the same bytes"
EXAMPLE = """
  gpt4roi convert ./GPT4RoI-7B-original ./GPT4RoI-7B --to hf --check
  gpt4roi convert ./GPT4RoI-7B ./GPT4RoI-7B-original --to original
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("source", metavar="SRC", help="the folder to convert")
    parser.add_argument("target", metavar="DST", help="where the result goes")
    parser.add_argument("--to", choices=("hf", "original"), required=True, help="format of the result")
    add_writing_arguments(parser, "DST", tower="of the original")
    parser.add_argument("--check", action="store_true", help="load both and compare their answers about two boxes")


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand."""
    from gpt4roi.checkpoint.convert import plan_convert

    plan = plan_convert(args.source, args.target, to=args.to, **writing_options(args))
    write_with_bar(plan, args.target, "convert")
    if args.check:
        from gpt4roi.checkpoint.compare import compare_models

        for name, difference in compare_models(args.source, args.target, args.vision_tower).items():
            output.line(f"largest relative difference of the {name}: {difference:.2g}")
    return 0
