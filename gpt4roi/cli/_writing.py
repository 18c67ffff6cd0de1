"""What the subcommands that write a folder of weights have in common."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the module itself imports torch, for which no --help should wait
    from gpt4roi.checkpoint.writer import FolderPlan


def add_writing_arguments(parser: argparse.ArgumentParser, target: str) -> None:
    """Declares how the folder is written; target: what the subcommand's help calls it."""
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest file, such as 5GB (default)")
    parser.add_argument(
        "--overwrite", action="store_true", help=f"replace {target} if it exists, once the new one is complete"
    )


def add_tower_argument(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Declares where the vision tower is; purpose: what it is needed for."""
    parser.add_argument("--vision-tower", metavar="FOLDER", help=f"folder or hub name of the vision tower {purpose}")


@contextmanager
def byte_bar(total: int, title: str) -> Iterator:
    """Shows a bar in bytes on stderr and yields the function that moves it on; silent when nobody watches."""
    from tqdm import tqdm

    with tqdm(total=total, desc=title, unit="B", unit_scale=True, mininterval=0.5, disable=None) as bar:
        yield bar.update


def write_with_bar(plan: FolderPlan, title: str) -> None:
    """Writes a planned folder under a progress bar."""
    with byte_bar(plan.nbytes, title) as progress:
        plan.write(progress)
