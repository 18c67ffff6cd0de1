"""Checks of single samples: whether they can be encoded, and whether their boxes make sense."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gpt4roi.constants import REGION_TOKEN
from gpt4roi.data.base import Item, RegionDataset
from gpt4roi.data_check.findings import Finding, Findings
from gpt4roi.data_check.images import ImageFacts, read_facts
from gpt4roi.data_check.lengths import LengthEstimator
from gpt4roi.data_check.statistics import Statistics
from gpt4roi.errors import InputError
from gpt4roi.geometry.frames import FrameClues, FrameRule, ImageHeader, frame_of_pipeline
from gpt4roi.io.sizes import counted
from gpt4roi.processing.mentions import region_numbers
from gpt4roi.structures import ImagePipeline, RegionSample

TINY_SIDE = 2.0
"""A box less wide or high than this, in pixels of the square that the model sees, is tiny."""
SMALL_IMAGE = 32
_PIPELINES = ("dialogue", "detection")
_TOLERANCE = 1.0
"""Boxes may reach this many pixels beyond their image: some data sets count the last pixel as 1 further."""


class Use(NamedTuple):
    """Who needs an image: how many samples that are otherwise good, the first of all, and how it is opened.

    An image that samples open in both pipelines counts as `detection`, which reads its EXIF data as well.
    """

    samples: int
    first: str
    pipeline: ImagePipeline = "dialogue"

    def joined(self, other: Use) -> Use:
        """Returns both together."""
        pipeline = max(self.pipeline, other.pipeline, key=_PIPELINES.index)
        return Use(self.samples + other.samples, self.first, pipeline)


@dataclass
class Part:
    """What was found in some samples of a data set; parts add up."""

    findings: Findings = field(default_factory=Findings)
    statistics: Statistics = field(default_factory=Statistics)
    images: dict[str, Use] = field(default_factory=dict)
    digests: dict[bytes, str] = field(default_factory=dict)

    def merge(self, other: Part) -> None:
        """Takes over what was found elsewhere; a sample that both have seen is a finding."""
        self.findings.merge(other.findings)
        self.statistics.add(other.statistics)
        for path, use in other.images.items():
            self.images[path] = self.images[path].joined(use) if path in self.images else use
        for digest, where in other.digests.items():
            self.remember(digest, where)

    def remember(self, digest: bytes, where: str) -> None:
        """Notes what a sample consists of; one that was seen before is a finding."""
        first = self.digests.setdefault(digest, where)
        if first != where:
            self.findings.add(Finding("sample_repeated", where, f"{where}: the same image, boxes and turns as {first}"))


class SampleChecker:
    """Checks samples of one data set.

    Args:
        dataset: The data set.
        estimator: Measures prompts.
        seed: Of the draws, as in a training's first epoch.
        rule: What is known of the frames of boxes.
    """

    def __init__(
        self, dataset: RegionDataset, estimator: LengthEstimator, seed: int = 0, rule: FrameRule | None = None
    ) -> None:
        self.dataset, self.estimator, self.seed, self.rule = dataset, estimator, seed, rule or FrameRule()

    def check(self, indices: Iterable[int]) -> Part:
        """Checks these samples; never raises for what is wrong with them."""
        part = Part()
        for index in indices:
            part.statistics.samples += 1
            try:
                item, sample = self.dataset.item(index), self._sample(index)
            except InputError as error:
                part.statistics.lost += 1
                part.findings.add(Finding("sample_unusable", f"{self.dataset.name}#{index}", str(error)))
                continue
            self._check(item, sample, part)
        return part

    def _sample(self, index: int) -> RegionSample:
        return self.dataset.sample(index, np.random.default_rng([self.seed, 0, index]))

    def _check(self, item: Item, sample: RegionSample, part: Part) -> None:
        part.remember(_digest(sample), item.source)
        facts = _header(item.image) if item.image else ImageFacts()
        size = facts.header.size_read_by(sample.image_pipeline) if facts.header else None
        good = self._check_text(item, sample, size, part)
        if not good:
            part.statistics.lost += 1
        if item.image:
            use = Use(int(good), item.source, sample.image_pipeline)
            part.images[item.image] = part.images[item.image].joined(use) if item.image in part.images else use
        else:
            part.statistics.text_alone += 1
        part.statistics.regions += len(item.boxes_px)
        part.statistics.without_region += not len(item.boxes_px)
        for kind, message in _image_remarks(item, sample, facts.header, self.rule):
            part.findings.add(_finding(kind, item, sample, message))
        if len(item.boxes_px):
            self._check_boxes(item, sample, size, part)

    def _check_text(self, item: Item, sample: RegionSample, size: tuple[int, int] | None, part: Part) -> bool:
        """Measures the prompt and checks the mentions; returns whether the sample can be encoded."""
        for turn in sample.turns:
            if turn.role == "assistant":
                part.statistics.count_answer(turn.text)
        try:
            measure = self.estimator.measure(sample, size or (self.estimator.side, self.estimator.side))
        except InputError as error:
            if error.code != "box_inverted":  # exchanged corners are a finding of their own
                part.findings.add(_finding("sample_unusable", item, sample, str(error)))
            return False
        part.statistics.count_length(measure.tokens)
        part.statistics.supervised += measure.supervised
        part.statistics.rounds += measure.rounds
        part.statistics.rounds_lost += measure.rounds_lost
        part.statistics.answers_cut += measure.answers_cut
        if measure.rounds_lost or measure.answers_cut:
            lost = f"{measure.rounds_lost} of {measure.rounds} rounds" if measure.rounds_lost else "the answer's end"
            message = f"{item.source}: {measure.tokens} tokens, {self.estimator.limit} fit; {lost} would be dropped"
            part.findings.add(_finding("rounds_lost", item, sample, message))
        unmentioned = _unmentioned(sample)
        if unmentioned:
            listed = ", ".join(map(str, unmentioned[:8]))
            message = (
                f"{item.source}: {counted(len(unmentioned), 'box')} of {len(sample.boxes_px)} not mentioned: {listed}"
            )
            part.findings.add(_finding("box_unmentioned", item, sample, message))
        return True

    def _check_boxes(self, item: Item, sample: RegionSample, size: tuple[int, int] | None, part: Part) -> None:
        """Checks boxes; without the image's size only at the order of their corners."""
        boxes = item.boxes_px
        of_image = f", the image {size[1]} x {size[0]} px" if size else ""
        if item.box_frame == "unit":
            boxes = boxes * [size[1], size[0], size[1], size[0]] if size else boxes
        elif size and boxes.max() <= 1.0 and (boxes[:, 2:] > boxes[:, :2]).all() and min(size) > SMALL_IMAGE:
            message = f"{item.source}: all boxes lie within 0 and 1{of_image}"
            part.findings.add(_finding("box_fractions", item, sample, message))
            return
        for number, box in enumerate(boxes, start=1):
            if size:
                part.statistics.count_box(box, size)
            found = _box_remark(box, size, self.estimator.side)
            if found:
                where = item.box_sources[number - 1] if number <= len(item.box_sources) else item.source
                shown = [round(float(value), 2) for value in box]
                message = f"{where}: box {number} is {shown}{of_image}{found[1]}"
                part.findings.add(_finding(found[0], item, sample, message, box))


