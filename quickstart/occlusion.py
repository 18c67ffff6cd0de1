"""Where a model's answers about scenes looked: `python -m quickstart.occlusion DATA MODEL` (both folders).

The part of the occlusion (`gpt4roi explain`) of each answer that lies inside of the asked region, and of another one of
the same image: of a model that looks at the asked region, the first is high and the second low. In
test_overlapping.jsonl, where there is one, regions are masks, and the other's box is nearly the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi import RegionChat
from gpt4roi.data.unified import read_objects
from gpt4roi.errors import InputError
from gpt4roi.evaluation.metrics import exact_match
from gpt4roi.geometry.masks import to_pixels

FILES = ("test_overlapping.jsonl", "test.jsonl")
PARTS = ("region", "other", "box")


def shares(chat: Any, file: Path, count: int, cells: int = 6) -> Iterator[dict[str, Any]]:
    """Yields of one region of each of the first images the parts of its occlusion, `right`, and what was said."""
    for number, (_, record) in zip(range(count), read_objects(file), strict=False):
        masks = record.get("masks")
        regions = masks or record["boxes"]
        asked = number % len(regions)
        other = asked ^ 1 if masks else (asked + 1) % len(regions)  # the two of a pair follow each other
        image = file.parent / record["image"]
        found = chat.explain([regions[asked]], image=image, methods=["occlusion"], cells=cells)
        heat, caption = found.heatmaps["occlusion"], record["objects"][asked]["caption"]
        size = int(heat.y[-1]), int(heat.x[-1])
        elsewhere = to_pixels(regions[other], size) > 0 if masks else regions[other]
        parts = {"region": found.inside("occlusion")[0], "other": heat.share_inside(elsewhere)}
        parts["box"] = heat.share_inside(found.boxes_px[0])
        right = exact_match(found.answer, caption)
        yield {"image": record["image"], "caption": caption, "answer": found.answer, "right": right, **parts}


def main() -> None:
    """Prints one line a region, and the medians, of all answers and of the right ones, as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of python -m quickstart")
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("--file", metavar="NAME", help=f"in the folder (default: {FILES[0]}, else {FILES[1]})")
    parser.add_argument("--regions", type=int, default=20, help="one of each image (default: %(default)s)")
    parser.add_argument("--cells", type=int, default=6, help="as of gpt4roi explain (default: %(default)s)")
    args = parser.parse_args()
    names = FILES if args.file is None else (args.file,)
    file = next((args.data / name for name in names if (args.data / name).is_file()), None)
    if file is None:
        raise InputError(f"{args.data}: no {names[-1]}; make it: python -m quickstart --out {args.data}")
    rows = []
    for row in shares(RegionChat.from_pretrained(args.model), file, args.regions, args.cells):
        print("  ".join(f"{part} {row[part]:.2f}" for part in PARTS), f" {row['caption']}: {row['answer']}", flush=True)
        rows.append(row)
    right = [row for row in rows if row["right"]]
    print(
        json.dumps({"file": file.name, "n": len(rows), **medians(rows), "right": {"n": len(right), **medians(right)}})
    )


def medians(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns the median of each part; of no rows nothing."""
    return {part: round(float(np.median([row[part] for row in rows])), 3) for part in PARTS if rows}


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"quickstart: {error}")
