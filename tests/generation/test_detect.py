"""Scores of proposals for queries: equal to plain forward passes; NMS, order and COCO's form of what is left."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import region_sensitive_chat

from gpt4roi import InputError, RegionSample, Turn
from gpt4roi.constants import IGNORE_INDEX
from gpt4roi.generation.detect import Detection, coco_results, select
from gpt4roi.processing.mentions import named_regions
from gpt4roi.region_chat import AnswerText

BOXES = [[5, 5, 40, 30], [30, 10, 90, 60], [50, 2, 70, 62]]


@pytest.fixture(scope="module")
def chat():
    chat = region_sensitive_chat()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    chat.set_image(Image.fromarray(pixels).resize((96, 64), Image.Resampling.NEAREST))
    return chat


def log_likelihood(chat, box, question: str, answer: str) -> float:
    """By one forward pass of the whole text."""
    turns = (Turn("user", question), Turn("assistant", answer))
    inputs = chat.processor(RegionSample(chat._dialogue.image, turns, np.asarray([box])))
    labels = inputs["labels"][0, 1:]
    names = ("input_ids", "attention_mask", "pixel_values", "boxes")
    with torch.no_grad():
        logits = chat.model(**{name: inputs[name] for name in names}).logits[0, :-1].log_softmax(-1)
    supervised = labels != IGNORE_INDEX
    return float(logits[supervised].gather(1, labels[supervised][:, None]).sum())


def scores_of(chat, **settings) -> dict[tuple[str, int], float]:
    found = chat.detect(BOXES, ["q", "to"], threshold=0, nms_iou=1, **settings)
    return {(one.query, one.region): one.score for one in found}


def test_a_score_is_the_probability_of_the_query_as_the_answer(chat):
    scores = scores_of(chat, batch_size=3)

    assert len(scores) == 6
    for (query, region), score in scores.items():
        expected = log_likelihood(chat, BOXES[region - 1], chat.default_question, query)
        assert math.log(score) == pytest.approx(expected, abs=1e-4)
    alone = chat.detect(BOXES, ["q"], threshold=0, nms_iou=1)  # with nothing that answers could have in common
    assert {one.region: one.score for one in alone} == pytest.approx(
        {region: score for (query, region), score in scores.items() if query == "q"}, rel=1e-4
    )


def test_with_a_place_for_the_query_it_is_that_of_yes_against_no(chat):
    scores = scores_of(chat, question="Is <region1> {}?")

    yes, no = (log_likelihood(chat, BOXES[2], "Is <region1> to?", answer) for answer in ("yes", "no"))
    assert scores["to", 3] == pytest.approx(1 / (1 + math.exp(no - yes)), abs=1e-4)


def test_boxes_that_overlap_a_likelier_one_of_the_same_query_are_dropped():
    boxes = np.array([[0.0, 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10], [20, 0, 29, 10]])
    scores = np.array([[0.5, 0.6], [0.7, 0.1], [0.9, 0.2], [0.3, 0.8]])

    found = select(scores, boxes, ["cup", "cat"], threshold=0.15, nms_iou=0.5)

    assert [(one.query, one.region, one.score) for one in found] == [
        ("cup", 3, 0.9),
        ("cup", 2, 0.7),
        ("cat", 4, 0.8),
        ("cat", 1, 0.6),
    ]
    assert found[1].box.tolist() == [1, 0, 10, 10]
    assert len(select(scores, boxes, ["cup", "cat"], threshold=0.15, nms_iou=1)) == 7
    assert select(scores, boxes, ["cup", "cat"], threshold=1, nms_iou=1) == []


def test_results_are_those_of_coco():
    found = [Detection("a cat", 4, np.array([1.0, 2.0, 11.5, 22.0]), 0.75)]

    assert coco_results(found, ["a cup", "a cat"], 139) == [
        {"image_id": 139, "category_id": 2, "category_name": "a cat", "bbox": [1, 2, 10.5, 20], "score": 0.75}
    ]


@pytest.mark.parametrize(
    ("queries", "settings", "message"),
    [
        (["a cup", " a cup"], {}, "queries are a list of texts, none empty or given twice, got ['a cup', ' a cup']"),
        ("a cup", {}, "queries are a list of texts, none empty or given twice, got 'a cup'"),
        ([], {}, "queries are a list of texts, none empty or given twice, got []"),
        (["a cup"], {"threshold": 1.5}, "threshold and nms_iou are from 0 to 1, got 1.5 and 0.5"),
    ],
)
def test_wrong_queries_and_limits_are_refused(chat, queries, settings, message):
    with pytest.raises(InputError) as error:
        chat.detect(BOXES, queries, **settings)
    assert str(error.value) == message


def test_an_answer_is_text_and_has_the_regions_that_it_names(chat):
    assert named_regions("region2, <region5> and Region 2; subregion3, region9", 5) == (2, 5)
    answer = AnswerText.of("region2, region5", 5)
    assert (answer, answer.regions) == ("region2, region5", (2, 5))

    asked = chat.fork().ask("Which of <region1> and <region2>?", BOXES[:2], max_new_tokens=2)
    assert isinstance(asked, AnswerText)
    assert asked.regions == ()
