"""Call trace of one training sample and of one answer on a tiny model: which functions of gpt4roi run, in order.

    PYTHONPATH=tests .venv/bin/python -m scripts.walk

Lambdas, comprehensions and the methods that dataclasses generate do not count. The second sample and the second
conversation are traced, so that what is done once a run does not count either.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
from PIL import Image

from scripts.house import PACKAGE, ROOT

sys.path.insert(0, str(ROOT / "tests"))


@dataclass
class Walk:
    """Functions of gpt4roi in the order of their first call, as (file inside the package, name)."""

    steps: list[tuple[str, str]] = field(default_factory=list)

    @property
    def files(self) -> list[str]:
        """The files passed, in order."""
        return list(dict.fromkeys(file for file, _ in self.steps))

    def outside(self, package: str) -> list[str]:
        """The files passed that do not lie in this package."""
        return [file for file in self.files if not file.startswith(f"{package}/")]


@contextmanager
def traced() -> Iterator[Walk]:
    """Records the calls of this thread."""
    walk, seen = Walk(), set[CodeType]()

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if event != "call" or code in seen or not code.co_filename.startswith(f"{PACKAGE}/"):
            return
        seen.add(code)
        name = getattr(code, "co_qualname", code.co_name)
        if not code.co_name.startswith("<"):
            walk.steps.append((str(Path(code.co_filename).relative_to(PACKAGE)), name))

    sys.setprofile(note)
    try:
        yield walk
    finally:
        sys.setprofile(None)


def _image(folder: Path) -> Path:
    Image.fromarray(np.full((48, 64, 3), 90, dtype=np.uint8)).save(folder / "a.png")
    return folder / "a.png"


def _second(work: Callable[[], object]) -> Walk:
    work()
    with traced() as walk:
        work()
    return walk


def training_sample() -> tuple[Walk, Walk]:
    """Returns the walk from the reader to the batch, and that from the batch to the loss."""
    from tiny import tiny_model, tiny_processor

    from gpt4roi.data.registry import build_mixture
    from gpt4roi.data.training_dataset import EncodedDataset
    from gpt4roi.processing.batch import RegionCollator

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entry: dict[str, Any] = {"image": _image(folder).name, "boxes": [[4, 4, 30, 40], [20, 8, 60, 44]]}
        texts = [("human", "What is <region1>, left of <region2>?"), ("gpt", "a red apple")]
        entry["conversations"] = [{"from": role, "value": text} for role, text in texts]
        (folder / "a.jsonl").write_text(json.dumps(entry), encoding="utf-8")
        mixture = build_mixture([{"type": "unified", "ann_file": str(folder / "a.jsonl")}], 0)
        model = tiny_model("clip").train()
        processor = tiny_processor(model.config)
        dataset, collate = EncodedDataset(mixture, processor, seed=0), RegionCollator(processor.tokenizer.pad_token_id)
        to_batch = _second(lambda: collate([dataset[0]]))
        names = ("input_ids", "attention_mask", "labels", "pixel_values", "boxes")
        batch = {name: value for name, value in collate([dataset[0]]).items() if name in names}
        return to_batch, _second(lambda: model(**batch).loss)


def answer() -> Walk:
    """Returns the walk from an image and a question to the text of the answer."""
    from tiny import tiny_model, tiny_processor

    from gpt4roi import RegionChat

    model = tiny_model("clip")
    chat = RegionChat(model, tiny_processor(model.config))

    def ask() -> None:
        chat.set_image(path)
        chat.ask("What is <region1>?", [[4, 4, 30, 40]], max_new_tokens=4)

    with tempfile.TemporaryDirectory() as name:
        path = _image(Path(name))
        return _second(ask)


def main() -> None:
    """Prints the walks."""
    to_batch, to_loss = training_sample()
    walks = {
        "training sample, file to batch": to_batch,
        "batch to loss": to_loss,
        "image and question to text": answer(),
    }
    for title, walk in walks.items():
        print(f"\n{title}: {len(walk.steps)} functions in {len(walk.files)} files")
        for number, (file, name) in enumerate(walk.steps, start=1):
            print(f"{number:4} {file:36} {name}")


if __name__ == "__main__":
    main()
