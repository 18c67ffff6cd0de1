import numpy as np
import pytest
import torch

from gpt4roi.datasets.encoded import EncodedDataset
from gpt4roi.datasets.selection import build_mixture
from gpt4roi.errors import InputError
from gpt4roi.structures import Augmentation, RegionSample, Turn
from gpt4roi.train.features import keep_features


def test_kept_features_are_what_the_tower_says_of_each_picture(parts, pyramid_model, pyramid_processor, tmp_path):
    mixture = build_mixture(parts / "train.jsonl")
    kept = keep_features(tmp_path, mixture, pyramid_processor, pyramid_model)
    sample = mixture.sample(3, np.random.default_rng(0))
    tokens, maps = pyramid_model.encode_picture(pyramid_processor.encode(sample)["pixel_values"][None])
    mine = kept.get(sample.image)
    assert kept.image_size(sample.image) == (64, 64)
    assert torch.allclose(mine["image_tokens"].float(), tokens[0], rtol=2e-3, atol=2e-3)
    for level, expected in zip(mine["feature_maps"], maps, strict=True):
        assert torch.allclose(level.float(), expected[0], rtol=2e-3, atol=2e-3)


def test_a_second_opening_reads_the_file_and_a_changed_picture_makes_a_new_one(
    parts, pyramid_model, pyramid_processor, tmp_path
):
    mixture = build_mixture(parts / "train.jsonl")
    first = keep_features(tmp_path, mixture, pyramid_processor, pyramid_model)
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    again = keep_features(tmp_path, mixture, pyramid_processor, pyramid_model)
    assert file.stat().st_mtime_ns == before
    assert torch.equal(first.tensors["image_tokens"], again.tensors["image_tokens"])
    assert first.sizes == again.sizes
    picture = parts / "images" / "0.png"
    picture.touch()
    keep_features(tmp_path, mixture, pyramid_processor, pyramid_model)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_sample_with_kept_features_has_the_same_text_and_boxes(parts, pyramid_model, pyramid_processor, tmp_path):
    mixture = build_mixture(parts / "train.jsonl")
    kept = keep_features(tmp_path, mixture, pyramid_processor, pyramid_model)
    with_picture = EncodedDataset(mixture, pyramid_processor, 0)[2]
    with_features = EncodedDataset(mixture, pyramid_processor, 0, kept, {"red": 0, "green": 1, "blue": 2})[2]
    assert torch.equal(with_picture["input_ids"], with_features["input_ids"])
    assert torch.equal(with_picture["boxes"], with_features["boxes"])
    assert "pixel_values" not in with_features
    named = mixture.region_texts(2)
    expected = [{"red": 0, "green": 1, "blue": 2}[named[box]] for box in with_features["box_indices"].tolist()]
    assert with_features["text_ids"].tolist() == expected


class Shifting:
    """A mixture of one sample whose picture is shifted."""

    def __init__(self, picture):
        self.picture = picture

    def __len__(self):
        return 1

    def sample(self, index, rng):
        turns = (Turn("user", "Hi"), Turn("assistant", "Ho"))
        return RegionSample(self.picture, turns, augmentation=Augmentation(shift=(1, 0)), source="shifted#1")


def test_augmented_pictures_cannot_be_kept(parts, pyramid_model, pyramid_processor, tmp_path):
    with pytest.raises(InputError, match="shifted#1: --picture_features needs data sets that do not augment"):
        keep_features(tmp_path, Shifting(str(parts / "images/0.png")), pyramid_processor, pyramid_model)
