import json
import os
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import stage1

from gpt4roi.data.registry import build_mixture
from gpt4roi.data.training_dataset import EncodedDataset
from gpt4roi.errors import InputError
from gpt4roi.structures import Augmentation, RegionSample, Turn
from gpt4roi.train import alignment, feature_cache
from gpt4roi.train.feature_cache import cache_features


def test_kept_features_are_what_the_tower_says_of_each_image(parts, pyramid_model, pyramid_processor, tmp_path):
    mixture = build_mixture(parts / "train.jsonl")
    kept = cache_features(tmp_path, mixture, pyramid_processor, pyramid_model)
    sample = mixture.sample(3, np.random.default_rng(0))
    tokens, maps = pyramid_model.encode_image(pyramid_processor.encode(sample)["pixel_values"][None])
    mine = kept.get(sample.image)
    assert kept.image_size(sample.image) == (64, 64)
    assert torch.allclose(mine["image_tokens"].float(), tokens[0], rtol=2e-3, atol=2e-3)
    for level, expected in zip(mine["feature_maps"], maps, strict=True):
        assert torch.allclose(level.float(), expected[0], rtol=2e-3, atol=2e-3)


def test_a_second_opening_reads_the_file_and_a_changed_image_makes_a_new_one(
    parts, pyramid_model, pyramid_processor, tmp_path
):
    mixture = build_mixture(parts / "train.jsonl")
    first = cache_features(tmp_path, mixture, pyramid_processor, pyramid_model)
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    again = cache_features(tmp_path, mixture, pyramid_processor, pyramid_model)
    assert file.stat().st_mtime_ns == before
    assert torch.equal(first.tensors["image_tokens"], again.tensors["image_tokens"])
    assert first.sizes == again.sizes
    image = parts / "images" / "0.png"
    os.utime(image, ns=(0, image.stat().st_mtime_ns + 10**9))
    cache_features(tmp_path, mixture, pyramid_processor, pyramid_model)
    assert len(list(tmp_path.iterdir())) == 2


def test_features_that_cannot_be_written_end_in_one_line_and_leave_nothing(
    parts, pyramid_model, pyramid_processor, tmp_path, monkeypatch
):
    mixture = build_mixture(parts / "train.jsonl")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"features-\w+\.safetensors cannot be written: .*File too large"):
            cache_features(tmp_path / "kept", mixture, pyramid_processor, pyramid_model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "kept").iterdir()) == []
    monkeypatch.setattr(feature_cache, "_encode_images", None)  # it is said before any image is looked at
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file; name a folder"):
        cache_features(tmp_path / "file", mixture, pyramid_processor, pyramid_model)


def test_images_are_looked_at_on_the_device_of_the_training(
    parts, pyramid_model, pyramid_processor, tmp_path, monkeypatch
):
    places = []
    monkeypatch.setattr(pyramid_model.vision_tower, "to", lambda device: places.append(str(device)))
    cache_features(
        tmp_path, build_mixture(parts / "train.jsonl"), pyramid_processor, pyramid_model, device=torch.device("cuda:1")
    )
    assert places == ["cuda:1", "cpu"]


@pytest.mark.heavy
def test_tower_and_region_encoder_work_where_the_training_does_before_it_begins(parts, tmp_path, monkeypatch):
    moved = []

    @contextmanager
    def moved_to(device, module):
        moved.append((str(device), type(module).__name__))
        yield

    monkeypatch.setattr(feature_cache, "moved_to", moved_to)
    monkeypatch.setattr(alignment, "moved_to", moved_to)
    stage1(tmp_path / "out", parts, "--align_regions", "1", "--feature_cache", f"{tmp_path}/kept", steps=1)
    assert moved == [("cpu", "VisionTower"), ("cpu", "LightRegionEncoder")]


def test_a_sample_with_kept_features_has_the_same_text_and_boxes(parts, pyramid_model, pyramid_processor, tmp_path):
    mixture = build_mixture(parts / "train.jsonl")
    kept = cache_features(tmp_path, mixture, pyramid_processor, pyramid_model)
    with_image = EncodedDataset(mixture, pyramid_processor, 0)[2]
    with_features = EncodedDataset(mixture, pyramid_processor, 0, kept, {"red": 0, "green": 1, "blue": 2})[2]
    assert torch.equal(with_image["input_ids"], with_features["input_ids"])
    assert torch.equal(with_image["boxes"], with_features["boxes"])
    assert "pixel_values" not in with_features
    named = mixture.region_texts(2)
    expected = [{"red": 0, "green": 1, "blue": 2}[named[box]] for box in with_features["box_indices"].tolist()]
    assert with_features["text_ids"].tolist() == expected


