"""`gpt4roi compare`: a table of several runs of a benchmark, each against the first with paired intervals."""

from __future__ import annotations

import argparse
from pathlib import Path

from gpt4roi.cli import output

HELP = "compare runs of gpt4roi evaluate in one table, with paired intervals"
EXAMPLE = """
  gpt4roi compare exp/before exp/after
  gpt4roi compare exp/before exp/after exp/other --html comparison.html > comparison.md
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the runs and where the table goes."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="what evaluate wrote with --out; the first is the baseline"
    )
    parser.add_argument("--html", metavar="FILE", help="also write the table and the answers as a page")
    parser.add_argument("--data", metavar="PATH", help="the benchmark's data (default: where the first run read them)")
    parser.add_argument("--images", metavar="DIR", help="the images' folder (default: the first run's)")
    parser.add_argument("--benchmark", metavar="FILE.py", help="the benchmark's file, where it is one that moved")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of Markdown")


def run(args: argparse.Namespace) -> int:
    """Scores all runs over their common questions and writes the table to stdout."""
    from gpt4roi.evaluation.compare_table import read_runs

    data, images = (None if path is None else Path(path) for path in (args.data, args.images))
    table = read_runs(args.runs, args.benchmark, data, images)
    if args.json:
        output.record(table.as_dict())
    else:
        output.line(table.markdown())
    if args.html is not None:
        table.write_html(Path(args.html))
        output.note(f"page: {args.html}")
    return 0
