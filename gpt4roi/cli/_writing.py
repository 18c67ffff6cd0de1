"""Options and progress bar of the subcommands that write a folder of weights."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from gpt4roi.cli import output

if TYPE_CHECKING:  # the module itself imports torch, for which no --help should wait
    from gpt4roi.checkpoint.writer import FolderPlan


def add_writing_arguments(parser: argparse.ArgumentParser, target: str, tower: str | None = None) -> None:
    """Declares how the folder is written.

    Args:
        parser: Of the subcommand.
        target: What its help calls the folder.
        tower: What the vision tower is needed for; None where it is not.
    """
    if tower is not None:
        parser.add_argument("--vision-tower", metavar="FOLDER", help=f"folder or hub name of the vision tower {tower}")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest file, such as 5GB (default)")
    parser.add_argument(
        "--overwrite", action="store_true", help=f"replace {target} if it exists, once the new one is complete"
    )


def writing_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the values of these arguments, as the functions of `checkpoint` take them."""
    names = ("vision_tower", "max_shard_size", "overwrite")
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def write_with_bar(plan: FolderPlan, target: str, title: str) -> None:
    """Writes a planned folder under a progress bar (silent unless stderr is a terminal), and prints its summary."""
    from tqdm import tqdm

    with tqdm(total=plan.nbytes, desc=title, unit="B", unit_scale=True, mininterval=0.5, disable=None) as bar:
        plan.write(bar.update)
    output.line(f"wrote {target}: {plan.summary}")
