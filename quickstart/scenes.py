"""Composes scenes: stamps at free places and scales on a crop of a photograph. Boxes are exact by construction."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from gpt4roi.io.worker_pool import parallel_map
from quickstart.library import Photograph, Stamp

REFERENCE_SIZE = 256
"""Side of a scene, in pixels, that the lengths below are meant for; other sizes scale them."""
COUNTS = (3, 4, 5)
"""Stamps in a scene, each as often as the others, so that no answer to "how many" is a good guess."""
SMALLEST_SIDE = 24
LONGEST_SIDE = 150
SMALLEST_MEAN_SIDE = 42
"""Mean side: the square root of a box's area, drawn evenly on a logarithmic scale."""
LARGEST_MEAN_SIDE = {3: 120, 4: 108, 5: 96}
MAX_ENLARGEMENT = 2.0
MAX_COVERED = 0.15
"""Part of a stamp's box that the boxes of other stamps may share."""
SMALLEST_CROP = 0.5
"""Smallest side of the crop of a photograph, as a part of its shorter side."""
_CHUNK = 16
"""Scenes that a process composes at a time."""
Box: TypeAlias = tuple[int, int, int, int]
"""x1, y1, x2, y2 in whole pixels."""


@dataclass(frozen=True)
class Placed:
    """One stamp in a scene. stamp: its index; box: x1, y1, x2, y2 in whole pixels; layer: 0 is drawn first."""

    stamp: int
    box: Box
    flip: bool
    layer: int


@dataclass(frozen=True)
class Background:
    """How a photograph is cropped and coloured. crop: x, y, side in its pixels; gains: red, green, blue."""

    photograph: int
    crop: tuple[int, int, int]
    flip: bool
    contrast: float
    gains: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """Everything that an image is composed from; objects are in the order of their region numbers."""

    name: str
    size: int
    background: Background
    objects: tuple[Placed, ...]


def captions_to_stamps(stamps: Sequence[Stamp], allowed: Sequence[int]) -> list[list[int]]:
    """Groups the allowed indices of stamps by their caption, in the order in which captions first come."""
    groups: dict[str, list[int]] = {}
    for index in allowed:
        groups.setdefault(stamps[index].caption, []).append(index)
    return list(groups.values())


def deal(rng: np.random.Generator, groups: Sequence[Sequence[int]], scenes: int) -> list[list[int]]:
    """Deals stamps to scenes like cards of a shuffled deck, so that each comes about as often as any other.

    groups: indices of the stamps to choose from, one list a caption; a scene never gets two of one caption.
    """
    caption_of = {stamp: number for number, group in enumerate(groups) for stamp in group}
    deck: list[int] = []
    hands = []
    for count in rng.choice(COUNTS, size=scenes):
        hand: list[int] = []
        put_back: list[int] = []
        while len(hand) < count:
            deck = deck or rng.permutation(sorted(caption_of)).tolist()
            card = deck.pop()
            (put_back if caption_of[card] in {caption_of[stamp] for stamp in hand} else hand).append(card)
        deck += put_back
        hands.append(hand)
    return hands


def lay_out(
    rng: np.random.Generator,
    name: str,
    size: int,
    stamps: Sequence[Stamp],
    chosen: Sequence[int],
    photographs: Sequence[Photograph],
) -> Scene:
    """Draws one scene of the chosen stamps (indices): their scales and places, and the background."""
    count = len(chosen)
    boxes = None
    while boxes is None:
        sizes = [_draw_size(rng, stamps[index].image.size, count, size / REFERENCE_SIZE) for index in chosen]
        boxes = _place(rng, sizes, size)
    order = np.argsort([-w * h for w, h in sizes], kind="stable")
    layers = {int(index): layer for layer, index in enumerate(order)}
    objects = [Placed(s, boxes[i], bool(rng.integers(2)), layers[i]) for i, s in enumerate(chosen)]
    return Scene(name, size, draw_background(rng, photographs), tuple(objects))


