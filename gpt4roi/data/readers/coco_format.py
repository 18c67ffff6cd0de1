"""Base of the readers of COCO-style files: images, and annotations that say which image they lie in.

The filters of boxes and images, and their order, are those of the original (mmdetection's for COCO).
"""

from __future__ import annotations

import copy
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gpt4roi.data.annotations import Drops, require_file_name, require_text
from gpt4roi.data.base import Item
from gpt4roi.data.columns import Columns, make_offsets
from gpt4roi.data.index import IndexedDataset, make_columns
from gpt4roi.geometry import boxes as box_ops
from gpt4roi.io.coco import (
    CROWD,
    IGNORED,
    CocoTables,
    FilteredOutError,
    Id,
    InvalidAnnotationError,
    annotation_xywh,
    frame_clues,
    image_file_name,
    is_crowd,
    is_id,
    is_marked,
    is_placeholder,
    parse_float,
    parse_side,
    read_tables,
)
from gpt4roi.io.json_files import parse_json
from gpt4roi.structures import Augmentation, RegionSample, Turn

FRAME = 224
"""Side of the square that the original's filters of small boxes look at, in pixels."""
MIN_BOX_SIDE = 2.0
"""A box this wide or high in the frame, or less, is left out."""
MIN_IMAGE_SIDE = 32

IMAGES, ANNOTATIONS = 0, 1
SMALL_BOX = f"box of {MIN_BOX_SIDE:g} px or less once the image is {FRAME} px wide and high"
NO_BOX = "image without a box that can be used"


class CocoStyleDataset(IndexedDataset):
    """Reads a file in COCO's form; subclasses say which annotations they take and what these are called.

    Args:
        ann_file: The annotations as published. An image whose boxes are of the stored one, as its `image_pipeline` or
            the file's exporter says, is opened in the `dialogue` pipeline; others upright, in `detection`.
        img_prefix: The folder of the images.
        max_gt_per_img: How many boxes one sample takes at most, of those in their drawn order.
        test_mode: No augmentation (only coco_det has any).
        as_released: Samples are as the released weights saw them.

    Raises:
        InputError: The file is not of this form, or nothing of it can be used.
    """

    version = 4
    crowds = False
    """Whether boxes marked `iscrowd` are taken."""
    captions = False
    """Whether an image has a caption, without which it is left out."""
    index_depends_on: str | None = None
    """The argument that changes what is indexed."""

    def __init__(
        self,
        ann_file: str | Path,
        img_prefix: str | Path = "",
        max_gt_per_img: int = 15,
        test_mode: bool = False,
        as_released: bool = False,
    ) -> None:
        self.max_gt_per_img, self.test_mode, self.as_released = max_gt_per_img, test_mode, as_released
        name = self.index_depends_on
        super().__init__([ann_file], img_prefix, f"{name}={getattr(self, name)}" if name else "")

    def file_name(self, name: str) -> str:
        """Returns the name an image has in the folder."""
        return name

    def caption(self, value: Any) -> str:
        """Checks an image's caption; raises InvalidAnnotationError where its image is left out for it."""
        return require_text(value, "caption of the image")

    def categories(self, names: dict[Id, str] | None) -> dict[Id, str] | None:
        """Returns the name of each category whose boxes are taken, by id; None takes all. names: the file's own."""
        return None

    def region_text(self, annotation: dict, caption: str, category: str) -> str:
        """Returns what a box is called; raises InvalidAnnotationError where the box is left out for it."""
        raise NotImplementedError

    def build(self, contents: list[bytes]) -> Columns:
        tables = read_tables(parse_json(contents.pop(), self.files[0]), self.files[0])
        drops = Drops([(0, "images"), (0, "annotations")])
        return _Regions(self, tables, _Images(self, tables, drops), drops).columns()

    def unaugmented(self) -> CocoStyleDataset:
        same = copy.copy(self)
        same.test_mode = True
        return same

    def regions(self, index: int) -> slice:
        """Returns where an item's boxes lie in the columns of boxes."""
        return self.columns.rows("first", index)

    def item(self, index: int) -> Item:
        columns, where = self.columns, self.regions(index)
        height, width = columns["size"][index].tolist()
        return Item(
            image=self.image(index),
            boxes_px=columns["boxes"][where].copy(),
            image_size=(height, width),
            region_texts=tuple(self.texts(index)),
            box_sources=tuple(self.location(one, ANNOTATIONS) for one in columns["box_position"][where].tolist()),
            caption=columns.text("caption", index) if self.captions else "",
            source=self.source(index),
        )

    def texts(self, index: int) -> list[str]:
        """Returns what each box of an item is called."""
        return self.columns.texts("text", self.regions(index))

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
            image_pipeline="dialogue" if self.columns["stored"][index] else "detection",
            augmentation=augmentation,
            region_texts=tuple(texts),
            source=self.source(index),
            ignore_alpha=self.as_released,
        )


