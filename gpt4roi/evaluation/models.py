"""WrappedModel: a Python file that wraps another model, as a predictor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt4roi.errors import InputError
from gpt4roi.evaluation.predictor import Query
from gpt4roi.io.python_files import import_file


class WrappedModel:
    """A Python file as a predictor: its `answer(queries)`, and its `likelihoods(queries)` if it has one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        module = import_file(self.path, "--model")
        if not callable(getattr(module, "answer", None)):
            raise InputError(
                f"--model {path}: defines no function answer(queries) that returns a text for each question"
            )
        self._answer = module.answer
        if callable(getattr(module, "likelihoods", None)):
            self.likelihoods = module.likelihoods

    def __call__(self, queries: Sequence[Query]) -> list[str]:
        """Returns what the file's function answers."""
        return list(self._answer(queries))


def is_wrapper(model: str) -> bool:
    """Tells whether a model is given as a Python file."""
    return model.endswith(".py")
