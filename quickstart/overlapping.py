"""Scenes of overlapping pairs, for models that read masks: `python -m quickstart.overlapping DATA` adds them to it.

Two things lie on each other so that their boxes nearly coincide, and only what can be seen of each tells them apart.
Regions are masks of what can be seen, exact by construction. Of train_overlapping.jsonl and test_overlapping.jsonl, the
second is on photographs that no training scene shows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gpt4roi.errors import InputError
from gpt4roi.geometry.masks import to_box, to_runs
from gpt4roi.io.atomic import atomic_write_text
from gpt4roi.io.json_files import read_json_object
from quickstart import questions, scenes
from quickstart.library import ALPHA_THRESHOLD, Photograph, Stamp
from quickstart.make import gather_material
from quickstart.splits import SPLITS, Material, StampArguments

SCENES = {"train_overlapping": 400, "test_overlapping": 100}
PAIRS = 2
"""In a scene."""
SMALLEST_IOU = 0.6
"""Of the boxes around what can be seen of a pair's things."""
SMALLEST_SHARE = 0.35
"""Of the lower thing, that can be seen."""
SIDES = (70, 115)
"""Mean side of a thing: the square root of its box's area, in pixels of a scene of 256."""
TRIES = 40
"""Places that a pair is tried at, before another one is drawn."""


