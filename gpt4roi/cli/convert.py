"""`gpt4roi convert`: a model from the original's format into ours, or back, byte for byte."""

from __future__ import annotations

import argparse

from gpt4roi.cli import output
from gpt4roi.cli._writing import add_tower_argument, add_writing_arguments, write_with_bar

HELP = "convert a folder between our format (hf) and the original's, with the same bytes"
EXAMPLE = """
  gpt4roi convert ./GPT4RoI-7B-original ./GPT4RoI-7B --to hf --check
  gpt4roi convert ./GPT4RoI-7B ./GPT4RoI-7B-original --to original
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="the folder to convert")
    parser.add_argument("target", metavar="DST", help="where the result goes")
    parser.add_argument("--to", choices=("hf", "original"), required=True, help="format of the result")
    add_tower_argument(parser, "of the original")
    add_writing_arguments(parser, "DST")
    parser.add_argument("--check", action="store_true", help="load both and compare their answers about two boxes")


def run(args: argparse.Namespace) -> int:
    from gpt4roi.checkpoint.convert import plan_convert

    plan = plan_convert(
        args.source,
        args.target,
        to=args.to,
        max_shard_size=args.max_shard_size,
        overwrite=args.overwrite,
        vision_tower=args.vision_tower,
    )
    write_with_bar(plan, "convert")
    output.line(f"wrote {args.target}: {plan.summary}")
    if args.check:
        from gpt4roi.checkpoint.compare import compare_models

        for name, difference in compare_models(args.source, args.target, args.vision_tower).items():
            output.line(f"largest relative difference of the {name}: {difference:.2g}")
    return 0
