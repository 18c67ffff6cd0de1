"""Contract: both picture pipelines give the recorded tensors and boxes, augmentation included."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gpt4roi.pictures import boxes_in_frame, load_image, to_pixel_values
from gpt4roi.processor import CLIP_MEAN, CLIP_STD
from gpt4roi.structures import Augmentation

HERE = Path(__file__).parent / "pictures"
FACTS = {fact["key"]: fact for fact in json.loads((HERE / "facts.json").read_text())}
TENSORS = load_file(HERE / "tensors.safetensors")

BOXES_PX = {
    "coco_det_test.0.0": [[50, 10, 90, 40], [80, 40, 96, 64], [10, 8, 40, 48]],
    "coco_det_train.0.2": [[-10, -5, 30, 35], [12.5, 7.25, 73.25, 40.75]],
    "vcr.0.2": [[5, 4, 25, 30], [60, 80, 70, 100]],
}
"""In pixels of the picture, as the annotation files have them, in the recorded order."""


def opened(key):
    fact = FACTS[key]
    picture = load_image(str(HERE / fact["picture"]), fact["pipeline"])
    return fact, picture, Augmentation(tuple(fact["shift"]), fact["flip"])


@pytest.mark.parametrize("key", FACTS)
def test_pixel_values_equal_the_recording(key):
    fact, picture, augmentation = opened(key)
    values = to_pixel_values(picture, fact["pipeline"], 224, CLIP_MEAN, CLIP_STD, augmentation)
    np.testing.assert_allclose(values.numpy(), TENSORS[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("key", BOXES_PX)
def test_boxes_equal_the_recording(key):
    fact, picture, augmentation = opened(key)
    size = (picture.height, picture.width)
    boxes = boxes_in_frame(np.array(BOXES_PX[key]), size, fact["pipeline"], 224, augmentation) / 224
    np.testing.assert_allclose(boxes, fact["boxes"], rtol=0, atol=2e-7)
