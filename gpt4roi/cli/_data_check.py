"""`gpt4roi data check`: its arguments, and what it prints."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

from gpt4roi.cli import output
from gpt4roi.cli._outcome import add_bound
from gpt4roi.errors import InputError

logger = logging.getLogger(__name__)

NOT_READY = 1


def add_check(subcommands: Any) -> None:
    """Adds the subcommand."""
    parser = subcommands.add_parser(
        "check",
        help="check data sets before training",
        description="Opens every annotation and image of a list of data sets, and says what training would skip, "
        "what was probably not meant, and how long prompts become. Ends with a verdict: exit code 0 where training "
        "may begin, 1 where it should not, 2 where the arguments are wrong.",
    )
    parser.add_argument("config", metavar="CONFIG", help="what --dataset_config takes: a list, or a file of images")
    parser.add_argument("--eval", metavar="CONFIG", help="evaluation sets, whose images must not be trained on")
    parser.add_argument(
        "--model", metavar="DIR", help="folder or hub name whose tokenizer counts tokens (else they are estimated)"
    )
    parser.add_argument("--model-max-length", type=int, metavar="N", help="default: the model's own, or 2048")
    parser.add_argument(
        "--prompt-format", default="v0", metavar="NAME", help="for a language model (default: %(default)s)"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="check only N random samples of each set")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    parser.add_argument("--seed", type=int, default=0, help="of draws and samples (default: %(default)s)")
    add_bound(parser, "of a set is lost")
    parser.add_argument(
        "--frame",
        default="auto",
        choices=("auto", "upright", "stored"),
        help="what the boxes are of: the image as it is seen upright, or as it is stored; samples that training reads "
        "otherwise are warned of (default: upright)",
    )
    parser.add_argument("--strict", action="store_true", help="not ready at the first error or warning")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with images and prompts")
    parser.add_argument(
        "--show", type=int, default=200, metavar="N", help="samples on this page (default: all up to %(default)s)"
    )


def check(args: argparse.Namespace) -> int:
    """Runs the examination and returns the exit code."""
    from gpt4roi.data.registry import read_config
    from gpt4roi.data_check import verdict as verdicts
    from gpt4roi.data_check.examine import examine
    from gpt4roi.data_check.html_report import write_page
    from gpt4roi.data_check.lengths import open_length_estimator
    from gpt4roi.geometry.frames import FrameRule

    _check_numbers(args)
    entries = [(entry, _role(entry)) for entry in read_config(Path(args.config))]
    entries += [(entry, "evaluation") for entry in (read_config(Path(args.eval)) if args.eval else ())]
    if not entries:
        raise InputError(f"{args.config}: names no data set")
    estimator = open_length_estimator(args.model, args.model_max_length, args.prompt_format)
    workers, rule = args.workers or _cores(), FrameRule(args.frame)
    results = examine(entries, estimator, args.sample, workers, args.seed, rule)
    verdict = verdicts.judge(results, args.max_bad_fraction, args.strict)
    settings = _settings(args, estimator.limit)
    if args.json:
        output.record(verdicts.as_dict(results, verdict, estimator, settings))
    else:
        for line in verdicts.as_lines(results, verdict, estimator):
            output.line(line)
    if args.html:
        write_page(args.html, results, verdict, estimator, settings)
        logger.info("page: %s", args.html)
    return 0 if verdict.ready else NOT_READY


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ("sample", "workers", "model_max_length"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if args.show < 0:
        raise InputError(f"--show must be at least 0, got {args.show}")
    above = next(path for path in args.html.absolute().parents if path.exists()) if args.html else None
    if above is not None and (args.html.is_dir() or not above.is_dir()):
        raise InputError(f"--html {args.html}: give a file to write, in a folder")


def _role(entry: Any) -> str:
    return "evaluation" if isinstance(entry, dict) and entry.get("test_mode") is True else "training"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _settings(args: argparse.Namespace, limit: int) -> dict[str, Any]:
    return {
        "config": args.config,
        "eval": args.eval or "none",
        "model": args.model or "none: lengths are estimated from bytes",
        "model_max_length": limit,
        "sample": args.sample or "all",
        "show": args.show,
        "max_bad_fraction": args.max_bad_fraction,
        "seed": args.seed,
        "frame": args.frame,
    }
