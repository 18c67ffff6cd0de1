"""Training of both stages: `python -m gpt4roi.train`, or `gpt4roi.train.main(argv)` from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(argv: Sequence[str]) -> Path:
    """Trains as the arguments say and returns the work directory; see `gpt4roi.train.training.main`."""
    from gpt4roi.train.training import main as train  # torch and transformers are imported only now

    return train(argv)