@pytest.fixture
def damaged(parts, tmp_path):
    """Samples of eight images, of which the second is missing, the third is cut off and the fourth is none."""
    rows = []
    for number, row in enumerate(map(json.loads, (parts / "train.jsonl").read_text().splitlines())):
        image = tmp_path / f"{number}.png"
        whole = (parts / row["image"]).read_bytes()
        if number != 1:
            image.write_bytes({2: whole[: len(whole) // 2], 3: b"no image"}.get(number, whole))
        rows.append(json.dumps(row | {"image": str(image)}) + "\n")
    (tmp_path / "train.jsonl").write_text("".join(rows[:8]))
    return tmp_path / "train.jsonl"


def test_unreadable_images_are_skipped_with_the_words_of_the_plain_path(
    damaged, pyramid_model, pyramid_processor, tmp_path, caplog
):
    mixture = build_mixture(damaged)
    plain = EncodedDataset(mixture, pyramid_processor, 0)
    reasons = [plain[index].get("skipped") for index in range(8)]
    assert [reason is not None for reason in reasons] == [False, True, True, True] + [False] * 4

    for _ in range(2):  # looked at, then read from the file
        kept = cache_features(tmp_path / "kept", mixture, pyramid_processor, pyramid_model)
        dataset = EncodedDataset(mixture, pyramid_processor, 0, kept)
        samples = [dataset[index] for index in range(8)]
        assert [sample.get("skipped") for sample in samples] == reasons
        whole = cache_features(tmp_path / "whole", Some(mixture, 6), pyramid_processor, pyramid_model)
        image = mixture.sample(6, np.random.default_rng(0)).image
        assert torch.allclose(samples[6]["image_tokens"], whole.get(image)["image_tokens"], rtol=2e-3, atol=2e-3)
    assert caplog.text.count("3 of 8 images cannot be read, and their samples are skipped; the first: image") == 1

    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    assert "but is readable now; restart the training" in dataset[1]["skipped"]
    kept = cache_features(tmp_path / "kept", mixture, pyramid_processor, pyramid_model)
    assert "skipped" not in EncodedDataset(mixture, pyramid_processor, 0, kept)[1]


@pytest.mark.heavy
def test_a_training_on_kept_features_skips_and_counts_as_without_them(damaged, parts, tmp_path):
    counts = []
    for more in ([], ["--feature_cache", f"{tmp_path}/kept"]):
        chosen = ["--dataset_config", str(damaged), "--logging_steps", "1", "--max_bad_fraction", "0.5", *more]
        folder = stage1(tmp_path / f"out{len(counts)}", parts, *chosen, steps=4)
        state = json.loads(next(folder.glob("checkpoint-*/trainer_state.json")).read_text())
        counts.append([entry.get("skipped") for entry in state["log_history"] if "loss" in entry])
    assert counts[0] == counts[1] and counts[0][-1]


def test_images_none_of_which_can_be_read_are_told_in_one_line(damaged, pyramid_model, pyramid_processor, tmp_path):
    with pytest.raises(InputError, match=r"--feature_cache: 1 of 1 images cannot be read; the first: .*1\.png"):
        cache_features(tmp_path / "kept", Some(build_mixture(damaged), 1), pyramid_processor, pyramid_model)
    assert not (tmp_path / "kept").exists()


class Some:
    """A mixture of one sample of another."""

    def __init__(self, mixture, index):
        self.mixture, self.index = mixture, index

    def __len__(self):
        return 1

    def sample(self, _, rng):
        return self.mixture.sample(self.index, rng)


class Shifting:
    """A mixture of one sample whose image is shifted."""

    def __init__(self, image):
        self.image = image

    def __len__(self):
        return 1

    def sample(self, index, rng):
        turns = (Turn("user", "Hi"), Turn("assistant", "Ho"))
        return RegionSample(self.image, turns, augmentation=Augmentation(shift=(1, 0)), source="shifted#1")


def test_augmented_images_cannot_be_kept(parts, pyramid_model, pyramid_processor, tmp_path):
    with pytest.raises(InputError, match="shifted#1: --feature_cache needs data sets that do not augment"):
        cache_features(tmp_path, Shifting(str(parts / "images/0.png")), pyramid_processor, pyramid_model)
