import json
import re

import numpy as np
import pytest
from fuzz import mutated

from gpt4roi.data.unified import UnifiedDataset, read_objects
from gpt4roi.data.unified_object import BOX, FIELD, MASK, REFERENCE, TURN
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


def test_a_sample_holds_the_image_the_boxes_and_all_turns(tmp_path):
    data = UnifiedDataset(write(tmp_path / "train.jsonl", item()))
    sample = data.sample(0, np.random.default_rng(0))
    assert sample.image == str(tmp_path / "a.png")
    assert sample.boxes_px.tolist()[1] == [5, 5, 20, 30]
    assert [turn.role for turn in sample.turns] == ["user", "assistant"] * 4
    assert sample.independent_turns
    assert sample.source == f"{tmp_path / 'train.jsonl'}#1"


def test_an_epoch_draws_as_many_pairs_of_each_task_as_asked_and_keeps_pairs_together(tmp_path):
    path = write(tmp_path / "train.jsonl", item())
    data = UnifiedDataset(path, pairs_per_epoch={"caption": 1, "left": 3})
    seen = set()
    for seed in range(20):
        turns = data.sample(0, np.random.default_rng(seed)).turns
        assert len(turns) == 4
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            assert question.text[-3] == answer.text[-1]
        seen.add(tuple(turn.text for turn in turns))
    assert len(seen) == 4, "two captions to choose from, in two orders with the one `left`"


def test_the_same_seed_draws_the_same_pairs(tmp_path):
    data = UnifiedDataset(write(tmp_path / "train.jsonl", item()), pairs_per_epoch={"caption": 1, "larger": 1})
    assert data.sample(0, np.random.default_rng(3)).turns == data.sample(0, np.random.default_rng(3)).turns


def test_region_texts_are_the_answers_to_caption_questions(tmp_path):
    assert UnifiedDataset(write(tmp_path / "t.jsonl", item())).region_texts(0) == {0: "answer 1", 1: "answer 2"}


def test_a_json_list_as_llava_writes_it_is_read_as_it_is(tmp_path):
    path = tmp_path / "llava.json"
    path.write_text(
        json.dumps(
            [
                {"id": "1", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
                {"conversations": []},
            ]
        )
    )
    data = UnifiedDataset(path)
    assert len(data) == 1
    assert data.dropped == {"no conversation": 1}
    assert data.sample(0, np.random.default_rng(0)).image is None


PAIR = [{"from": "human", "value": "What is <region1>?"}, {"from": "gpt", "value": "a cat"}]
RUNS = {"size": [20, 30], "counts": [65, 3, 17, 3, 512]}


def test_masks_of_every_form_become_boxes_and_are_counted(tmp_path, caplog):
    entry = {"image": "a.png", "masks": [RUNS, [[1, 2, 9.5, 2, 9.5, 7]]], "conversations": PAIR}
    with caplog.at_level("INFO"):
        data = UnifiedDataset(write(tmp_path / "train.jsonl", entry, item()))
    assert data.sample(0, np.random.default_rng(0)).boxes_px.tolist() == [[3, 5, 5, 8], [1, 2, 9.5, 7]]
    assert data.n_masks == 2
    assert "2 masks became their bounding boxes" in caplog.text
    assert data.item(0).image_size == (20, 30)


def test_the_size_that_boxes_were_made_for_is_told_where_the_object_says_it(tmp_path):
    data = UnifiedDataset(write(tmp_path / "t.jsonl", item(height=40, width=50), item(), item(height="x", width=2)))
    assert [data.item(index).image_size for index in range(3)] == [(40, 50), None, None]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"boxes": [[0, 0, 1]]}, BOX, "box 1 must be four finite numbers"),
        (
            {"boxes": [[0, 0, 1, 1], [0, 0, "7", 1]]},
            "box that is not four numbers",
            "box 2 must be four finite numbers",
        ),
        ({"boxes": [[0, 0, float("nan"), 1]]}, BOX, "four finite numbers"),
        ({"boxes": [[0, 0, 10**400, 1]]}, BOX, "four finite numbers"),
        ({"boxes": {"x": 1}}, BOX, "boxes must be a list"),
        ({"masks": [RUNS]}, MASK, "boxes or masks, not both"),
        (
            {"boxes": None, "masks": [RUNS, {"size": [2, 2], "counts": [4]}]},
            "mask that cannot be used",
            "the mask is empty: .* of mask 2",
        ),
        ({"conversations": "hello"}, TURN, "conversations must be a list"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "unknown speaker", "a turn is from"),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, "unknown speaker", "a turn is from"),
        ({"conversations": [{"from": "human", "value": 3}]}, TURN, "a turn's value must be text"),
        (
            {"conversations": [PAIR[0], {"from": "gpt", "value": "\ud83d"}]},
            "turn that is not text",
            "a turn's value must be text",
        ),
        ({"conversations": [PAIR[0], {"from": "gpt", "value": " "}]}, "empty answer", r"turn 2 \(from gpt\) is empty"),
        ({"conversations": [{"from": "human", "value": ""}, PAIR[1]]}, "empty question", "turn 1"),
        ({"conversations": PAIR[:1]}, "no answer", "there is no answer"),
        ({"boxes": []}, REFERENCE, "<region4> but 0 boxes"),
        ({"image": None}, REFERENCE, "there is no image"),
        ({"image": 7}, FIELD, "image must be a path"),
        ({"image": "a\x00b"}, FIELD, "image must be a path"),
        ({"independent": "yes"}, FIELD, "independent must be true or false"),
        ({"tasks": 5}, FIELD, "tasks must be a list of names"),
        ({"tasks": ["caption"]}, FIELD, "1 tasks for 8 turns"),
    ],
)
def test_an_object_that_cannot_be_used_is_left_out_counted_and_listed_with_file_and_line(
    tmp_path, caplog, changes, kind, message
):
    path = write(tmp_path / "train.jsonl", item(), item(**changes), item())
    data = UnifiedDataset(path)
    assert len(data) == 2
    assert data.dropped == {kind: 1}
    (drop,) = data.drops()
    assert drop.where == f"{path}#2" and drop.detail.startswith(f"{path}#2: ")
    assert re.search(message, drop.detail)
    assert drop.detail in caplog.text


