"""COCO tables for the tests of captioning."""

from __future__ import annotations

import numpy as np


def tables(counts=(0, 1, 2, 3, 4, 5)) -> dict:
    """COCO tables with so many boxes on each image, and with fields of their own."""
    draw = np.random.default_rng(7)
    images = [{"id": 10 + n, "file_name": f"{n}.png", "width": 96, "height": 64} for n in range(len(counts))]
    annotations = []
    for number, count in enumerate(counts):
        for _ in range(count):
            x, y = (int(value) for value in draw.integers(0, 40, 2))
            row = {"id": 100 + len(annotations), "image_id": 10 + number, "category_id": 3, "bbox": [x, y, 22, 21]}
            annotations.append({**row, "area": 462, "iscrowd": 0, "note": "kept"})
    return {
        "info": {"year": 2020},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "thing"}],
    }
