"""A held-out file of one's own as a benchmark: each kind of answer by its own measures."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from official import CAPTIONS, unified
from phone import STORED, save_photo, seen
from tiny import tiny_model, tiny_processor

from gpt4roi.errors import InputError
from gpt4roi.evaluation import captions
from gpt4roi.evaluation.benchmarks.unified import regions_of, score
from gpt4roi.evaluation.choices import read_options, written_like
from gpt4roi.evaluation.evaluate import evaluate, read_items
from gpt4roi.evaluation.items import Source
from gpt4roi.evaluation.predictor import ModelPredictor


@pytest.fixture(autouse=True)
def without_java(monkeypatch):
    monkeypatch.setattr(captions, "has_java", lambda: False)


@pytest.fixture
def source(tmp_path):
    return Source(unified(tmp_path))


def test_every_question_is_read_with_its_kind_options_and_task(source):
    items = read_items("unified", source)

    assert [(item.id, item.task, item.metadata["kind"]) for item in items] == [
        ("1.0", "caption", "text"),
        ("1.1", "caption", "text"),
        ("1.2", "left", "yes/no"),
        ("1.3", "left", "yes/no"),
        ("1.4", "left", "yes/no"),
        ("1.5", "colour", "multiple choice"),
        ("1.6", "which", "pointing"),
        ("2.0", "", "text"),
    ]
    assert items[3].query.choices == ("yes", "no") and items[3].label == 1
    assert items[5].options == ("red", "blue", "green") and items[5].query.choices == ("(A)", "(B)", "(C)")
    assert [item.shown for item in items[:3]] == [0, 1, None]
    assert source.filtered == {"later question of a dialogue": 1, "question without an image": 1}


def test_figures_by_kind_and_by_task_beside_the_commonest_answer(source):
    said = [CAPTIONS[0], "a cat", "No, it is not.", "No.", "no", "It is blue", "region1 and region2", CAPTIONS[2]]
    items = [replace(item, answer=text) for item, text in zip(read_items("unified", source), said, strict=True)]

    scores = score(items, source)

    values = {name: measure.value for name, measure in scores.measures.items()}
    assert values["exact match"] == pytest.approx(2 / 3) and values["similarity"] > 2 / 3
    assert values["yes/no (parsed)"] == pytest.approx(2 / 3) and values["multiple choice (parsed)"] == 1.0
    assert values["pointing"] == 0.0 and values["pointing F1"] == pytest.approx(2 / 3)
    assert "CIDEr" in values and "yes/no (likelihood)" not in values
    by_task = {task: {name: one.value for name, one in found.items()} for task, found in scores.by_task.items()}
    assert by_task["caption"] == {"right": 0.5, "the commonest answer": 0.5}
    assert by_task["left"] == {"right": pytest.approx(2 / 3), "the commonest answer": pytest.approx(2 / 3)}
    assert scores.right == [None, None, False, True, True, True, False, None]
    assert scores.details["kinds"] == {"text": 3, "yes/no": 3, "multiple choice": 1, "pointing": 1}


def test_a_model_answers_a_file_of_bare_boxes_too(tmp_path):
    unified(tmp_path)
    asked = {"image": "images/1.jpg", "boxes": [[2, 3, 30, 40], [40, 5, 80, 60]], "independent": True}
    texts = ("What is <bbox>?", "a dog", "And <bbox>?", "Yes.")
    asked["conversations"] = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]
    (tmp_path / "bare.jsonl").write_text(json.dumps(asked))
    model = tiny_model("pyramid")
    predictor = ModelPredictor(model, tiny_processor(model.config), max_new_tokens=2)

    metrics = evaluate("unified", predictor, Source(tmp_path / "bare.jsonl"), tmp_path / "out")

    assert metrics["items"] == 2 and metrics["unanswered"] == 0 and "yes/no (likelihood)" in metrics["summary"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["boxes"] for line in lines] == [[[2, 3, 30, 40]], [[40, 5, 80, 60]]]
    assert len(lines[1]["likelihoods"]) == 2


def test_boxes_are_of_the_frame_that_the_object_states(tmp_path):
    save_photo(tmp_path / "a.jpg", 6)
    _, upright = seen(6)
    for pipeline, box in (("dialogue", STORED), ("detection", upright), (None, STORED)):
        line = {"image": "a.jpg", "boxes": [list(box)], "image_pipeline": pipeline, "independent": True}
        line["conversations"] = [{"from": "human", "value": "What is <region1>?"}, {"from": "gpt", "value": "a dog"}]
        (tmp_path / "t.jsonl").write_text(json.dumps(line))
        (item,) = read_items("unified", Source(tmp_path / "t.jsonl"))
        assert item.query.boxes_px.tolist() == [upright]


def test_objects_that_cannot_be_used_are_named_and_a_question_of_the_command_is_refused(source):
    with source.data.open("a") as file:
        file.write(
            '{"image": "images/1.jpg", "boxes": [[1, 2, 3]], "conversations": [{"from": "gpt", "value": "x"}]}\n'
        )
    read_items("unified", source)
    assert source.left_out == [f"{source.data}#4: box 1 must be four finite numbers, got [1, 2, 3]"]
    with pytest.raises(InputError, match="--question: unified asks the questions of its file; leave it out"):
        read_items("unified", replace(source, question="What?"))


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which? (A) red (B) dark blue, (C) green", ("red", "dark blue", "green")),
        ("Which?\nA. red\nB. dark blue\nAnswer with a letter.", ("red", "dark blue")),
        ("Which?\nA) red\nB) blue", ("red", "blue")),
        ("Which? (B) red (C) blue", ()),
        ("What is (A) this?", ()),
    ],
)
def test_options_are_read_from_the_question(question, options):
    assert read_options(question) == options


@pytest.mark.parametrize(
    ("answer", "choices"),
    [
        ("(B)", ("(A)", "(B)")),
        ("B.", ("A.", "B.")),
        ("dark blue", ("red", "dark blue")),
        ("Answer: (B) dark blue", ("Answer: (A) red", "Answer: (B) dark blue")),
        ("It must be dark blue", ("It must be red", "It must be dark blue")),
        ("b", ()),
    ],
)
def test_choices_are_written_as_the_answer_is(answer, choices):
    assert written_like(answer, ("red", "dark blue"), 1) == choices


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [
        ("region2, region5", {2, 5}),
        ("<region2> and region 3.", {2, 3}),
        ("region2 <bbox>", {2}),
        ("None.", set()),
        ("region2 is a dog", None),
        ("a dog", None),
        ("", None),
    ],
)
def test_regions_alone_are_an_answer_that_points(answer, numbers):
    assert regions_of(answer) == numbers