def test_a_line_that_is_not_json_costs_only_itself(tmp_path):
    path = tmp_path / "train.jsonl"
    line = json.dumps(item()).encode()
    path.write_bytes(b"\n".join([line, b'{"a": ', b"[1]", line, b"\xff\xfe", b"[" * 5000, b"7", line]))
    data = UnifiedDataset(path)
    assert len(data) == 3
    assert data.dropped == {"broken JSON": 3, "not an object": 2}
    assert [drop.where.split("#")[1] for drop in data.drops()] == ["2", "3", "5", "6", "7"]


def test_pairs_per_epoch_for_turns_that_see_each_other_is_refused(tmp_path):
    path = write(tmp_path / "train.jsonl", item(), item(independent=False))
    with pytest.raises(InputError, match=r"train.jsonl#2: pairs_per_epoch needs independent questions"):
        UnifiedDataset(path, pairs_per_epoch={"caption": 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": ', "broken.jsonl#1: not valid JSON"),
        (b"\xff\xfe", "broken.jsonl#1: not UTF-8"),
        (b"[1]", "broken.jsonl#0: expected an object"),
        (b"[1", "broken.jsonl: not valid JSON"),
        (b"", "no object can be used"),
    ],
)
def test_a_file_without_an_object_that_can_be_used_is_a_readable_error(tmp_path, content, message):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        UnifiedDataset(path)


def test_objects_are_read_up_to_the_first_that_is_none(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(item()) + "\n[1]\n")
    objects = read_objects(path)
    assert next(objects)[0] == f"{path}#1"
    with pytest.raises(InputError, match=r"train.jsonl#2: expected an object, got a list"):
        next(objects)


def test_a_missing_file_is_a_readable_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        UnifiedDataset(tmp_path / "nothing.jsonl")


@pytest.mark.heavy
def test_three_hundred_damaged_files_end_in_samples_or_in_a_message_with_file_and_position(
    tmp_path, pyramid_processor, caplog
):
    text_alone = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    with_masks = {"image": "a.png", "masks": [RUNS, [[1, 2, 9, 2, 9, 7]]], "conversations": PAIR}
    content = [item(), with_masks, text_alone, item(tasks=None)]
    used = left_out = refused = 0
    for number, (what, data) in enumerate(mutated(content, 300, lines=True)):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(data)
        try:
            found = UnifiedDataset(path)
        except InputError as error:
            assert str(path) in str(error), what
            refused += 1
            continue
        left_out += sum(found.dropped.values())
        for drop in found.drops():
            assert re.match(rf"{re.escape(str(path))}#\d+$", drop.where), what
            assert drop.reason == "no conversation" or drop.detail.startswith(f"{drop.where}: "), what
        for index in range(len(found)):
            sample = found.sample(index, np.random.default_rng(0))
            found.item(index)
            try:
                pyramid_processor.encode_text(sample, image_size=(64, 64))
                used += 1
            except InputError as error:
                assert sample.source in str(error), what
    assert used > 500 and left_out > 100 and refused > 10
