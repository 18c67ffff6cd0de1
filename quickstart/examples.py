"""Writes the example images of a model's page: `python -m quickstart.examples DATA MODEL` (both folders).

They are photographs of the benchmark, with boxes that the vision tower's own head names acceptably: examples show what
a model can do, the benchmark how often.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from gpt4roi.data.unified import read_objects
from gpt4roi.io.atomic import atomic_write_text
from quickstart.accepted import is_accepted
from quickstart.splits import PHOTOGRAPHS


def write_examples(data: Path, model: Path) -> int:
    """Writes model/examples.json and returns how many images it names; none where the data have no photographs."""
    file = data / f"{PHOTOGRAPHS[1]}.jsonl"
    entries = []
    for _, record in read_objects(file) if file.exists() else ():
        pairs = zip(record["boxes"], record["objects"], strict=True)
        boxes = [box for box, thing in pairs if is_accepted(thing["head"], thing["accepted"])]
        if record.get("title") and boxes:
            image = os.path.relpath(data / record["image"], model)
            entries.append(json.dumps({"image": image, "title": record["title"], "boxes": boxes}, ensure_ascii=False))
    if entries:
        atomic_write_text(model / "examples.json", "[\n " + ",\n ".join(entries) + "\n]\n")
    return len(entries)


if __name__ == "__main__":
    print(f"{write_examples(Path(sys.argv[1]), Path(sys.argv[2]))} example images", file=sys.stderr)
