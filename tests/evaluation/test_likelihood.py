"""How likely each choice is: equal to one forward pass of the whole text, in batches or alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from official import write_image
from tiny import tiny_model, tiny_processor

from gpt4roi.constants import IGNORE_INDEX
from gpt4roi.evaluation.choices import parse_choice
from gpt4roi.evaluation.predictor import ModelPredictor, Query
from gpt4roi.structures import RegionSample, Turn


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A model, its processor, and multiple-choice questions about two images."""
    folder = tmp_path_factory.mktemp("pictures")
    model = tiny_model("pyramid")
    processor = tiny_processor(model.config)
    queries = []
    for number, (choices, boxes) in enumerate(
        [
            (("(A)", "(B)", "(C)"), [[2, 3, 40, 50]]),
            (("red", "a long answer", "re"), [[2, 3, 40, 50], [20, 5, 90, 60]]),
            (("yes", "no"), [[10, 3, 60, 40]]),
        ]
    ):
        path = folder / f"{number % 2}.png"
        write_image(path, number % 2)
        mentions = " and ".join(f"<region{k + 1}>" for k in range(len(boxes)))
        queries.append(
            Query(path, f"What about {mentions}?", np.asarray(boxes, dtype=float), choices=choices, id=str(number))
        )
    return model, processor, queries


def by_whole_forward(model, processor, query: Query) -> list[float]:
    """The log-likelihood of every choice's learnt tokens, one forward pass each."""
    found = []
    for choice in query.choices:
        turns = (Turn("user", query.question), Turn("assistant", choice))
        inputs = processor(RegionSample(str(query.image), turns, query.boxes_px))
        labels = inputs.pop("labels")[0, 1:]
        names = ("input_ids", "attention_mask", "pixel_values", "boxes")
        with torch.no_grad():
            logits = model(**{name: inputs[name] for name in names if name in inputs}).logits[0, :-1].log_softmax(-1)
        learnt = labels != IGNORE_INDEX
        found.append(float(logits[learnt].gather(1, labels[learnt][:, None]).sum()))
    return found


def test_likelihoods_equal_those_of_whole_forward_passes_up_to_a_constant(asked):
    model, processor, queries = asked

    together = ModelPredictor(model, processor, batch_size=16).likelihoods(queries)
    alone = [ModelPredictor(model, processor, batch_size=1).likelihoods([query])[0] for query in queries]

    for query, batched, single in zip(queries, together, alone, strict=True):
        expected = np.asarray(by_whole_forward(model, processor, query))
        for found in (np.asarray(batched), np.asarray(single)):
            assert found - found[0] == pytest.approx(expected - expected[0], abs=1e-4)
        assert np.ptp(expected) > 0.1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("(B)", 1),
        ("B", 1),
        ("b.", 1),
        ("Answer: C", 2),
        ("The correct answer is (D).", 3),
        ("The answer is D", 3),
        ("A red ball", 0),
        ("a red ball", 0),
        ("It is a dog.", 1),
        ("A dog", 1),
        ("(A) or (B)", None),
        ("I do not know", None),
        ("a dog and two cats", None),
        ("(F)", None),
        ("", None),
    ],
)
def test_an_answer_names_an_option_by_letter_or_by_its_words(answer, expected):
    assert parse_choice(answer, ["a red ball", "a dog", "two cats", "nothing"]) == expected
