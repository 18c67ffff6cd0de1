"""Training of both stages: `python -m gpt4roi.train`, or `gpt4roi.train.main(argv)` from Python."""

from gpt4roi.train.training import main

__all__ = ["main"]
