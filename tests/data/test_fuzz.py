"""Damaged annotation files: no traceback, only readable messages with file and position."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from fuzz import mutated
from recordings import ENTRIES

from gpt4roi.data.registry import open_reader
from gpt4roi.errors import InputError

READERS = [name for name in ENTRIES if name not in ("coco_det_test", "coco_det_train_max2", "coco_det_tiny")]
COPIES = 34
"""Of the annotation file of each of the ten readers: 340 in all."""


def opened_or_told(entry, path):
    """Opens a data set, looks at all of it and draws from it; returns the messages of what could not be used."""
    told = []
    try:
        reader = open_reader(entry)
    except InputError as error:
        return [str(error)]
    told += [drop.detail or f"{drop.where}: {drop.reason}" for drop in reader.drops()]
    assert sum(reader.dropped.values()) == len(told)
    for index in range(len(reader)):
        try:
            item, sample = reader.item(index), reader.sample(index, np.random.default_rng(index))
        except InputError as error:
            told.append(str(error))
            continue
        assert np.isfinite(item.boxes_px).all() and np.isfinite(sample.boxes_px).all()
        assert len(item.region_texts) == len(item.boxes_px) == len(item.box_sources)
        assert all(turn.text.strip() and turn.text.encode() for turn in sample.turns)
    return told


def check(told, path, what):
    """Every message is one line of reasonable length that names the file."""
    for message in told:
        assert str(path) in message, (what, message)
        assert "\n" not in message and len(message) < 600, (what, message)
        assert "Traceback" not in message


@pytest.mark.heavy
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_annotation_file_gives_only_readable_messages(tmp_path, name):
    path = Path(ENTRIES[name]["ann_file"])
    lines = path.suffix == ".jsonl"
    text = path.read_text()
    content = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    unreadable = 0
    for number, (what, data) in enumerate(mutated(content, COPIES, seed=sum(map(ord, name)), lines=lines)):
        damaged = tmp_path / f"{number}{path.suffix}"
        damaged.write_bytes(data)
        told = opened_or_told(ENTRIES[name] | {"ann_file": damaged}, damaged)
        check(told, damaged, what)
        unreadable += any("not valid JSON" in message or "not UTF-8" in message for message in told)
    assert unreadable >= (2 if lines else 5)


@pytest.mark.heavy
def test_a_damaged_file_of_an_image_s_boxes_costs_only_its_items(tmp_path):
    folder = Path(ENTRIES["vcr"]["img_prefix"])
    content = json.loads((folder / "movie/1.json").read_text())
    for path in folder.rglob("*.json"):
        (tmp_path / "movie").mkdir(exist_ok=True)
        (tmp_path / "movie" / path.name).write_bytes(path.read_bytes())
    damaged = tmp_path / "movie/1.json"
    for what, data in mutated(content, COPIES, seed=5):
        damaged.write_bytes(data)
        told = opened_or_told(ENTRIES["vcr"] | {"img_prefix": tmp_path}, damaged)
        check([message for message in told if not re.match(r"image .* cannot be opened", message)], damaged, what)


def test_a_damaged_pickle_of_detections_gives_only_readable_messages(tmp_path):
    path = Path(ENTRIES["det_llava"]["det_pkl_path"])
    rng, data = np.random.default_rng(0), path.read_bytes()
    for number in range(COPIES):
        noisy = bytearray(data[: int(rng.integers(1, len(data)))] if number % 4 == 0 else data)
        for place in rng.integers(0, len(noisy), 4):
            noisy[place] = rng.integers(256)
        damaged = tmp_path / f"{number}.pkl"
        damaged.write_bytes(noisy)
        told = opened_or_told(ENTRIES["det_llava"] | {"det_pkl_path": damaged}, damaged)
        check(told, damaged, number)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"filename": "a.jpg"}, "expected a list of detections"),
        ([1], r"#entries\[0\]: entry of detections that is not an object"),
        ([{"filename": "a.jpg", "pred_bboxes": [[0, 0, 1, 1, 1]], "labels": [1]}], "are not arrays"),
        ([{"filename": "a.jpg", "pred_bboxes": np.zeros((1, 4)), "labels": np.zeros(1, int)}], r"not float\[N, 5\]"),
        (
            [{"filename": "a.jpg", "pred_bboxes": np.zeros((1, 5)), "labels": np.full(1, 1203)}],
            "label that is not in 0",
        ),
        ([{"filename": "a.jpg", "pred_bboxes": np.full((1, 5), np.nan), "labels": np.zeros(1, int)}], "no fractions"),
    ],
)
def test_wrong_detections_are_told_with_their_place(tmp_path, content, message):
    path = tmp_path / "d.pkl"
    path.write_bytes(pickle.dumps(content))
    told = opened_or_told(ENTRIES["det_llava"] | {"det_pkl_path": path}, path)
    assert len(told) == 1 and re.search(message, told[0]), told