@dataclass(frozen=True)
class Pair:
    """Two things on each other, the lower one first, and what can be seen of them: bool[size, size] each."""

    things: tuple[scenes.Placed, scenes.Placed]
    masks: tuple[np.ndarray, np.ndarray]
    iou: float


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Returns the area that two boxes share, over that of both together."""
    shared = scenes.shared_area(first, second)
    return shared / (questions.area(first) + questions.area(second) - shared)


def lay_out_pair(
    rng: np.random.Generator, stamps: Sequence[Stamp], chosen: Sequence[int], size: int, taken: np.ndarray
) -> Pair | None:
    """Finds a place for two stamps (indices) on each other, beside what is taken, bool[size, size], if there is one."""
    unit = size / scenes.REFERENCE_SIZE
    for _ in range(TRIES):
        mean = np.exp(rng.uniform(*np.log(SIDES))) * unit
        sides = [_scaled(stamps[index].image.size, mean * rng.uniform(0.9, 1.1)) for index in chosen]
        if max(map(max, sides)) >= size:
            continue
        (width, height), (over_width, over_height) = sides
        x, y = rng.integers(size - width), rng.integers(size - height)
        dx, dy = rng.uniform(-0.15, 0.15, 2) * mean
        over_x, over_y = x + (width - over_width) / 2 + dx, y + (height - over_height) / 2 + dy
        if min(over_x, over_y) < 0 or over_x + over_width > size or over_y + over_height > size:
            continue
        corners = [(int(x), int(y)), (int(over_x), int(over_y))]
        things = tuple(
            scenes.Placed(stamp, (*corner, corner[0] + side[0], corner[1] + side[1]), bool(rng.integers(2)), layer)
            for layer, (stamp, corner, side) in enumerate(zip(chosen, corners, sides, strict=True))
        )
        if iou(things[0].box, things[1].box) < SMALLEST_IOU:  # quick to see
            continue
        below, above = (_drawn(thing, stamps, size) for thing in things)
        seen = below & ~above
        if seen.sum() < SMALLEST_SHARE * below.sum() or ((below | above) & taken).any():
            continue
        shared = iou(to_box(seen).tolist(), to_box(above).tolist())
        if shared >= SMALLEST_IOU:
            return Pair((things[0], things[1]), (seen, above), shared)
    return None


def _scaled(native: tuple[int, int], mean: float) -> tuple[int, int]:
    width, height = native
    scale = min(mean / np.sqrt(width * height), scenes.MAX_ENLARGEMENT)
    return int(np.ceil(width * scale)), int(np.ceil(height * scale))


def _drawn(thing: scenes.Placed, stamps: Sequence[Stamp], size: int) -> np.ndarray:
    """Returns the pixels of a scene that a stamp covers, bool[size, size]."""
    covered = np.zeros((size, size), dtype=bool)
    x1, y1, x2, y2 = thing.box
    covered[y1:y2, x1:x2] = np.asarray(scenes.cut_out(thing, stamps).getchannel("A")) > ALPHA_THRESHOLD
    return covered


def lay_out(
    rng: np.random.Generator, name: str, size: int, stamps: Sequence[Stamp], groups: Sequence[Sequence[int]]
) -> list[Pair]:
    """Draws the pairs of a scene, no two things of one caption; groups: indices of stamps, one list a caption."""
    pairs: list[Pair] = []
    used: set[int] = set()
    taken = np.zeros((size, size), dtype=bool)
    while len(pairs) < PAIRS:
        captions = [one for one in rng.permutation(len(groups)).tolist() if one not in used][:2]
        pair = lay_out_pair(rng, stamps, [int(rng.choice(groups[one])) for one in captions], size, taken)
        if pair is not None:
            pairs.append(pair)
            used.update(captions)
            taken = taken | pair.masks[0] | pair.masks[1]
    return pairs


def write_overlapping(out: Path, material: Material, arguments: StampArguments, counts: dict[str, int]) -> None:
    """Writes images and questions of both files, which appear when they are complete."""
    groups = scenes.captions_to_stamps(material.stamps, range(len(material.stamps)))
    manifest = read_json_object(out / "manifest.json")
    unseen = set(manifest["captions"]["unseen"])
    groups = [group for group in groups if material.stamps[group[0]].caption not in unseen]
    for number, (split, count) in enumerate(counts.items()):
        photographs = material.held_out_photographs if split.startswith("test") else material.photographs
        laid, records = [], []
        for index in tqdm(range(count), desc=f"{split} scenes", file=sys.stderr):
            rng = np.random.default_rng([arguments.seed, len(SPLITS) + number, index])
            name = f"{index:06d}"
            pairs = lay_out(rng, name, arguments.size, material.stamps, groups)
            laid.append(_scene(rng, name, arguments.size, pairs, photographs))
            records.append(_record(split, name, arguments.size, pairs, material.stamps))
        written = scenes.write_images(laid, material.stamps, photographs, out / "images" / split)
        assert sum(1 for _ in written) == count
        atomic_write_text(
            out / f"{split}.jsonl", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)
        )


def _scene(
    rng: np.random.Generator, name: str, size: int, pairs: Sequence[Pair], photographs: Sequence[Photograph]
) -> scenes.Scene:
    background = scenes.draw_background(rng, photographs)
    return scenes.Scene(name, size, background, tuple(thing for pair in pairs for thing in pair.things))


def _record(split: str, name: str, size: int, pairs: Sequence[Pair], stamps: Sequence[Stamp]) -> dict:
    things = [stamps[thing.stamp] for pair in pairs for thing in pair.things]
    captions = [thing.caption for thing in things]
    masks = [mask for pair in pairs for mask in pair.masks]
    boxes = [to_box(mask).tolist() for mask in masks]
    asked = [questions.ask("caption", boxes, captions, [region]) for region in range(len(things))]
    return {
        "id": f"{split}-{name}",
        "image": f"images/{split}/{name}.png",
        "masks": [to_runs(mask) for mask in masks],
        "conversations": questions.conversations(asked),
        "independent": True,
        "objects": [{"caption": thing.caption, "stamp": thing.name, "kind": thing.kind} for thing in things],
        "tasks": ["caption"] * len(asked),
        "iou": [round(pair.iou, 3) for pair in pairs],
    }


def main() -> None:
    """Reads the command line, and adds the files to a finished folder of the data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder that python -m quickstart wrote")
    parser.add_argument("--scenes", type=int, default=SCENES["train_overlapping"], help="default: %(default)s")
    parser.add_argument("--test-scenes", type=int, default=SCENES["test_overlapping"], help="default: %(default)s")
    args = parser.parse_args()
    if not (args.data / "manifest.json").is_file():
        raise InputError(f"{args.data}: no finished data set; make it first: python -m quickstart --out {args.data}")
    arguments = StampArguments(**read_json_object(args.data / "manifest.json")["arguments"])
    material = gather_material(arguments, args.data / "downloads", [])
    write_overlapping(args.data, material, arguments, dict(zip(SCENES, (args.scenes, args.test_scenes), strict=True)))
    print(f"{args.data}: {' and '.join(f'{name}.jsonl' for name in SCENES)} written")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"quickstart: {error}")