class _Images:
    """The images of a file that can be used, by their id."""

    def __init__(self, reader: CocoStyleDataset, tables: CocoTables, drops: Drops) -> None:
        self.by_id: dict[Any, int] = {}
        self.exporter = tables.exporter
        self.positions: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.stored: list[bool] = []
        self.names: list[str] = []
        self.captions: list[str] = []
        for position in range(len(tables.images)):
            try:
                self._take(reader, position, tables.image_id(position), tables.images[position])
            except InvalidAnnotationError as reason:
                drops.add(reason, position, IMAGES)

    def _take(self, reader: CocoStyleDataset, position: int, key: Id, image: dict) -> None:
        name = reader.file_name(require_file_name(image_file_name(image), "file_name of the image"))
        caption = reader.caption(image.get("caption")) if reader.captions else ""
        height, width = parse_side(image.get("height")), parse_side(image.get("width"))
        if min(height, width) < MIN_IMAGE_SIDE:
            raise FilteredOutError(f"image with a side below {MIN_IMAGE_SIDE} px")
        self.by_id[key] = len(self.names)
        self.positions.append(position)
        self.sizes.append((height, width))
        self.stored.append(frame_clues(image, self.exporter).frame == "stored")
        self.names.append(name)
        self.captions.append(caption)


class _Regions:
    """The boxes of a file that can be used, each with the number of its image."""

    def __init__(self, reader: CocoStyleDataset, tables: CocoTables, images: _Images, drops: Drops) -> None:
        self.reader, self.tables, self.images, self.drops = reader, tables, images, drops
        self.categories = reader.categories(tables.categories)
        # Arrays, as lists would take several times the memory for millions of boxes.
        self.images_of, self.positions, self.boxes = array("q"), array("q"), array("d")
        self.texts: list[str] = []
        long = len(tables.annotations) > 200_000
        bar = tqdm(tables.annotations, f"Indexing {reader.name}", disable=not long, unit=" boxes", mininterval=2)
        for position, annotation in enumerate(bar):
            try:
                self._take(position, annotation)
            except InvalidAnnotationError as reason:
                drops.add(reason, position, ANNOTATIONS)

    def _take(self, position: int, annotation: Any) -> None:
        image = self.images.by_id.get(self.tables.annotation_image(annotation))
        if image is None:
            return  # the image was left out, and is counted
        if "ignore" in annotation and is_marked(annotation, "ignore"):
            raise FilteredOutError(IGNORED)
        box = self._box(annotation, *self.images.sizes[image])
        category = ""
        if self.categories is not None:
            number = annotation.get("category_id")
            if not is_id(number) or number not in self.categories:
                raise FilteredOutError("box of an unknown category")
            category = self.categories[number]
        if annotation.get("iscrowd") and is_crowd(annotation) and not self.reader.crowds:
            raise FilteredOutError(CROWD)
        called = self.reader.region_text(annotation, self.images.captions[image], category)
        self.images_of.append(image)
        self.boxes.extend(box)
        self.positions.append(position)
        self.texts.append(called)

    def _box(self, annotation: dict, height: int, width: int) -> list[float]:
        x, y, w, h = annotation_xywh(annotation, (height, width))
        if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
            raise FilteredOutError("box outside the image or without area")
        area = annotation.get("area")
        if area is None or (annotation.get("segmentation") and is_placeholder(annotation.get("bbox"))):
            area = w * h
        if parse_float(area, "box whose area is not a number") <= 0 or w < 1 or h < 1:
            raise FilteredOutError("box less than a pixel wide or high, or of area 0")
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
            self.drops.add(FilteredOutError(SMALL_BOX), position, ANNOTATIONS)
        counts = np.bincount(of_image[large], minlength=len(sizes))
        kept = np.flatnonzero(counts)
        for image in np.flatnonzero(counts == 0).tolist():
            self.drops.add(FilteredOutError(NO_BOX), images.positions[image], IMAGES)
        order = np.flatnonzero(large)[np.argsort(of_image[large], kind="stable")]
        arrays: dict[str, np.ndarray] = {
            "position": np.asarray(images.positions, dtype=np.int64)[kept],
            "size": sizes[kept],
            "stored": np.asarray(images.stored, dtype=bool)[kept],
            "first": make_offsets(counts[kept]),
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


def in_frame(boxes_px: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Moves boxes float64[N, 4] (xyxy, pixels) into the frame and clips them; sizes: int[N, 2] (height, width).

    Returns float32[N, 4], computed in float32 as the original did, so that boxes on the limit fall on its side.
    """
    scale = (FRAME / sizes.astype(np.float64)).astype(np.float32)
    scaled = boxes_px.astype(np.float32) * scale[:, [1, 0, 1, 0]]
    return box_ops.clip(scaled, (FRAME, FRAME))


def large_enough(boxes: np.ndarray) -> np.ndarray:
    """Returns bool[N]: the boxes of the frame that are not left out as too small."""
    return box_ops.keep_valid(boxes, MIN_BOX_SIDE)
