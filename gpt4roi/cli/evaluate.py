"""`gpt4roi evaluate`: a model's numbers on a benchmark, with a page that shows them."""

from __future__ import annotations

import argparse
import json
import shlex
from importlib import import_module
from pathlib import Path

from gpt4roi.cli import output
from gpt4roi.cli._model import add_model_arguments, open_chat
from gpt4roi.errors import InputError

HELP = "measure a model on a benchmark"
EXAMPLE = """
  gpt4roi evaluate --benchmark stamps --model exp/quickstart/stage2 --data exp/quickstart/data --out exp/quickstart/eval
  gpt4roi evaluate --benchmark stamps --data exp/quickstart/data --out exp/look --limit 10 --json
"""
BENCHMARKS = {"stamps": ("gpt4roi.evaluation.stamps", "evaluate_stamps")}
"""Name of each benchmark: its module and function."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the benchmark, its data and where the results go."""
    parser.add_argument("--benchmark", required=True, choices=sorted(BENCHMARKS), help="what to measure")
    parser.add_argument("--data", metavar="DIR", required=True, help="the benchmark's data")
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="gets metrics.json, predictions.jsonl and report.html"
    )
    add_model_arguments(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures of each split, for a look")
    parser.add_argument(
        "--batch-size", type=int, default=128, metavar="N", help="prompts at once (default: %(default)s)"
    )
    parser.add_argument(
        "--phases", metavar="FILE", help='JSON object {"phase": minutes} to show in the report, such as of a training'
    )
    parser.add_argument("--json", action="store_true", help="write the main figures as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Evaluates and writes the main figures to stdout, one a line."""
    for name in ("limit", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if not Path(args.data).is_dir():
        raise InputError(f"--data {args.data}: no such folder; for stamps run `gpt4roi data make-stamps` first")
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise InputError(f"--out {args.out}: is a file; give a folder")
    facts = {"model": str(args.model), "command": command_line(args)}
    if args.phases:
        facts["phases"] = read_phases(Path(args.phases))
    chat = open_chat(args)
    module, function = BENCHMARKS[args.benchmark]
    evaluate = getattr(import_module(module), function)
    metrics = evaluate(
        chat.model, chat.processor, args.data, args.out, batch_size=args.batch_size, limit=args.limit, facts=facts
    )
    if args.json:
        output.record(metrics["summary"])
    else:
        width = max(map(len, metrics["summary"]))
        for name, value in metrics["summary"].items():
            output.line(f"{name:<{width}}  {value:.4g}" if isinstance(value, float) else f"{name:<{width}}  {value}")
        output.line(f"report: {Path(args.out) / 'report.html'}")
    return 0


def command_line(args: argparse.Namespace) -> str:
    """Returns a command that repeats this evaluation."""
    words = ["gpt4roi", "evaluate", "--benchmark", args.benchmark]
    for name in ("model", "vision_tower", "data", "out", "limit", "batch_size", "device", "dtype"):
        value = getattr(args, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def read_phases(path: Path) -> dict[str, float]:
    """Reads minutes by phase. Raises InputError where the file is not such an object."""
    try:
        phases = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(minutes) for name, minutes in phases.items()}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--phases {path}: cannot be read: {error}") from None
    except (ValueError, TypeError, AttributeError):
        raise InputError(f'--phases {path}: expected a JSON object such as {{"stage 1": 0.8}}') from None
