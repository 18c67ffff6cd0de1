"""Opens annotations of 15,000 images with 1,000,000 captioned boxes, and reads them, beside json + COCO index.

    python benchmarks/annotation_index.py [--quick]

The file is in COCO's form, as Visual Genome's is (whose train.json is five times as large). The alternative is what
the original does in each process: pycocotools' COCO(file), which reads the JSON and builds dictionaries. Ours is the
reader `VGDATA`: its first opening reads the JSON once, filters the boxes and writes the index; each later one maps it.
Every opening is made in a process of its own; imports are not counted. Memory is the anonymous memory of the process
(RssAnon), which it shares with no other, after all images were read, less what it was before the opening. Reading an
image means its boxes as an array (xyxy) and their captions; drawing, a dialogue about 15 of them.
--quick: 1,500 images with 100,000 boxes.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, main

CAPTIONS = 20_000
REPEATS = 3
COCO_INDEX, FIRST, SECOND = "json + COCO index", "first opening", "later opening"


def write_file(path: Path, image_count: int, regions: int) -> None:
    """Writes a file in COCO's form with random boxes inside random images, each with a caption."""
    rng = np.random.default_rng(0)
    words = [f"word{number}" for number in range(3000)]
    captions = [" ".join(rng.choice(words, rng.integers(3, 9))) for _ in range(CAPTIONS)]
    sizes = rng.integers(300, 1025, (image_count, 2)).tolist()
    of_image = rng.integers(0, image_count, regions)
    share = rng.uniform(0.05, 0.45, (regions, 4)).round(3).tolist()
    images = [
        {"id": number, "file_name": f"{number}.jpg", "height": height, "width": width}
        for number, (height, width) in enumerate(sizes)
    ]
    annotations = []
    for number, (image, (x, y, w, h)) in enumerate(zip(of_image.tolist(), share, strict=True)):
        height, width = sizes[image]
        box = [round(x * width, 1), round(y * height, 1), round(w * width, 1), round(h * height, 1)]
        text = captions[number % CAPTIONS]
        annotations.append(
            {"id": number, "image_id": image, "category_id": 1, "bbox": box, "area": box[2] * box[3],
             "iscrowd": 0, "caption": text}
        )  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    path.write_text(json.dumps(content))


def private_memory() -> float:
    """Returns the megabytes that only this process holds."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def open_coco(file: Path, cache: Path) -> tuple[int, Callable[[int], Any], Callable[[int], Any]]:
    """Opens the alternative: how many images, and how one of them is read."""
    from pycocotools.coco import COCO

    coco = COCO(str(file))

    def read(index: int) -> tuple[np.ndarray, list[str]]:
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[index]))
        boxes = np.asarray([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes, [annotation["caption"] for annotation in annotations]

    return len(coco.imgs), read, read


def open_ours(file: Path, cache: Path) -> tuple[int, Callable[[int], Any], Callable[[int], Any]]:
    """Opens ours: how many images, how one of them is read, and how a dialogue about it is drawn."""
    from gpt4roi.data import index
    from gpt4roi.data.readers.vg import VisualGenome

    index.index_folders = lambda: [cache]
    reader = VisualGenome(file)

    def read(number: int) -> tuple[np.ndarray, list[str]]:
        return reader.columns["boxes"][reader.regions(number)], reader.texts(number)

    return len(reader), read, lambda number: reader.sample(number, np.random.default_rng([0, 0, number]))


def opening(way: str, file: Path, cache: Path) -> dict[str, float]:
    """Measures one opening, and the reading of all images, in this process."""
    for module in ("pycocotools.coco", "gpt4roi.data.readers.vg"):
        importlib.import_module(module)
    opener = open_coco if way == COCO_INDEX else open_ours
    before, start = private_memory(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        count, read, draw = opener(file, cache)
    seconds = time.process_time() - start
    spent = {}
    for name, once in (("read", read), ("draw", draw)):
        start = time.process_time()
        for number in range(count):
            once(number)
        spent[name] = (time.process_time() - start) / count * 1e6
    return {"seconds": seconds, "memory": private_memory() - before, **spent}


def equality(file: Path, cache: Path) -> str:
    """Compares boxes and captions of every image; raises AssertionError where they differ."""
    with contextlib.redirect_stdout(io.StringIO()):
        count, read_coco, _ = open_coco(file, cache)
        ours, read_ours, _ = open_ours(file, cache)
    assert ours == count, f"{ours} images of {count}"
    for number in range(count):
        (boxes, texts), (own_boxes, own_texts) = read_coco(number), read_ours(number)
        assert texts == own_texts and np.array_equal(boxes, own_boxes), f"image {number} differs"
    return f"boxes and captions of all {count} images equal"


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(quick: bool) -> Iterator[Row]:
    """Times openings and readings of one file."""
    images, regions = (1_500, 100_000) if quick else (15_000, 1_000_000)
    case = f"{images:,} images, {regions:,} boxes"
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "train.json"
        apart(write_file, file, images, regions)
        seen: dict[str, list[dict[str, float]]] = {COCO_INDEX: [], FIRST: [], SECOND: []}
        for turn in range(1 if quick else REPEATS):
            cache = Path(scratch) / f"cache{turn}"
            for way in seen:
                seen[way].append(apart(opening, way, file, cache))
        equal = apart(equality, file, Path(scratch) / "cache0")

    def row(title: str, way: str, value: str, unit: str) -> Row:
        theirs, own = ([run[value] for run in seen[name]] for name in (COCO_INDEX, way))
        return Row(f"{case}: {title}", COCO_INDEX, f"ours, {way}", theirs, own, equal, unit, "cpu")

    yield row("opened", FIRST, "seconds", "CPU-s")
    yield row("opened", SECOND, "seconds", "CPU-s")
    yield row("private memory", SECOND, "memory", "MB")
    yield row("an image read", SECOND, "read", "CPU-µs")
    yield row("an image read, or a dialogue drawn", SECOND, "draw", "CPU-µs")


if __name__ == "__main__":
    main(measure, __doc__)
