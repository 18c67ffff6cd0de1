"""What the benchmarks share: timing in turn, and a table of medians with ratios."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch


def machine() -> str:
    """Describes the processor, the cores, the load and the threads that PyTorch uses, in one line."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    load = os.getloadavg()[0]
    threads = torch.get_num_threads()
    return f"{name}, {os.cpu_count()} cores, load {load:.1f}; torch {torch.__version__}, {threads} thread(s)"


def time_in_turn(ways: dict[str, Callable[[], object]], repeats: int, warm_ups: int = 1) -> dict[str, list[float]]:
    """Times several ways of doing the same, one after the other in each round, so that all see the same machine.

    Returns CPU-seconds of this process, which other jobs of a shared machine disturb less than the clock.
    """
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warm_ups + repeats):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if turn >= warm_ups:
                spent[name].append(time.process_time() - start)
    return spent


def row(title: str, spent: dict[str, list[float]]) -> str:
    """Formats a line: the median and the range of each way, and how many times faster the last is than the first."""
    cells = [f"{statistics.median(times):9.3f} ({min(times):.3f}-{max(times):.3f})" for times in spent.values()]
    medians = [statistics.median(times) for times in spent.values()]
    return f"{title:34}" + "".join(f"{cell:>28}" for cell in cells) + f"{medians[0] / medians[-1]:9.2f}x"


def heading(ways: list[str]) -> str:
    """Formats the line above the rows."""
    return f"{'CPU-seconds: median (range)':34}" + "".join(f"{way:>28}" for way in ways) + f"{'ratio':>10}"


def difference(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Returns the largest difference, as a part of the reference's largest value."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def say(line: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
