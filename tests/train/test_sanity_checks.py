"""What is looked at before the first step."""

import json
import logging
import re

import pytest
from test_training import stage1

from gpt4roi.data.unified import UnifiedDataset
from gpt4roi.errors import InputError
from gpt4roi.processing.batch import pad_features
from gpt4roi.structures import RegionSample, Turn
from gpt4roi.train.sanity_checks import check_drops, check_first_batch

GOOD = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
BAD = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": ""}]}
SILENT = {"conversations": []}


def data_of(path, *objects):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in objects))
    return UnifiedDataset(path)


def test_a_data_set_that_lost_too_many_objects_stops_before_the_first_step(tmp_path):
    data = data_of(tmp_path / "a.jsonl", *[GOOD] * 8, BAD, BAD)
    with pytest.raises(InputError, match=r"a.jsonl: 2 of 10 cannot be used, more than .*first: .*a.jsonl#9: turn 2"):
        check_drops([data], 0.01)
    check_drops([data], 0.2)


def test_a_single_bad_object_and_what_a_rule_leaves_out_do_not_stop_it(tmp_path):
    check_drops([data_of(tmp_path / "a.jsonl", GOOD, BAD, SILENT, SILENT, SILENT)], 0.01)


def test_faults_of_all_training_sets_count_together(tmp_path):
    one, other = (data_of(tmp_path / f"{name}.jsonl", *[GOOD] * 20, BAD) for name in "ab")
    check_drops([one], 0.01)
    with pytest.raises(InputError, match="2 of 42 annotations of all training sets cannot be used"):
        check_drops([one, other], 0.01)


def half_missing(parts, path):
    """Writes 40 rows, every other of which names an image that is not there."""
    rows = [json.loads(row) for row in (parts / "train.jsonl").read_text().splitlines() * 5]
    for number, row in enumerate(rows):
        row["image"] = f"{parts}/{row['image'] if number % 2 else 'missing.png'}"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--dataset_config", str(path), "--logging_steps", "1"]


@pytest.mark.heavy
def test_skipped_samples_are_reported_at_each_logging_step(parts, tmp_path):
    chosen = half_missing(parts, tmp_path / "some.jsonl")
    folder = stage1(tmp_path / "out", parts, *chosen, "--max_bad_fraction", "1", steps=4)
    state = json.loads(next(folder.glob("checkpoint-*/trainer_state.json")).read_text())
    counts = [entry["skipped"] for entry in state["log_history"] if "loss" in entry]
    assert counts == sorted(counts) and 4 <= counts[-1] <= 12


@pytest.mark.heavy
def test_a_single_bad_sample_does_not_stop_a_training_however_often_it_comes_around(parts, tmp_path, caplog):
    rows = [json.loads(row) for row in (parts / "train.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["image"] = f"{parts}/{row['image']}" if number else "missing.png"
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = ["--dataset_config", f"{tmp_path}/some.jsonl", "--per_device_train_batch_size", "4"]
    folder = stage1(tmp_path / "out", parts, *chosen, steps=60)
    assert json.loads((folder / "trained.json").read_text())["steps"] == 60
    assert caplog.text.count("Skipped a sample: image") > 0.01 * 60 * 4


@pytest.mark.heavy
def test_a_training_of_which_too_much_is_bad_stops_with_the_numbers_and_the_last_place(parts, tmp_path):
    chosen = half_missing(parts, tmp_path / "some.jsonl")
    with pytest.raises(InputError, match=r"of 1\d\d samples could not be used, .* the last: image .*some.jsonl#\d+"):
        stage1(tmp_path / "out", parts, *chosen, "--per_device_train_batch_size", "4", steps=60)


@pytest.mark.heavy
def test_what_is_left_out_and_what_is_skipped_count_together(parts, tmp_path):
    rows = [json.loads(row) for row in (parts / "train.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["image"] = f"{parts}/{row['image']}" if number else "missing.png"
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, BAD]))
    chosen = ["--dataset_config", f"{tmp_path}/some.jsonl", "--per_device_train_batch_size", "4"]
    with pytest.raises(InputError, match=r"of 10\d samples and 1 of \d+ annotations could not be used, more than"):
        stage1(tmp_path / "out", parts, *chosen, steps=60)


def test_the_first_sample_is_logged_as_the_conversations_that_the_model_sees(pyramid_processor, caplog):
    turns = [turn for number in (1, 2) for turn in (Turn("user", f"Number {number}?"), Turn("assistant", f"n{number}"))]
    encoded = pyramid_processor.encode_text(RegionSample(None, tuple(turns), independent_turns=True))
    batch = pad_features([encoded, pyramid_processor.encode_text(RegionSample(None, tuple(turns) * 4))], 0)
    caplog.set_level(logging.INFO)
    check_first_batch([batch | {"n_dropped_rounds": [0, 0], "skipped": []}], pyramid_processor)
    logged = next(message for message in caplog.messages if message.startswith("First sample"))
    _, first, second = re.split(r"\n?— conversation \d of 2, which sees no other —\n", logged)
    assert [part.split("<|start|>")[-2:] for part in (first, second)] == [
        [f"user\nNumber {number}?<|end|>\n", f"assistant\n«n{number}<|end|>»"] for number in (1, 2)
    ]
