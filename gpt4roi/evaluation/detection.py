"""Detection metrics: COCO's average precision (mAP, AP50, AP75) of scored boxes, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any


def average_precision(tables: dict[str, Any], results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns mAP (over IoU 0.50 to 0.95), AP50, AP75 and AR100 of results, each in [0, 1]; -1 without any truth.

    Args:
        tables: COCO's images, annotations (with area and iscrowd) and categories.
        results: COCO's results, as generation.detect.coco_results writes them, of all scores.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not results:
        return {"mAP": 0.0, "AP50": 0.0, "AP75": 0.0, "AR100": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth = COCO()
        truth.dataset = tables
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(list(results)), "bbox")
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    places = {"mAP": 0, "AP50": 1, "AP75": 2, "AR100": 8}
    return {name: float(evaluation.stats[place]) for name, place in places.items()}
