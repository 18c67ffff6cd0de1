"""Worker pool: processes that share a job; one that is killed ends it with a line instead of a wait for ever."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from gpt4roi.errors import InputError

_work: list[Callable[[Any], Any]] = []


def parallel_map(work: Callable[[Any], Any], items: Sequence[Any], workers: int, doing: str) -> Iterator[Any]:
    """Yields what `work` gives for each item, in their order, from several processes.

    They are copies of this one where the system can; elsewhere `work` must be one that can be pickled.

    Args:
        work: The same function for all.
        items: What is sent to the processes.
        workers: How many; with one, the work is done here.
        doing: For the message: "a process that <doing> was killed".

    Raises:
        InputError: A process was killed.
    """
    if workers == 1 or len(items) < 2:
        yield from map(work, items)
        return
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(min(workers, len(items)), context, initializer=_start, initargs=(work,))
    try:
        yield from pool.map(_run, items)
    except BrokenProcessPool:
        raise InputError(f"a process that {doing} was killed; with less memory at hand try --workers 1") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(work: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is the parent's to tell
    _work[:] = [work]


def _run(item: Any) -> Any:
    return _work[0](item)
