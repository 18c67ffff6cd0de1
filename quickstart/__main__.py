"""Makes the embedded data set: fetches its parts and composes its scenes, with boxes, captions and questions.

Cut-out images, photographs, a small language model and a small vision tower are fetched; the answers to all
questions follow from the geometry. Interrupted and run again, it resumes; a finished folder is left alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from gpt4roi.cli import main, output

EXAMPLE = """
  python -m quickstart --out exp/quickstart/data
  python -m quickstart --shapes --no-parts --scenes 50 --out exp/shapes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares where the data set goes, its size and its seed."""
    parser.add_argument(
        "--out", type=Path, default=Path("exp/quickstart/data"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--scenes", type=int, default=1000, help="training scenes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other scenes (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="side of a scene in pixels (default: %(default)s)")
    parser.add_argument(
        "--shapes", action="store_true", help="draw coloured shapes instead of fetching images; figures do not count"
    )
    parser.add_argument(
        "--parts",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also prepare the language model and the vision tower (default: yes)",
    )
    parser.add_argument(
        "--photographs",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also fetch photographs and name regions of them (default: yes; needs Debian packages as the stamps do)",
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
    """Makes the data set and writes one line about it to stdout."""
    from quickstart.make import StampArguments, make_stamps

    arguments = StampArguments(
        scenes=args.scenes,
        seed=args.seed,
        size=args.size,
        shapes=args.shapes,
        parts=args.parts,
        photographs=args.photographs,
    )
    manifest = make_stamps(args.out, arguments, keep_downloads=args.keep_downloads, workers=args.workers)
    splits = ", ".join(f"{name} {entry['scenes']} scenes" for name, entry in manifest["splits"].items())
    parts = " and parts/" if manifest["arguments"]["parts"] else ""
    output.line(f"{args.out}: {splits}{parts} (stamps: {manifest['stamps']})")
    return 0


if __name__ == "__main__":
    sys.exit(main(["data", "make-stamps", *sys.argv[1:]]))
