"""`gpt4roi data`: makes data sets, converts them, and looks them over."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from gpt4roi.cli import output
from gpt4roi.cli._data_check import add_check, check
from gpt4roi.cli._data_convert import add_convert, convert

HELP = "look data sets over, convert them, and make the embedded one"
EXAMPLE = """
  gpt4roi data check my/train.jsonl --html report.html
  gpt4roi data check gpt4roi/configs/stage2.py --sample 1000 --model ./vicuna-7b
  gpt4roi data convert instances.json my/train.jsonl --from coco --img-prefix photos
  gpt4roi data make-stamps --out exp/quickstart/data
  gpt4roi data make-stamps --shapes --no-parts --scenes 50 --out exp/shapes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-verbs and their options."""
    verbs = parser.add_subparsers(dest="data_verb", required=True, metavar="VERB")
    add_check(verbs)
    add_convert(verbs)
    stamps = verbs.add_parser(
        "make-stamps",
        help="fetch and compose the embedded data set",
        description="Fetches cut-out pictures, photographs, a small language model and a small vision tower, and "
        "composes scenes with boxes, captions and questions whose answers follow from the geometry. Interrupted and "
        "run again, it goes on; a finished folder is left alone.",
    )
    _add_stamps_arguments(stamps)


def _add_stamps_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("exp/quickstart/data"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--scenes", type=int, default=1000, help="training scenes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other scenes (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="side of a scene in pixels (default: %(default)s)")
    parser.add_argument(
        "--shapes", action="store_true", help="draw coloured shapes instead of fetching pictures; figures do not count"
    )
    parser.add_argument(
        "--parts",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also prepare the language model and the vision tower (default: yes)",
    )
    parser.add_argument(
        "--keep-downloads",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep what was fetched in DIR/downloads, for other seeds and sizes (default: yes)",
    )
    parser.add_argument(
        "--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes that compose (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the sub-verb and returns the exit code."""
    return {"check": check, "convert": convert, "make-stamps": _make_stamps}[args.data_verb](args)


def _make_stamps(args: argparse.Namespace) -> int:
    from gpt4roi.datasets.stamps.make import StampArguments, make_stamps

    arguments = StampArguments(scenes=args.scenes, seed=args.seed, size=args.size, shapes=args.shapes, parts=args.parts)
    manifest = make_stamps(args.out, arguments, keep_downloads=args.keep_downloads, workers=args.workers)
    splits = ", ".join(f"{name} {entry['scenes']} scenes" for name, entry in manifest["splits"].items())
    parts = " and parts/" if manifest["arguments"]["parts"] else ""
    output.line(f"{args.out}: {splits}{parts} (stamps: {manifest['stamps']})")
    return 0
