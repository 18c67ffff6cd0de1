"""The progress bar of verbs that move files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gpt4roi.checkpoint.folder_plan import FolderPlan


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