@lru_cache(maxsize=4096)
def _header(path: str) -> ImageFacts:
    """Remembers the last images: many samples in a row may need the same one."""
    return read_facts(path)


def _finding(kind: str, item: Item, sample: RegionSample, message: str, box: np.ndarray | None = None) -> Finding:
    boxes = item.boxes_px if item.box_frame == "pixels" else ()
    shown = tuple(tuple(map(float, one)) for one in (boxes if box is None else [box]))
    return Finding(kind, item.source, message, item.image, shown, sample.image_pipeline, sample.ignore_alpha)


def _box_remark(box: np.ndarray, size: tuple[int, int] | None, side: int) -> tuple[str, str] | None:
    """Returns (kind, end of the message) for a box that makes little sense in an image of (height, width)."""
    height, width = size or (np.inf, np.inf)
    x1, y1, x2, y2 = box.tolist()
    if x2 < x1 or y2 < y1:
        fits = 0 <= x1 + x2 <= width + _TOLERANCE and 0 <= y1 + y2 <= height + _TOLERANCE
        return "box_inverted", "; as x, y, w, h it would fit" if fits and size else ""
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        return "box_outside", ""
    if x1 < -_TOLERANCE or y1 < -_TOLERANCE or x2 > width + _TOLERANCE or y2 > height + _TOLERANCE:
        return "box_beyond", ""
    if size is None:
        return None
    across, down = (x2 - x1) * side / width, (y2 - y1) * side / height
    if min(across, down) < TINY_SIDE:
        return "box_tiny", f"; {across:.1f} x {down:.1f} px of the model's {side}"
    return None


def _image_remarks(
    item: Item, sample: RegionSample, header: ImageHeader | None, rule: FrameRule
) -> Iterable[tuple[str, str]]:
    if header is None:
        return
    height, width = header.size
    if min(header.size) < SMALL_IMAGE:
        yield "picture_small", f"{item.source}: image {item.image!r} is {width} x {height} px"
    if not len(item.boxes_px):
        return
    read_as = frame_of_pipeline(sample.image_pipeline)
    try:
        FrameRule().place(header, FrameClues(item.image_size, read_as), str(item.image))
    except InputError as error:
        yield "size_differs", f"{item.source}: {error}"
    expected = "upright" if rule.frame == "auto" else rule.frame
    if header.orientation != 1 and read_as != expected:
        what = f"{item.source}: image {item.image!r} is turned or mirrored by its EXIF data (orientation "
        how = "is read as it is stored" if read_as == "stored" else "its boxes are of the stored image"
        yield "sideways", f"{what}{header.orientation}), but {how}"
    elif header.orientation != 1:
        how = "read as it is stored" if read_as == "stored" else "turned upright by its EXIF data"
        yield f"frame:image {how}", f"{item.source}: image {item.image!r} is {how}, with its boxes"


def _unmentioned(sample: RegionSample) -> list[int]:
    """Returns the numbers, from 1, of the boxes that no turn refers to."""
    texts = [turn.text for turn in sample.turns]
    if any(REGION_TOKEN in text for text in texts):
        return []
    mentioned = {number for text in texts for number in region_numbers(text)}
    return [number for number in range(1, len(sample.boxes_px) + 1) if number not in mentioned]


def _digest(sample: RegionSample) -> bytes:
    """Hashes what a sample consists of; boxes and turns in any order, so that a shuffled repetition is one."""
    boxes = sorted(map(tuple, sample.boxes_px.round(2).tolist()))
    texts = sorted(Counter(turn.text for turn in sample.turns if turn.role == "assistant").items())
    text = repr((str(sample.image), boxes, texts))
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=12).digest()
