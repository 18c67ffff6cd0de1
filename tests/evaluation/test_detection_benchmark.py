"""Detection by proposals: every category of every proposal is scored, and COCO's tool measures."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from official import dump, write_image

from gpt4roi.evaluation.benchmarks import open_benchmark
from gpt4roi.evaluation.benchmarks.detection import TRUE_BOXES, jackknifed
from gpt4roi.evaluation.evaluate import read_items
from gpt4roi.evaluation.items import Source

BOXES = ([2, 3, 20, 20], [40, 3, 20, 20], [2, 40, 20, 20])
"""A cat, a dog, and a place where nothing is; x, y, width, height."""


@pytest.fixture
def source(tmp_path):
    """Two images with a cat and a dog each."""
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 64, "width": 96} for n in (1, 2)]
    annotations = [
        {"id": 10 * n + at, "image_id": n, "category_id": 5 + at, "bbox": BOXES[at], "iscrowd": 0}
        for n in (1, 2)
        for at in (0, 1)
    ]
    categories = [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for n in (1, 2):
        write_image(tmp_path / "val2017" / f"{n}.jpg", n)
    return Source(dump(tmp_path / "instances_val2017.json", content))


def figures(items, source):
    scores = open_benchmark("coco-detection").score(items, source)
    return {name: round(measure.value, 3) for name, measure in scores.measures.items()}, scores


def likely(items, shares):
    """Gives the items these probabilities of cat and dog, image by image."""
    rows = [shares[row % len(shares)] for row in range(len(items))]
    return [replace(item, likelihoods=tuple(np.log(row))) for item, row in zip(items, rows, strict=True)]


def test_without_proposals_the_true_boxes_are_asked_about_and_that_is_said(source):
    items = read_items("coco-detection", source)
    assert [item.references for item in items] == [("cat",), ("dog",)] * 2 and items[0].query.choices == ("cat", "dog")

    found, scores = figures(likely(items, [(0.6, 0.1), (0.1, 0.6)]), source)
    assert found == {"mAP": 1, "AP50": 1, "AP75": 1, "AR100": 1} and scores.notes == [TRUE_BOXES]
    assert scores.right == [True] * 4
    swapped, scores = figures(likely(items, [(0.1, 0.6), (0.6, 0.1)]), source)
    assert swapped["AP50"] == 0.5 and scores.right == [False] * 4  # the wrong box comes first, then the right one


def test_a_constant_answer_finds_one_category_and_equal_likelihoods_half_of_each(source):
    items = read_items("coco-detection", source)

    found, _ = figures([replace(item, answer="cat") for item in items], source)
    assert found["AP50"] == pytest.approx((5 / 6 + 0) / 2, abs=0.01)  # cat, not a cat, cat, not a cat
    found, _ = figures(likely(items, [(0.5, 0.5)]), source)
    assert found["AP50"] == pytest.approx((5 / 6 + 1 / 2) / 2, abs=0.01)


def test_proposals_of_a_detector_are_scored_by_name_times_their_own_score(source):
    proposals = [
        {"image_id": n, "bbox": box, "score": own}
        for n in (1, 2)
        for box, own in zip(BOXES, (0.9, 0.8, 0.5), strict=True)
    ]
    dump(source.data.with_name("proposals.json"), proposals)
    items = read_items("coco-detection", source)
    assert len(items) == 6 and items[0].label is None and items[0].references == ()

    found, scores = figures(likely(items, [(0.6, 0.1), (0.1, 0.6), (0.6, 0.6)]), source)
    assert found["mAP"] == 1 and scores.notes == [] and scores.details == {"proposals": 6}
    found, _ = figures(likely(items, [(0.3, 0.1), (0.1, 0.3), (0.6, 0.6)]), source)
    assert found["AP50"] == 0.5  # 0.6 x 0.5 of nothing comes before 0.3 x 0.9 of the cat
    named = [replace(item, answer=("A cat.", "Cat", "dog")[row % 3]) for row, item in enumerate(items)]
    found, _ = figures([replace(item, answer=item.answer.removeprefix("A ")) for item in named], source)
    assert found["AP50"] == pytest.approx(0.5, abs=0.01)  # cats are found, the dog is named where nothing is


def test_a_crowd_is_neither_right_nor_wrong(source):
    content = json.loads(source.data.read_text())
    crowd = {"id": 99, "image_id": 1, "category_id": 5, "bbox": BOXES[2], "iscrowd": 1}
    dump(source.data, {**content, "annotations": [*content["annotations"], crowd]})
    proposals = [{"image_id": n, "bbox": box} for n in (1, 2) for box in BOXES[: 3 if n == 1 else 2]]
    dump(source.data.with_name("proposals.json"), proposals)

    shares = [(0.6, 0.1), (0.1, 0.6), (0.9, 0.01), (0.6, 0.1), (0.1, 0.6)]
    found, _ = figures(likely(read_items("coco-detection", source), shares), source)

    assert found["mAP"] == 1


def test_the_jackknife_of_a_mean_has_its_interval():
    values = np.random.default_rng(0).normal(0.5, 0.1, 10)
    without = [float(np.delete(values, row).mean()) for row in range(10)]

    measure = jackknifed((float(values.mean()), without))

    assert measure.per_item == pytest.approx(values) and measure.value == pytest.approx(values.mean())
    alone = jackknifed((0.25, [])).estimate()
    assert (alone.value, alone.low, alone.high) == (0.25, 0.25, 0.25)
