"""What is looked at before the first step."""

import json

import pytest

from gpt4roi.datasets.unified import UnifiedDataset
from gpt4roi.errors import InputError
from gpt4roi.train.checks import check_drops

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
