"""`gpt4roi describe`: boxes on one picture in, one answer a box out."""

from __future__ import annotations

import argparse

HELP = "answer about boxes on one picture"
EXAMPLE = """
  gpt4roi describe photo.jpg --box 40,30,210,190 --box 220,35,400,260
  gpt4roi describe photo.jpg --box 40,30,210,190 --question "What is <region1>?" --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture")


def run(args: argparse.Namespace) -> int:
    return 0
