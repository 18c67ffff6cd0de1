import json

import numpy as np
import pytest

from gpt4roi.datasets.unified import UnifiedDataset
from gpt4roi.errors import InputError


def item(**changes):
    turns = []
    for number, task in enumerate(("caption", "caption", "larger", "left"), start=1):
        turns += [{"from": "human", "value": f"{task} <region{number}>?"}, {"from": "gpt", "value": f"answer {number}"}]
    whole = {
        "image": "a.png",
        "boxes": [[0, 0, 10, 10], [5, 5, 20, 30], [1, 2, 3, 4], [2, 2, 8, 8]],
        "conversations": turns,
        "tasks": ["caption", "caption", "larger", "left"],
        "independent": True,
    }
    return whole | changes


def write(path, *items):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in items))
    return path


def test_a_sample_holds_the_picture_the_boxes_and_all_turns(tmp_path):
    data = UnifiedDataset(write(tmp_path / "train.jsonl", item()))
    sample = data.sample(0, np.random.default_rng(0))
    assert sample.image == str(tmp_path / "a.png")
    assert sample.boxes_px.tolist()[1] == [5, 5, 20, 30]
    assert [turn.role for turn in sample.turns] == ["user", "assistant"] * 4
    assert sample.independent_turns
    assert sample.source == f"{tmp_path / 'train.jsonl'}#1"


def test_a_visit_draws_as_many_pairs_of_each_task_as_asked_and_keeps_pairs_together(tmp_path):
    path = write(tmp_path / "train.jsonl", item())
    data = UnifiedDataset(path, pairs_per_visit={"caption": 1, "left": 3})
    seen = set()
    for seed in range(20):
        turns = data.sample(0, np.random.default_rng(seed)).turns
        assert len(turns) == 4
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            assert question.text[-3] == answer.text[-1]
        seen.add(tuple(turn.text for turn in turns))
    assert len(seen) == 4, "two captions to choose from, in two orders with the one `left`"


def test_the_same_seed_draws_the_same_pairs(tmp_path):
    data = UnifiedDataset(write(tmp_path / "train.jsonl", item()), pairs_per_visit={"caption": 1, "larger": 1})
    assert data.sample(0, np.random.default_rng(3)).turns == data.sample(0, np.random.default_rng(3)).turns


def test_region_texts_are_the_answers_to_caption_questions(tmp_path):
    assert UnifiedDataset(write(tmp_path / "t.jsonl", item())).region_texts(0) == {0: "answer 1", 1: "answer 2"}


def test_a_json_list_as_llava_writes_it_is_read_as_it_is(tmp_path):
    path = tmp_path / "llava.json"
    path.write_text(
        json.dumps([{"id": "1", "conversations": [{"from": "human", "value": "hi"}]}, {"conversations": []}])
    )
    data = UnifiedDataset(path)
    assert len(data) == 1
    assert data.dropped == {"no conversation": 1}
    assert data.sample(0, np.random.default_rng(0)).image is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": [[0, 0, 1]]}, "four finite numbers"),
        ({"boxes": [[0, 0, "a", 1]]}, "boxes must be numbers"),
        ({"boxes": [[0, 0, float("nan"), 1]]}, "four finite numbers"),
        ({"conversations": "hello"}, "conversations must be a list"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "a turn is from"),
        ({"conversations": [{"from": "human", "value": 3}]}, "a turn's value must be text"),
        ({"image": 7}, "image must be a path"),
        ({"tasks": ["caption"]}, "1 tasks for 8 turns"),
        ({"independent": False}, "needs independent questions"),
    ],
)
def test_a_wrong_object_is_named_with_file_and_line(tmp_path, changes, message):
    path = write(tmp_path / "train.jsonl", item(), item(**changes))
    with pytest.raises(InputError, match=message) as caught:
        UnifiedDataset(path, pairs_per_visit={"caption": 1})
    assert f"{path}#2" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b'{"a": ', "not valid JSON"), (b"\xff\xfe", "not UTF-8"), (b"[1]", "#0")]
)
def test_a_broken_file_is_a_readable_error(tmp_path, content, message):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        UnifiedDataset(path)


def test_a_missing_file_is_a_readable_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        UnifiedDataset(tmp_path / "nothing.jsonl")
