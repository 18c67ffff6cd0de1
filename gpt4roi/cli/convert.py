"""`gpt4roi convert`: converts a checkpoint between the original's format and ours, byte for byte."""

from __future__ import annotations

import argparse

from gpt4roi.cli import output
from gpt4roi.cli._writing import add_writing_arguments, write_with_bar, writing_options

LARGEST_DIFFERENCE = 1e-3
"""Of both folders' outputs, in float32 and relative to their largest; the bytes of the weights are the same."""

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
    parser.add_argument(
        "--check", action="store_true", help="load both and compare a question's token ids, stops, answer and logits"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand."""
    from gpt4roi.checkpoint.convert import plan_convert

    plan = plan_convert(args.source, args.target, to=args.to, **writing_options(args))
    write_with_bar(plan, args.target, "convert")
    if args.check:
        _check(args)
    return 0


def _check(args: argparse.Namespace) -> None:
    from gpt4roi.checkpoint.compare import compare_models
    from gpt4roi.errors import InputError

    found = compare_models(args.source, args.target, args.vision_tower)
    for name, difference in found.items():
        output.line(f"largest relative difference of the {name}: {difference:.2g}")
    if not max(found.values()) <= LARGEST_DIFFERENCE:
        raise InputError(f"{args.target} does not compute what {args.source} does; delete it and convert again")
    output.note("the same question has the same token ids, stops and answer in both")
