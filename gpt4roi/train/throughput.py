"""Throughput of a training: tokens and regions a second, minutes left (ETA), and peak memory."""

from __future__ import annotations

import resource
import sys
import time

import torch


class ThroughputMeter:
    """Counts this process's tokens and regions, and turns them into rates of all processes, taken to be alike."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.tokens = self.regions = 0
        self.began: tuple[float, int] | None = None
        self.last = time.perf_counter()

    def update(self, tokens: int, regions: int) -> None:
        """Counts a batch."""
        self.tokens += tokens
        self.regions += regions

    def metrics(self, step: int, last_step: int) -> dict[str, float]:
        """Returns tokens and regions a second since the last call, peak memory, and minutes left to `last_step`."""
        now = time.perf_counter()
        seconds = max(now - self.last, 1e-9)
        found = {
            "tokens_per_second": round(self.processes * self.tokens / seconds, 1),
            "regions_per_second": round(self.processes * self.regions / seconds, 2),
            "peak_memory_gib": round(peak_memory() / 2**30, 2),
        }
        if self.began is None:
            # The first step warms up: the ETA is computed from the second step on.
            self.began = (now, step)
        elif step > self.began[1]:
            each = (now - self.began[0]) / (step - self.began[1])
            found["minutes_left"] = round(each * (last_step - step) / 60, 2)
        self.last, self.tokens, self.regions = now, 0, 0
        return found


def peak_memory() -> int:
    """Returns the most bytes that this process has used: of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
