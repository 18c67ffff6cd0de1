"""`gpt4roi convert`: a model from the original's format into ours, or back, byte for byte."""

from __future__ import annotations

import argparse

from gpt4roi.cli import output

HELP = "convert a folder between our format (hf) and the original's, with the same bytes"
EXAMPLE = """
  gpt4roi convert ./GPT4RoI-7B-original ./GPT4RoI-7B --to hf --check
  gpt4roi convert ./GPT4RoI-7B ./GPT4RoI-7B-original --to original
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="the folder to convert")
    parser.add_argument("target", metavar="DST", help="where the result goes")
    parser.add_argument("--to", choices=("hf", "original"), required=True, help="format of the result")
    parser.add_argument("--vision-tower", metavar="FOLDER", help="folder or hub name of the original's vision tower")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest file, such as 5GB (default)")
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it exists, once the new is whole")
    parser.add_argument("--check", action="store_true", help="load both and compare their answers about two boxes")


def run(args: argparse.Namespace) -> int:
    from gpt4roi.checkpoint.convert import plan_convert
    from gpt4roi.cli._progress import write_with_bar

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
        from gpt4roi.checkpoint.comparison import compare_models

        for name, difference in compare_models(args.source, args.target, args.vision_tower).items():
            output.line(f"largest relative difference of the {name}: {difference:.2g}")
    return 0
