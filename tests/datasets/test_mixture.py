import json

import numpy as np
import pytest

from gpt4roi.datasets.base import RegionDataset
from gpt4roi.datasets.mixture import Mixture
from gpt4roi.datasets.selection import build_mixture
from gpt4roi.errors import InputError
from gpt4roi.structures import RegionSample, Turn


class Numbers(RegionDataset):
    def __init__(self, name, size):
        super().__init__()
        self.name, self.size = name, size

    def __len__(self):
        return self.size

    def sample(self, index, rng):
        return RegionSample(None, (Turn("user", f"{self.name}{index}"),))


def texts(mixture):
    return [mixture.sample(index, np.random.default_rng(0)).turns[0].text for index in range(len(mixture))]


def test_sets_are_joined_in_order():
    assert texts(Mixture([Numbers("a", 2), Numbers("b", 1)])) == ["a0", "a1", "b0"]


def test_a_ratio_below_one_takes_a_seeded_part_and_above_one_repeats():
    drawn = texts(Mixture([Numbers("a", 10), Numbers("b", 4)], [0.5, 2.5], seed=1))
    assert len(drawn) == 15
    assert len({text for text in drawn if text[0] == "a"}) == 5
    assert sorted(drawn.count(f"b{index}") for index in range(4)) == [2, 2, 3, 3]
    assert drawn == texts(Mixture([Numbers("a", 10), Numbers("b", 4)], [0.5, 2.5], seed=1))


@pytest.mark.parametrize("ratio", [0, -1, 0.01])
def test_a_ratio_that_leaves_nothing_is_refused(ratio):
    with pytest.raises(InputError, match="leaves none of 3 samples"):
        Mixture([Numbers("a", 3)], [ratio])


def line():
    return json.dumps({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}) + "\n"


def test_a_list_in_json_in_python_and_a_plain_file_of_pictures_are_all_opened(tmp_path):
    pictures = tmp_path / "p.jsonl"
    pictures.write_text(line() * 3)
    entry = {"type": "unified", "ann_file": str(pictures), "ratio": 2}
    (tmp_path / "c.json").write_text(json.dumps([entry]))
    (tmp_path / "c.py").write_text(f"# sets\ndatasets = {[entry]!r}\n")
    assert [len(build_mixture(tmp_path / name)) for name in ("c.json", "c.py", "p.jsonl")] == [6, 6, 3]


def test_building_does_not_change_the_list(tmp_path):
    pictures = tmp_path / "p.jsonl"
    pictures.write_text(line())
    entries = [{"type": "unified", "ann_file": str(pictures)}]
    assert len(build_mixture(entries)) == len(build_mixture(entries)) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "names no data set"),
        ('[{"type": "unifid"}]', "unknown type 'unifid'; known are"),
        ('[{"type": "unified", "ann": 1}]', r"unknown keys \['ann'\] for unified; accepted are \['ann_file'"),
        ('{"type": 1}', "expected a list of data sets, got dict"),
        ("[1]", "data set 0: expected an object with 'type'"),
        ("nonsense", "not valid JSON"),
    ],
)
def test_a_wrong_list_is_a_readable_error(tmp_path, config, message):
    path = tmp_path / "c.json"
    path.write_text(config)
    with pytest.raises(InputError, match=message):
        build_mixture(path)


def test_a_python_list_is_read_and_never_executed(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("datasets = [{'type': open('/tmp/x')}]")
    with pytest.raises(InputError, match="expected plain literals"):
        build_mixture(path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ratio": "x"}, "data set 0: ratio must be a number above 0, got 'x'"),
        ({"ratio": float("nan")}, "data set 0: ratio must be a number above 0, got nan"),
        ({"ann_file": None}, "data set 0: ann_file is missing"),
        ({"pairs_per_visit": 5}, "pairs_per_visit must be task -> number, got 5"),
        ({"type": ["unified"]}, "data set 0: expected an object with 'type'"),
    ],
)
def test_a_wrong_value_in_a_list_of_data_sets_is_one_readable_error(more, message):
    entry = {"type": "unified", "ann_file": "train.jsonl"} | more
    with pytest.raises(InputError, match=message):
        build_mixture([{key: value for key, value in entry.items() if value is not None}])


def test_a_list_of_data_sets_that_is_not_text_is_named(tmp_path):
    (tmp_path / "list.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"list.json: not UTF-8 text at byte 0"):
        build_mixture(tmp_path / "list.json")
