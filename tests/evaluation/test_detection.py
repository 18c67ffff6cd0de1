"""Average precision as COCO computes it, and the overlap of sets of regions."""

import numpy as np
import pytest

from gpt4roi.evaluation.detection import average_precision
from gpt4roi.evaluation.metrics import set_overlap
from gpt4roi.generation.detect import Detection, coco_results

BOXES = {1: [10.0, 10, 50, 50], 2: [60.0, 10, 100, 60]}


def tables() -> dict:
    annotations = [
        {"id": number, "image_id": 7, "category_id": 1, "iscrowd": 0}
        | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
        for number, (x1, y1, x2, y2) in BOXES.items()
    ]
    return {"images": [{"id": 7}], "annotations": annotations, "categories": [{"id": 1, "name": "a cup"}]}


def results(*scored: tuple[list[float], float]) -> list[dict]:
    found = [Detection("a cup", 1, np.asarray(box), score) for box, score in scored]
    return coco_results(found, ["a cup"], 7)


def test_average_precision_is_that_of_coco():
    nothing = [0.0, 70, 20, 90]

    assert average_precision(tables(), results((BOXES[1], 0.9), (BOXES[2], 0.4), (nothing, 0.1)))["mAP"] == 1
    ranked = average_precision(tables(), results((nothing, 0.9), (BOXES[1], 0.4), (BOXES[2], 0.1)))
    assert ranked["AP50"] == pytest.approx(2 / 3, abs=0.01)
    half = average_precision(tables(), results((BOXES[1], 0.9)))
    assert (half["mAP"], half["AR100"]) == (pytest.approx(0.5, abs=0.01), 0.5)
    assert average_precision(tables(), []) == {"mAP": 0, "AP50": 0, "AP75": 0, "AR100": 0}


def test_sets_of_regions_overlap_by_precision_recall_and_f1():
    assert set_overlap({1, 2, 3}, {2, 3, 4, 5}) == pytest.approx((2 / 3, 1 / 2, 4 / 7))
    assert set_overlap(set(), set()) == (1, 1, 1)
    assert set_overlap({1}, set()) == set_overlap(set(), {1}) == (0, 0, 0)
