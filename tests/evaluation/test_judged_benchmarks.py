"""The benchmarks that a judge scores: their files, their figures, and what a judge is shown."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from official import CAPTIONS
from official_judged import JUDGED, dlc_bench, ferret_bench, gar_bench, impartial, mdvp_bench, vip_bench
from PIL import Image
from stub_judge import StubJudge

from gpt4roi.errors import InputError
from gpt4roi.evaluation.benchmarks import open_benchmark
from gpt4roi.evaluation.benchmarks.dlc_bench import read_letter
from gpt4roi.evaluation.evaluate import read_items
from gpt4roi.evaluation.files import mention_regions, read_regions
from gpt4roi.evaluation.items import Source
from gpt4roi.evaluation.judge import Judge, yes_or_no
from gpt4roi.evaluation.scoring import read_pair


@pytest.fixture(scope="module")
def stub():
    """An impartial judge."""
    pytest.importorskip("openai")
    served = StubJudge(impartial)
    yield served
    served.close()


@pytest.fixture
def source_of(stub, tmp_path):
    """A function from a writer of files to a source with a judge."""
    stub.bodies.clear()
    return lambda write, **more: Source(
        write(tmp_path / "data"), judge=Judge(stub.url, "stub", tmp_path / "judge"), **more
    )


def figures(name, items, source):
    """Scores items and returns the figures without judge and prompt in their names."""
    scores = open_benchmark(name).score(items, source)
    for measure in scores.measures.values():
        assert measure.estimate(50).low <= measure.value <= measure.estimate(50).high
    return {key.partition(" (judge stub, prompt ")[0]: one.value for key, one in scores.measures.items()}, scores


@pytest.mark.heavy
def test_dlc_scores_what_a_description_says_and_denies_where_it_recognizes_the_object(source_of):
    source = source_of(dlc_bench)
    items = read_items("dlc-bench", source)
    assert items[0].query.boxes_px.tolist() == [[10, 5, 11, 25]]
    assert items[0].references == ("a red mug; a white star; without a lid",)

    said = ["a red mug with a blue star and no more", "a red mug with a white star"]
    found, scores = figures("dlc-bench", [replace(i, answer=text) for i, text in zip(items, said, strict=True)], source)
    assert found == {"average": 0.5, "positive": 0.0, "negative": 1.0, "recognition": 1.0}
    assert scores.per_item == [
        {"positive": -1.0, "negative": 1.0, "recognition": 1.0},
        {"positive": 1.0, "recognition": 1.0},
    ]
    assert scores.details["judge"]["verdicts"] == 5

    lamps = [replace(item, answer="a lamp with a white star") for item in items]
    found, _ = figures("dlc-bench", lamps, source)
    assert found == {"average": 0.0, "positive": 0.0, "negative": 0.0, "recognition": 0.0}


def test_a_letter_that_the_question_does_not_have_counts_as_unreadable(source_of, stub, monkeypatch):
    source = source_of(dlc_bench)
    monkeypatch.setattr(stub, "reply", lambda body: "E")
    found, scores = figures("dlc-bench", read_items("dlc-bench", source), source)
    assert found == {"average": -1.0, "positive": -1.0, "negative": -1.0, "recognition": 0.0}
    assert scores.details["judge"]["unreadable"] == 5 and "7: the judge chose (E) of 3 options" in scores.notes


def test_ferret_bench_makes_regions_of_the_boxes_in_its_texts_and_rates_each_part(source_of, stub):
    source = source_of(ferret_bench)
    items = read_items("ferret-bench", source)

    assert [item.task for item in items] == ["refer_desc"] * 2 + ["refer_reason"] * 2 + ["ground_conv"] * 2
    assert items[0].query.question == "What is <region1> doing?"
    assert items[0].query.boxes_px == pytest.approx(np.asarray([[24, 6.4, 72, 32]]))
    assert items[2].query.question == "Why is <region1> near <region2>, and not on <region1>?"
    assert len(items[2].query.boxes_px) == 2 and len(items[4].query.boxes_px) == 0
    right = (0, 1, 2)
    answered = [replace(item, answer=item.references[0] if n in right else "no") for n, item in enumerate(items)]
    found, _ = figures("ferret-bench", answered, source)
    assert found == pytest.approx(
        {"mean of the parts": (1 + 0.55 + 0.1) / 3, "refer_desc": 1.0, "refer_reason": 0.55, "ground_conv": 0.1}
    )
    assert "[Image]\na street with two dogs\n[Question]\nWhat is <region1> doing?" in "\n".join(stub.texts())
    alone = read_items("ferret-bench", replace(source, split="refer_desc"))
    assert len(alone) == 2


def test_vip_bench_counts_a_question_for_each_of_its_capabilities(source_of):
    source = source_of(vip_bench)
    items = read_items("vip-bench", source)

    answered = [replace(item, answer=CAPTIONS[0]) for item in items]
    found, _ = figures("vip-bench", answered, source)

    assert found == pytest.approx({"all": 1 / 3, "rec": 1 / 2, "ocr": 0.0, "math": 0.0})
    assert items[0].query.question == "What is <region1>?" and items[0].query.image.parent.name == "source_image"
    assert len(read_items("vip-bench", replace(source, split="human"))) == 3


def test_the_judge_of_mdvp_bench_sees_the_regions_drawn(source_of, stub):
    source = source_of(mdvp_bench)
    Image.new("RGB", (96, 64), "white").save(source.data / "images" / "1.jpg")
    items = read_items("mdvp-bench", source)

    found, _ = figures("mdvp-bench", [replace(item, answer=CAPTIONS[0]) for item in items], source)

    assert items[0].query.question == "Compare <region1> and <region2>."
    assert items[1].query.question == "The question is about <region1>.\nWhat is marked?"
    assert found == pytest.approx({"mean of the parts": 0.55, "natural": 0.55, "web": 0.55})
    shown = stub.bodies[0]["messages"][-1]["content"][1]["image_url"]["url"].removeprefix("data:image/jpeg;base64,")
    image = Image.open(io.BytesIO(base64.b64decode(shown)))
    assert image.size == (96, 64)
    assert min(image.getpixel((90, 62))) > 240 and min(image.getpixel((20, 3))) < 150  # ground, edge of a box


def test_gar_bench_numbers_its_prompts_from_0_and_needs_a_judge_for_descriptions_alone(source_of):
    source = source_of(gar_bench)
    items = read_items("gar-caption", source)
    assert items[0].query.question == "What is <region2> to <region1>?" and items[0].references == (CAPTIONS[0],)
    found, scores = figures("gar-caption", [replace(item, answer=CAPTIONS[0]) for item in items], source)
    assert found == {"right": 0.5} and scores.right == [True, False]

    with pytest.raises(InputError, match="--benchmark gar-caption asks a judge: give --judge URL and --judge-model"):
        read_items("gar-caption", replace(source, judge=None))
    asked = read_items("gar-vqa", replace(source, judge=None))
    assert asked[1].options[asked[1].label] == "below it" and "\n(B) below it\n" in asked[1].query.question
    with pytest.raises(InputError, match="--judge: gar-vqa asks no judge; leave it out"):
        read_items("gar-vqa", source)


@pytest.mark.parametrize("name", JUDGED)
def test_a_file_of_another_form_is_named_with_what_is_missing(name, source_of):
    source = source_of(JUDGED[name])
    damaged = {
        "dlc-bench": ("qa.json", {"7": [{"question": "x"}], "8": []}, "qa.json, 7: no 'choices'"),
        "ferret-bench": ("refer_caption/question.jsonl", {"question_id": 1}, "no 'image'; it has question_id"),
        "gar-caption": ("annotations/GAR-Bench-Caption-Simple.json", [{"image": "1.jpg"}], "no 'question'"),
        "mdvp-bench": (
            "web.json",
            [{"image": "1.jpg", "conversations": [{"value": "a"}, {"value": "b"}]}],
            "no region;",
        ),
        "vip-bench": ("vip-bench-meta-data.json", {"v1_0": {"answer": "x"}}, "no 'capability'"),
    }
    file, content, message = damaged[name]
    (source.data / file).write_text(json.dumps(content))

    with pytest.raises(InputError, match=message):
        read_items(name, source)


@pytest.mark.parametrize(
    ("record", "boxes"),
    [
        ({"bbox": [1, 2, 3, 4]}, [[1, 2, 3, 4]]),
        ({"boxes": [[1, 2, 3, 4], [5, 6, 7, 8]]}, [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ({"segmentation": [[1, 2, 9, 2, 9, 8]]}, [[1, 2, 9, 8]]),
        ({"mask_rles": [{"size": [4, 4], "counts": [5, 1, 10]}] * 2}, [[1, 1, 2, 2]] * 2),
        ({"mask_rle": {"size": [4, 4], "counts": [5, 1, 10]}}, [[1, 1, 2, 2]]),
    ],
)
def test_regions_are_read_from_boxes_and_masks(record, boxes):
    assert read_regions(record, "a.json#0").tolist() == boxes


def test_a_placeholder_without_its_region_is_named():
    assert mention_regions("<Prompt1> or <Prompt0>?", 2, "x") == "<region2> or <region1>?"
    with pytest.raises(InputError, match=r"a\.json#0: <obj> stands for region 2, but there are 1"):
        mention_regions("<obj> or <obj>?", 1, "a.json#0")


@pytest.mark.parametrize(
    ("read", "replies"),
    [
        (
            read_pair,
            {"8 9\nBecause": (8, 9), "8, 9.5": (8, 9.5), "0 9": None, "8": None, "Scores: 8 9": None, "": None},
        ),
        (read_letter, {"B": 1, " (B) x": 1, "B. text": 1, "Because": None, "b": None, "The answer is B": None}),
        (yes_or_no, {"Yes": True, " no.\n": False, "Yes, it is": None, "": None}),
    ],
)
def test_replies_are_read_strictly(read, replies):
    assert {reply: read(reply) for reply in replies} == replies
