"""Exit code of a job: 1 where all of it, or more than `--max-bad-fraction`, could not be used."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

NAMED = 10
"""How many of what could not be used are named."""

logger = logging.getLogger(__name__)


def add_bound(parser: argparse.ArgumentParser, what: str) -> None:
    """Declares the bound; what: in words, what is counted against it."""
    parser.add_argument(
        "--max-bad-fraction",
        type=_fraction,
        default=0.01,
        metavar="F",
        help=f"end with code 1 where more than this fraction {what}; one alone is allowed (default: %(default)s)",
    )


def _fraction(text: str) -> float:
    try:
        value: float | str = float(text)
    except ValueError:
        value = text
    if isinstance(value, str) or not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"--max-bad-fraction must lie between 0 and 1, got {value}")
    return value


def exit_code(lost: int, total: int, what: str, max_bad_fraction: float) -> int:
    """Returns the exit code of a job that lost so many of a total, and says why it is 1.

    A single loss is allowed, unless it is all there was.
    """
    from gpt4roi.data.base import exceeds_bad_fraction

    if not lost or max_bad_fraction == 1 or (lost < total and not exceeds_bad_fraction(lost, total, max_bad_fraction)):
        return 0
    logger.error(
        "%d of %d %s, more than --max-bad-fraction %g allows: exit code 1", lost, total, what, max_bad_fraction
    )
    return 1


def name_first(what: str, reasons: Sequence[str], rest: str = "") -> None:
    """Names the first of what could not be used, and counts the others; rest: where these are listed."""
    for reason in reasons[:NAMED]:
        logger.warning("%s: %s", what, reason)
    if len(reasons) > NAMED:
        logger.warning("%s: %d more%s", what, len(reasons) - NAMED, rest)
