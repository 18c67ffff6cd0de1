"""`gpt4roi data`: checks data sets before training and converts them."""

from __future__ import annotations

import argparse
from pathlib import Path

from gpt4roi.cli._data_check import add_check, check
from gpt4roi.cli._data_convert import add_convert, convert
from gpt4roi.io.python_files import import_file

QUICKSTART = Path(__file__).parents[2] / "quickstart" / "__main__.py"
HELP = "check data sets before training, and convert them"
EXAMPLE = """
  gpt4roi data check my/train.jsonl --html report.html
  gpt4roi data check gpt4roi/configs/stage2.py --sample 1000 --model ./vicuna-7b
  gpt4roi data convert instances.json my/train.jsonl --from coco --img-prefix photos
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands and their options."""
    subcommands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    add_check(subcommands)
    add_convert(subcommands)
    if QUICKSTART.is_file():  # in a checkout; the old name of `python -m quickstart`
        quickstart = import_file(QUICKSTART, "make-stamps")
        stamps = subcommands.add_parser(
            "make-stamps", help="the same as python -m quickstart", description=quickstart.__doc__
        )
        quickstart.add_arguments(stamps)


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand and returns the exit code."""
    if args.data_command == "make-stamps":
        return import_file(QUICKSTART, "make-stamps").run(args)
    return {"check": check, "convert": convert}[args.data_command](args)
