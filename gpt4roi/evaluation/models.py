"""Which model answers: one of ours, or a Python file that wraps another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.evaluation.asking import Ask
from gpt4roi.io.python_files import import_file

_BLOCKS, _BLOCK = 64, 1 << 16
_WEIGHTS = (".safetensors", ".bin")


class WrappedModel:
    """A Python file as an answerer: its `answer(asks)`, and its `likelihoods(asks)` if it has one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        module = import_file(self.path, "--model")
        if not callable(getattr(module, "answer", None)):
            raise InputError(f"--model {path}: defines no function answer(asks) that returns a text for each question")
        self._answer = module.answer
        if callable(getattr(module, "likelihoods", None)):
            self.likelihoods = module.likelihoods

    def __call__(self, asks: Sequence[Ask]) -> list[str]:
        """Returns what the file's function answers."""
        return list(self._answer(asks))


def is_wrapper(model: str) -> bool:
    """Tells whether a model is given as a Python file."""
    return model.endswith(".py")


def fingerprint(folder: str | Path) -> dict[str, Any]:
    """Returns what tells a model from others: small files whole, of weights the size and 64 pieces.

    A file, such as a wrapper, is taken whole; what is no path, such as a hub name, stands for itself.
    """
    path = Path(folder)
    if path.is_file():
        return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    if not path.is_dir():
        return {"name": str(folder)}
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.suffix in (".json", ".model", ".jinja", ".txt", *_WEIGHTS) and file.is_file():
            digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
            _add_pieces(digest, file)
    return {"sha256": digest.hexdigest()}


def _add_pieces(digest: Any, file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        for number in range(_BLOCKS if size > _BLOCKS * _BLOCK else 1):
            stream.seek(number * (size // _BLOCKS) if size > _BLOCKS * _BLOCK else 0)
            digest.update(stream.read(_BLOCK if size > _BLOCKS * _BLOCK else -1))
