"""Scenes of things that lie on each other: masks of what can be seen, and their figure in the benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_model, tiny_processor

from gpt4roi import RegionChat
from gpt4roi.data.unified import UnifiedDataset
from gpt4roi.evaluation.items import Source
from gpt4roi.geometry.masks import to_box, to_pixels
from quickstart import occlusion, overlapping, shapes
from quickstart.benchmark.items import OVERLAPPING, load_items
from quickstart.benchmark.scores import figures
from quickstart.make import DRAWN
from quickstart.splits import Material, StampArguments

pytestmark = pytest.mark.heavy
EMBEDDED = Path(__file__).parents[2] / "exp" / "quickstart"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("overlapping")
    (out / "manifest.json").write_text(json.dumps({"captions": {"unseen": []}}))
    backgrounds = shapes.draw_backgrounds(("a",)), shapes.draw_backgrounds(("b",))
    material = Material(shapes.draw_stamps(), *backgrounds, DRAWN)
    arguments = StampArguments(shapes=True, size=128)
    counts = {"train_overlapping": 2, "test_overlapping": 2}
    overlapping.write_overlapping(out, material, arguments, counts)
    for split in ("test", "test_unseen"):
        (out / f"{split}.jsonl").write_text("")
    return out


def test_a_pair_has_boxes_that_nearly_coincide_and_masks_that_do_not_touch(data):
    for split in ("train_overlapping", "test_overlapping"):
        records = [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]
        assert len(records) == 2
        for record in records:
            masks = [to_pixels(mask, (128, 128)) > 0 for mask in record["masks"]]
            assert not np.sum(masks, axis=0).max() > 1  # what can be seen belongs to one thing
            for first, share in zip((0, 2), record["iou"], strict=True):
                boxes = [to_box(mask).tolist() for mask in masks[first : first + 2]]
                assert overlapping.iou(*boxes) == pytest.approx(share, abs=1e-3) and share >= overlapping.SMALLEST_IOU
            assert len({thing["caption"] for thing in record["objects"]}) == 4
            assert Image.open(data / record["image"]).size == (128, 128)
    sample = UnifiedDataset(data / "train_overlapping.jsonl").sample(0, np.random.default_rng(0))
    assert len(sample.masks) == 4 and all(0 < mask.mean() < 1 for mask in sample.masks)


def test_the_benchmark_tells_the_thing_itself_from_the_other_of_its_pair(data):
    items = [item for item in load_items(Source(data)) if item.split == OVERLAPPING]
    assert len(items) == 8 and all(len(item.query.masks) == 4 for item in items)
    answered = [
        type(item)(**{**vars(item), "answer": item.truth if number % 4 else item.given})
        for number, item in enumerate(items)
    ]
    found = figures(answered, {})["overlapping"]
    assert (found["asked"]["value"], found["given"]["value"], found["asked"]["n"]) == (0.75, 0.25, 8)


def test_occlusion_is_told_apart_between_the_two_things_of_a_pair(data):
    model = tiny_model("pyramid", region_shape="mask")
    chat = RegionChat(model, tiny_processor(model.config))
    records = [json.loads(line) for line in (data / "test_overlapping.jsonl").read_text().splitlines()]

    rows = list(occlusion.shares(chat, data / "test_overlapping.jsonl", 2, cells=1))

    assert [row["caption"] for row in rows] == [records[number]["objects"][number]["caption"] for number in (0, 1)]
    for number, row in enumerate(rows):
        own, other = (to_pixels(records[number]["masks"][one], (128, 128)) > 0 for one in (number, number ^ 1))
        found = chat.explain([records[number]["masks"][number]], image=data / row["image"], answer=row["answer"],
                             methods=["occlusion"], cells=1)  # fmt: skip
        heat = found.heatmaps["occlusion"]
        assert row["region"] == pytest.approx(heat.share_inside(own), abs=0.05)
        assert row["other"] == pytest.approx(heat.share_inside(other), abs=1e-6) and row["region"] <= row["box"] + 0.05


def test_the_medians_of_an_occlusion_are_of_each_part_and_of_no_answers_there_are_none():
    rows = [{"region": 0.1 * one, "other": 0.0, "box": 0.5, "right": True} for one in (9, 8, 1)]

    assert occlusion.medians(rows) == {"region": 0.8, "other": 0.0, "box": 0.5} and occlusion.medians([]) == {}


@pytest.mark.slow
def test_the_embedded_model_of_masks_looks_at_the_region_that_is_asked_about():
    config = EMBEDDED / "stage2" / "config.json"
    if (
        not (EMBEDDED / "data" / "test_overlapping.jsonl").exists()
        or '"region_shape": "mask"' not in config.read_text()
    ):
        pytest.skip("no embedded model of masks: bash scripts/quickstart.sh --recipe quickstart/recipe_masks.json")
    chat = RegionChat.from_pretrained(str(EMBEDDED / "stage2"), "cpu")
    plain = list(occlusion.shares(chat, EMBEDDED / "data" / "test.jsonl", 10))
    pairs = [row for row in occlusion.shares(chat, EMBEDDED / "data" / "test_overlapping.jsonl", 20) if row["right"]]

    # Of two things on each other, a wrong answer often is about the other one, and looked there.
    assert len(pairs) >= 5
    for rows in (plain, pairs):
        inside, other = (np.median([row[name] for row in rows]) for name in ("region", "other"))
        assert inside >= 0.8 and other <= 0.1