def _draw_size(rng: np.random.Generator, native: tuple[int, int], count: int, unit: float) -> tuple[int, int]:
    """Draws the (width, height) in scene pixels of a stamp whose file has the native size; unit: scene size / 256."""
    width, height = native
    mean = math.sqrt(width * height)
    low, high = math.log(SMALLEST_MEAN_SIDE), math.log(LARGEST_MEAN_SIDE[count])
    target = math.exp(rng.uniform(low, high))
    scale = min(target / mean, MAX_ENLARGEMENT, LONGEST_SIDE / max(native))
    scale = max(scale, SMALLEST_SIDE / min(native)) * unit
    # Rounded up, so that no side falls below the smallest.
    return math.ceil(width * scale), math.ceil(height * scale)


def shared_area(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns the area that two boxes share, in square pixels."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _place(rng: np.random.Generator, sizes: Sequence[tuple[int, int]], size: int) -> list[Box] | None:
    """Finds a place for every stamp, the largest first; None where some stamp finds none in 40 tries."""
    boxes: dict[int, Box] = {}
    room = [MAX_COVERED * w * h for w, h in sizes]
    for index in np.argsort([-w * h for w, h in sizes], kind="stable"):
        width, height = sizes[index]
        if max(width, height) > size:
            return None
        for _ in range(40):
            x, y = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
            box = (x, y, x + width, y + height)
            shared = [shared_area(box, boxes[other]) if other in boxes else 0 for other in range(len(sizes))]
            if sum(shared) <= room[index] and all(s <= r for s, r in zip(shared, room, strict=True)):
                room = [r - s for r, s in zip(room, shared, strict=True)]
                room[index] -= sum(shared)
                boxes[index] = box
                break
        else:
            return None
    return [boxes[index] for index in range(len(sizes))]


def draw_background(rng: np.random.Generator, photographs: Sequence[Photograph]) -> Background:
    """Draws a crop of a photograph, and its colours."""
    photograph = int(rng.integers(len(photographs)))
    width, height = photographs[photograph].image.size
    side = int(min(width, height) * rng.uniform(SMALLEST_CROP, 1.0))
    crop = (int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1)), side)
    brightness = rng.uniform(0.7, 1.25)
    red, green, blue = (float(brightness * gain) for gain in rng.uniform(0.8, 1.2, size=3))
    return Background(photograph, crop, bool(rng.integers(2)), float(rng.uniform(0.6, 1.1)), (red, green, blue))


def paint_background(background: Background, photographs: Sequence[Photograph], size: int) -> Image.Image:
    """Returns the cropped, mirrored and coloured photograph as an RGB image of size × size."""
    x, y, side = background.crop
    image = photographs[background.photograph].image
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side), reducing_gap=2.0)
    if background.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    levels = np.arange(256, dtype=np.float64)
    tables = [np.clip(((levels - 128) * background.contrast + 128) * gain, 0, 255) for gain in background.gains]
    return image.point([int(value) for table in tables for value in table])


def compose(scene: Scene, stamps: Sequence[Stamp], photographs: Sequence[Photograph]) -> Image.Image:
    """Returns the scene as an RGB image."""
    canvas = paint_background(scene.background, photographs, scene.size)
    for placed in sorted(scene.objects, key=lambda placed: placed.layer):
        cutout = cut_out(placed, stamps)
        canvas.paste(cutout, placed.box[:2], cutout)
    return canvas


def cut_out(placed: Placed, stamps: Sequence[Stamp]) -> Image.Image:
    """Returns a stamp as it is pasted, RGBA of its box's size."""
    x1, y1, x2, y2 = placed.box
    cutout = stamps[placed.stamp].image.resize((x2 - x1, y2 - y1), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if placed.flip else cutout


def write_images(
    scenes: Sequence[Scene],
    stamps: Sequence[Stamp],
    photographs: Sequence[Photograph],
    folder: Path,
    workers: int = 1,
) -> Iterator[int]:
    """Composes the scenes and writes folder/NAME.png for each; yields each index when its image is written.

    Raises InputError where a process was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def write(indices: Sequence[int]) -> Sequence[int]:
        for index in indices:
            image = compose(scenes[index], stamps, photographs)
            image.save(folder / f"{scenes[index].name}.png", compress_level=1)
        return indices

    chunks = [range(start, min(start + _CHUNK, len(scenes))) for start in range(0, len(scenes), _CHUNK)]
    # Only where forking is safe and cheap; elsewhere the few seconds more are no harm.
    for done in parallel_map(write, chunks, workers if sys.platform == "linux" else 1, "composed images"):
        yield from done
