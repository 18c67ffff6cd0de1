"""Files in COCO's form: images, and annotations that say which image they lie in.

The filters of boxes and images, and their order, are those of the original (mmdetection's for COCO).
"""

from __future__ import annotations

import copy
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gpt4roi.data.annotations import (
    Drops,
    LeftOutError,
    UnusableError,
    file_name,
    length,
    listed,
    number,
    numbers,
    parse_json,
    text,
)
from gpt4roi.data.base import Item
from gpt4roi.data.columns import Columns
from gpt4roi.data.indexed import IndexedDataset, make_columns
from gpt4roi.geometry import boxes as box_ops
from gpt4roi.structures import Augmentation, RegionSample, Turn

FRAME = 224
"""Side of the square that the original's filters of small boxes look at, in pixels."""
SMALLEST_BOX = 2.0
"""A box this wide or high in the frame, or less, is left out."""
SMALLEST_IMAGE = 32

IMAGES, ANNOTATIONS = 0, 1
SMALL_BOX = f"box of {SMALLEST_BOX:g} px or less once the image is {FRAME} px wide and high"
NO_BOX = "image without a box that can be used"


class CocoStyleDataset(IndexedDataset):
    """Reads a file in COCO's form; subclasses say which annotations they take and what these are called.

    ann_file: the annotations as published. img_prefix: the folder of the images.
    max_gt_per_img: how many boxes one visit takes at most, of those in their drawn order.
    test_mode: no augmentation (only coco_det has any).
    Raises InputError where the file is not of this form, or nothing of it can be used.
    """

    crowds = False
    """Whether boxes marked `iscrowd` are taken."""
    captions = False
    """Whether an image has a caption, without which it is left out."""

    def __init__(
        self, ann_file: str | Path, img_prefix: str | Path, max_gt_per_img: int, test_mode: bool, options: str = ""
    ) -> None:
        super().__init__([ann_file], img_prefix, options)
        self.max_gt_per_img, self.test_mode = max_gt_per_img, test_mode

    def file_name(self, name: str) -> str:
        """Returns the name an image has in the folder."""
        return name

    def caption(self, value: Any) -> str:
        """Checks an image's caption; raises UnusableError where its image is left out for it."""
        return text(value, "caption of the image")

    def categories(self, path: Path, content: dict) -> dict[Any, str] | None:
        """Returns the name of each category whose boxes are taken, by id; None takes all."""
        return None

    def region_text(self, annotation: dict, caption: str, category: str) -> str:
        """Returns what a box is called; raises UnusableError where the box is left out for it."""
        raise NotImplementedError

    def build(self, contents: list[bytes]) -> Columns:
        path = self.files[0]
        content = parse_json(path, contents.pop())
        images = listed(path, content, "images", "a file in COCO's form")
        annotations = listed(path, content, "annotations", "a file in COCO's form")
        categories = self.categories(path, content)
        drops = Drops([(0, "images"), (0, "annotations")])
        image_table = _Images(self, images, drops)
        regions = _Regions(self, annotations, image_table, categories, drops)
        return regions.columns()

    def unaugmented(self) -> CocoStyleDataset:
        same = copy.copy(self)
        same.test_mode = True
        return same

    def size(self, index: int) -> tuple[int, int]:
        """Returns (height, width) of an item's image as the file tells it."""
        height, width = self.columns["size"][index].tolist()
        return height, width

    def regions(self, index: int) -> slice:
        """Returns where an item's boxes lie in the columns of boxes."""
        first, end = self.columns["first"][index : index + 2].tolist()
        return slice(first, end)

    def item(self, index: int) -> Item:
        columns, where = self.columns, self.regions(index)
        return Item(
            image=self.image(index),
            boxes_px=columns["boxes"][where].copy(),
            image_size=self.size(index),
            region_texts=tuple(self.texts(index)),
            box_sources=tuple(self.place(one, ANNOTATIONS) for one in columns["box_position"][where].tolist()),
            caption=columns.text("caption", index) if self.captions else "",
            source=self.place(int(columns["position"][index])),
        )

    def texts(self, index: int) -> list[str]:
        """Returns what each box of an item is called."""
        where = self.regions(index)
        return self.columns.texts("text", where.start, where.stop)

    def drawn(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        """Returns boxes float64[N, 4] (pixels) and their texts in a drawn order, at most max_gt_per_img of them."""
        where = self.regions(index)
        order = rng.permutation(where.stop - where.start)[: self.max_gt_per_img]
        texts = self.texts(index)
        return self.columns["boxes"][where][order], [texts[box] for box in order.tolist()]

    def make_sample(
        self,
        index: int,
        boxes_px: np.ndarray,
        texts: list[str],
        turns: list[Turn],
        augmentation: Augmentation | None = None,
    ) -> RegionSample:
        """Puts a drawn dialogue together; texts: what the boxes are called."""
        return RegionSample(
            image=self.image(index),
            turns=tuple(turns),
            boxes_px=boxes_px,
            image_pipeline="detection",
            augmentation=augmentation,
            region_texts=tuple(texts),
            source=self.place(int(self.columns["position"][index])),
        )


class _Images:
    """The images of a file that can be used, by their id."""

    def __init__(self, reader: CocoStyleDataset, images: list, drops: Drops) -> None:
        self.by_id: dict[Any, int] = {}
        self.seen: set[Any] = set()
        self.positions: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.names: list[str] = []
        self.captions: list[str] = []
        for position, image in enumerate(images):
            try:
                self._take(reader, position, image)
            except UnusableError as reason:
                drops.add(reason, position, IMAGES)

    def _take(self, reader: CocoStyleDataset, position: int, image: Any) -> None:
        if not isinstance(image, dict):
            raise UnusableError("image that is not an object")
        key = identity(image.get("id"), "image without an id")
        if key in self.seen:
            raise LeftOutError("image whose id another one has")
        self.seen.add(key)
        name = reader.file_name(file_name(image.get("file_name"), "file_name of the image"))
        caption = reader.caption(image.get("caption")) if reader.captions else ""
        height, width = length(image.get("height")), length(image.get("width"))
        if min(height, width) < SMALLEST_IMAGE:
            raise LeftOutError(f"image with a side below {SMALLEST_IMAGE} px")
        self.by_id[key] = len(self.names)
        self.positions.append(position)
        self.sizes.append((height, width))
        self.names.append(name)
        self.captions.append(caption)


class _Regions:
    """The boxes of a file that can be used, each with the number of its image."""

    def __init__(
        self,
        reader: CocoStyleDataset,
        annotations: list,
        images: _Images,
        categories: dict[Any, str] | None,
        drops: Drops,
    ) -> None:
        self.reader, self.images, self.categories, self.drops = reader, images, categories, drops
        # Arrays, as lists would take several times the memory for millions of boxes.
        self.images_of, self.positions, self.boxes = array("q"), array("q"), array("d")
        self.texts: list[str] = []
        long = len(annotations) > 200_000
        bar = tqdm(annotations, f"Indexing {reader.name}", disable=not long, unit=" boxes", mininterval=2)
        for position, annotation in enumerate(bar):
            try:
                self._take(position, annotation)
            except UnusableError as reason:
                drops.add(reason, position, ANNOTATIONS)

    def _take(self, position: int, annotation: Any) -> None:
        if not isinstance(annotation, dict):
            raise UnusableError("box that is not an object")
        key = identity(annotation.get("image_id"), "box without an image_id")
        image = self.images.by_id.get(key)
        if image is None:
            if key not in self.images.seen:
                raise UnusableError("box in an image that the file does not list")
            return  # the image was left out, and is counted
        if annotation.get("ignore"):
            raise LeftOutError("box marked ignore")
        box = self._box(annotation, *self.images.sizes[image])
        category = ""
        if self.categories is not None:
            number_of = annotation.get("category_id")
            if not _is_id(number_of) or number_of not in self.categories:
                raise LeftOutError("box of an unknown category")
            category = self.categories[number_of]
        if annotation.get("iscrowd") and not self.reader.crowds:
            raise LeftOutError("box of a crowd")
        called = self.reader.region_text(annotation, self.images.captions[image], category)
        self.images_of.append(image)
        self.boxes.extend(box)
        self.positions.append(position)
        self.texts.append(called)

    def _box(self, annotation: dict, height: int, width: int) -> list[float]:
        x, y, w, h = numbers(annotation.get("bbox"), 4)
        if max(0.0, min(x + w, width) - max(x, 0)) * max(0.0, min(y + h, height) - max(y, 0)) == 0:
            raise LeftOutError("box outside the image or without area")
        area = annotation.get("area", w * h)
        if number(area, "box whose area is not a number") <= 0 or w < 1 or h < 1:
            raise LeftOutError("box less than a pixel wide or high, or of area 0")
        return [x, y, x + w, y + h]

    def columns(self) -> Columns:
        """Joins images and boxes; an image of which no box is left is left out."""
        images = self.images
        of_image = np.asarray(self.images_of, dtype=np.int64)
        boxes = np.asarray(self.boxes, dtype=np.float64).reshape(-1, 4)
        positions = np.asarray(self.positions, dtype=np.int64)
        sizes = np.asarray(images.sizes, dtype=np.int32).reshape(-1, 2)
        large = large_enough(in_frame(boxes, sizes[of_image]))
        for position in positions[~large].tolist():
            self.drops.add(LeftOutError(SMALL_BOX), position, ANNOTATIONS)
        counts = np.bincount(of_image[large], minlength=len(sizes))
        kept = np.flatnonzero(counts)
        for image in np.flatnonzero(counts == 0).tolist():
            self.drops.add(LeftOutError(NO_BOX), images.positions[image], IMAGES)
        order = np.flatnonzero(large)[np.argsort(of_image[large], kind="stable")]
        arrays = {
            "position": np.asarray(images.positions, dtype=np.int64)[kept],
            "size": sizes[kept],
            "first": np.concatenate([[0], np.cumsum(counts[kept])]).astype(np.int64),
            "boxes": boxes[order],
            "box_position": positions[order],
        }
        texts = {
            "image": [images.names[image] for image in kept.tolist()],
            "text": [self.texts[region] for region in order.tolist()],
        }
        if self.reader.captions:
            texts["caption"] = [images.captions[image] for image in kept.tolist()]
        return make_columns(arrays, texts, self.drops, classes=list((self.categories or {}).values()))


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def identity(value: Any, reason: str) -> int | str:
    """Returns an id; raises UnusableError for the reason where it cannot be one."""
    if not _is_id(value):
        raise UnusableError(reason)
    return value


def own_categories(path: Path, content: dict) -> dict[Any, str] | None:
    """Returns the names of the categories that a file lists, by id; None where it lists none."""
    if "categories" not in content:
        return None
    names = {}
    for category in listed(path, content, "categories", "a file in COCO's form"):
        if isinstance(category, dict) and _is_id(category.get("id")) and isinstance(category.get("name"), str):
            names[category["id"]] = category["name"]
    return dict(sorted(names.items(), key=lambda entry: (str(type(entry[0])), entry[0])))


def in_frame(boxes_px: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Moves boxes float64[N, 4] (xyxy, pixels) into the frame and clips them; sizes: int[N, 2] (height, width).

    Returns float32[N, 4], computed in float32 as the original did, so that boxes on the limit fall on its side.
    """
    scale = (FRAME / sizes.astype(np.float64)).astype(np.float32)
    scaled = boxes_px.astype(np.float32) * scale[:, [1, 0, 1, 0]]
    return box_ops.clip(scaled, (FRAME, FRAME))


def large_enough(boxes: np.ndarray) -> np.ndarray:
    """Returns bool[N]: the boxes of the frame that are not left out as too small."""
    return box_ops.keep_valid(boxes, SMALLEST_BOX)
