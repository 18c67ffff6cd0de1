"""Contract: both image pipelines give the recorded tensors, augmentation included.

The recordings are kept in grey levels: `bilinear` ones are whole numbers and lose nothing; `bicubic` ones are kept in
1/256 of a level (`.png` and `.fine.png`), so that they are off by 1/512 at most.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpt4roi.processing.images import load_image, to_pixel_values
from gpt4roi.processing.processor import CLIP_MEAN, CLIP_STD
from gpt4roi.structures import Augmentation

HERE = Path(__file__).parent
FACTS = {fact["key"]: fact for fact in json.loads((HERE / "pictures" / "facts.json").read_text())}
MEAN, STD = (np.asarray(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))


def recorded_levels(key):
    """Returns the recorded tensor float64[3, 224, 224] in grey levels, 0 to 255."""
    parts = [np.asarray(Image.open(HERE / "pictures" / f"{key}{end}"), dtype=np.float64) for end in ends(key)]
    return sum(part / 256**place for place, part in enumerate(parts)).transpose(2, 0, 1)


def ends(key):
    return (".png",) if FACTS[key]["pipeline"] == "bilinear" else (".png", ".fine.png")


@pytest.mark.parametrize("key", FACTS)
def test_pixel_values_equal_the_recording(key):
    fact = FACTS[key]
    image = load_image(str(HERE / "datasets" / "data" / fact["picture"]), fact["pipeline"])
    augmentation = Augmentation(tuple(fact["shift"]), fact["flip"])
    values = to_pixel_values(image, fact["pipeline"], 224, CLIP_MEAN, CLIP_STD, augmentation)
    levels = (values.numpy() * STD + MEAN) * 255
    bound = 1e-3 if fact["pipeline"] == "bilinear" else 1 / 512 + 1e-3
    np.testing.assert_allclose(levels, recorded_levels(key), rtol=0, atol=bound)
