"""`gpt4roi make-delta`: makes a weight delta, what a trained model adds to its base, for sharing without the base."""

from __future__ import annotations

import argparse

from gpt4roi.cli._writing import add_writing_arguments, write_with_bar, writing_options

HELP = "subtract the base from a trained model, so that it can be shared without the base's weights"
EXAMPLE = """
  gpt4roi make-delta --base ./llama-7b --target ./GPT4RoI-7B --delta ./GPT4RoI-7B-delta
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--base", "--base-model-path", required=True, metavar="FOLDER", help="the language model")
    parser.add_argument("--target", "--target-model-path", required=True, metavar="FOLDER", help="the trained model")
    parser.add_argument("--delta", "--delta-path", required=True, metavar="FOLDER", help="where the delta goes")
    add_writing_arguments(parser, "the delta")


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand."""
    from gpt4roi.checkpoint.delta import plan_make

    plan = plan_make(args.base, args.target, args.delta, **writing_options(args))
    write_with_bar(plan, args.delta, "make-delta")
    return 0
