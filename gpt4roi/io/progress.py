"""Progress lines of a long job: how much is done, items per second, time left."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10


class Progress:
    """Logs a line every few seconds and at the end; of several processes, the first one alone."""

    def __init__(self, total: int, unit: str, rank: int = 0, size: int = 1) -> None:
        """total: this process's items, which are called `unit`; rank, size: of how many processes this is which."""
        self.total, self.quiet = total, rank != 0
        self.unit = unit if size == 1 else f"{unit} (of {size} processes)"
        self.done, self.started, self.logged = 0, time.monotonic(), 0.0

    def update(self, count: int) -> None:
        """Counts finished items."""
        self.done += count
        seconds = time.monotonic() - self.started
        if self.quiet or (seconds - self.logged <= SECONDS_BETWEEN_LINES and self.done != self.total):
            return
        self.logged = seconds
        rate = self.done / max(seconds, 1e-9)
        left = _duration(max(self.total - self.done, 0) / max(rate, 1e-9))
        logger.info("%d of %d %s, %.1f a second, %s left", self.done, self.total, self.unit, rate, left)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
