"""`gpt4roi apply-delta`: applies a weight delta to its base language model, in a few megabytes of memory."""

from __future__ import annotations

import argparse

from gpt4roi.cli._writing import add_writing_arguments, write_with_bar, writing_options

HELP = "add a delta to its base: LLaMA-7B + GPT4RoI-7B-delta = GPT4RoI-7B"
EXAMPLE = """
  gpt4roi apply-delta --base ./llama-7b --target ./GPT4RoI-7B --delta ./GPT4RoI-7B-delta
  gpt4roi apply-delta --base ./llama-7b --target ./GPT4RoI-7B --delta ./GPT4RoI-7B-delta --format original --verify
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--base", "--base-model-path", required=True, metavar="FOLDER", help="the language model")
    parser.add_argument(
        "--target", "--target-model-path", required=True, metavar="FOLDER", help="where the result goes"
    )
    parser.add_argument("--delta", "--delta-path", required=True, metavar="FOLDER", help="what is added to the base")
    parser.add_argument(
        "--format",
        choices=("hf", "original"),
        default="hf",
        help="names in the result: ours (hf, default) or original",
    )
    add_writing_arguments(parser, "the target", tower="to put inside")
    parser.add_argument("--verify", action="store_true", help="read the result once more and print its fingerprint")


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand."""
    from gpt4roi.checkpoint.delta import plan_apply

    plan = plan_apply(
        args.base, args.delta, args.target, output_format=args.format, verify=args.verify, **writing_options(args)
    )
    write_with_bar(plan, args.target, "apply-delta")
    return 0
