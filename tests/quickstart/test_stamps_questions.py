"""Answers follow from boxes; questions are balanced, plain and spread over the distances."""

import re
from collections import Counter

import numpy as np
import pytest

from quickstart import questions

CAPTIONS = ["a cat", "a cup", "a key"]
BOXES = [(0, 0, 40, 40), (100, 20, 150, 70), (30, 200, 60, 230)]
"""Areas 1600, 2500, 900; centres (20, 20), (125, 45), (45, 215)."""


@pytest.mark.parametrize(
    "task, regions, question, expected",
    [
        ("caption", [1], "What is <region2>?", "a cup"),
        ("larger", [0, 1], "Which is larger, <region1> or <region2>?", "region2"),
        ("larger", [0, 2], "Which is larger, <region1> or <region3>?", "region1"),
        ("left", [0, 1], "Is <region1> left of <region2>?", "yes"),
        ("left", [1, 0], "Is <region2> left of <region1>?", "no"),
        ("above", [2, 1], "Is <region3> above <region2>?", "no"),
        ("above", [0, 2], "Is <region1> above <region3>?", "yes"),
        ("count", [], "How many things are in the picture?", "3"),
    ],
)
def test_the_answer_follows_from_the_boxes(task, regions, question, expected):
    asked = questions.ask(task, BOXES, CAPTIONS, regions)
    assert (asked.question, asked.answer) == (question, expected)


def test_a_pair_is_measured_by_distance_offset_and_ratio():
    assert questions.ask("left", BOXES, CAPTIONS, [0, 2]).pair == {
        "regions": [1, 3],
        "distance": 196.6,
        "offset": 25.0,
        "ratio": 1.778,
    }
    assert questions.ask("above", BOXES, CAPTIONS, [2, 0]).pair["offset"] == 195.0
    assert questions.ask("larger", BOXES, CAPTIONS, [0, 1]).pair["offset"] is None
    assert questions.ask("caption", BOXES, CAPTIONS, [0]).pair is None


@pytest.mark.parametrize(
    "task, measured, unit, plain",
    [
        ("larger", {"ratio": 1.2, "offset": None}, 1.0, True),
        ("larger", {"ratio": 1.19, "offset": None}, 1.0, False),
        ("left", {"ratio": 1.0, "offset": 24.0}, 1.0, True),
        ("left", {"ratio": 1.0, "offset": 23.5}, 1.0, False),
        ("above", {"ratio": 1.0, "offset": 40.0}, 2.0, False),
        ("above", {"ratio": 1.0, "offset": 48.0}, 2.0, True),
    ],
)
def test_only_plain_pairs_are_asked_about(task, measured, unit, plain):
    assert questions.is_plain(task, measured, unit) is plain


def random_scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    scenes = []
    for _ in range(count):
        corners = rng.integers(0, 170, size=(4, 2))
        sides = rng.integers(24, 86, size=(4, 2))
        boxes = [(int(x), int(y), int(x + w), int(y + h)) for (x, y), (w, h) in zip(corners, sides, strict=True)]
        scenes.append((boxes, ["a", "b", "c", "d"]))
    return scenes


def check(asked, boxes, captions):
    """Recomputes a question's answer from its text and the boxes."""
    regions = [region - 1 for region in asked.pair["regions"]]
    assert [f"<region{region + 1}>" in asked.question for region in regions] == [True, True]
    assert asked.answer == questions.answer(asked.task, boxes, captions, regions)
    assert questions.is_plain(asked.task, questions.measure(asked.task, *(boxes[region] for region in regions)))


def test_a_training_scene_asks_larger_twice_as_often_and_each_answer_half_the_time():
    rng = np.random.default_rng(0)
    tally = Counter()
    for boxes, captions in random_scenes(100):
        drawn = questions.draw_relations(rng, boxes, captions)
        for asked in drawn:
            check(asked, boxes, captions)
            first_named = f"region{asked.pair['regions'][0]}"
            tally[asked.task, asked.answer in ("yes", first_named)] += 1
        assert len({asked.question for asked in drawn}) == len(drawn)
    assert tally["larger", True] == pytest.approx(200, abs=3) and tally["larger", False] == pytest.approx(200, abs=3)
    assert tally["left", True] == pytest.approx(100, abs=3) and tally["above", False] == pytest.approx(100, abs=3)


def test_training_pairs_are_spread_over_near_and_far():
    rng = np.random.default_rng(0)
    offsets = []
    for boxes, captions in random_scenes(200):
        offsets += [a.pair["offset"] for a in questions.draw_relations(rng, boxes, captions) if a.task == "left"]
    inside, _ = np.histogram(offsets, questions.OFFSET_BANDS)
    assert inside.min() / len(offsets) > 0.12


def test_test_questions_are_four_hundred_of_each_with_both_answers_and_all_bands_alike():
    scenes = random_scenes(120)
    drawn = questions.draw_balanced(np.random.default_rng(0), scenes, 400)
    answers, bands = Counter(), Counter()
    for (boxes, captions), of_scene in zip(scenes, drawn, strict=True):
        assert len({asked.question for asked in of_scene}) == len(of_scene)
        for asked in of_scene:
            check(asked, boxes, captions)
            answers[asked.task, asked.answer in ("yes", f"region{asked.pair['regions'][0]}")] += 1
            edges, value = (
                (questions.RATIO_BANDS, asked.pair["ratio"])
                if asked.task == "larger"
                else (questions.OFFSET_BANDS, asked.pair["offset"])
            )
            bands[asked.task, sum(value >= edge for edge in edges)] += 1
    assert set(answers.values()) == {200}
    assert all(abs(count - 100) <= 2 for count in bands.values()) and len(bands) == 12


def test_when_pairs_run_out_each_is_asked_both_ways_once_and_no_more():
    scenes = [(BOXES, CAPTIONS)]
    (drawn,) = questions.draw_balanced(np.random.default_rng(0), scenes, 400)
    tally = Counter((asked.task, asked.answer) for asked in drawn)
    assert tally["left", "yes"] == tally["left", "no"] == 3
    assert tally["above", "yes"] == tally["above", "no"] == 3
    assert sum(count for (task, _), count in tally.items() if task == "larger") == 6
    assert len({asked.question for asked in drawn}) == len(drawn)


def test_near_pairs_are_asked_about_once_for_each_axis_on_which_they_are_near():
    boxes = [(0, 0, 20, 20), (30, 5, 50, 25), (200, 40, 220, 60)]
    drawn = questions.draw_near(np.random.default_rng(0), boxes, ["a", "b", "c"])

    assert [(asked.task, sorted(asked.pair["regions"]), asked.pair["offset"]) for asked in drawn] == [
        ("near", [1, 2], 30.0),
        ("near", [1, 3], 40.0),
        ("near", [2, 3], 35.0),
    ]
    for asked, task in zip(drawn, ("left", "above", "above"), strict=True):
        regions = [number - 1 for number in asked.pair["regions"]]
        assert asked.question == questions.ask(task, boxes, [], regions).question
        assert asked.answer == questions.answer(task, boxes, [], regions)


def test_animals_are_counted_among_two_to_four_regions_and_every_number_comes_about():
    rng, kinds = np.random.default_rng(0), ["animals", "food", "animals", "town", "animals"]
    tally = Counter()
    for _ in range(200):
        asked = questions.draw_counts(rng, kinds)
        regions = [int(number) - 1 for number in re.findall(r"<region(\d)>", asked.question)]
        assert re.fullmatch(r"How many of (<region\d>, ){0,2}<region\d> and <region\d> are animals\?", asked.question)
        assert len(set(regions)) == len(regions) in (2, 3, 4)
        assert asked.answer == str(sum(kinds[region] == "animals" for region in regions))
        tally[asked.answer] += 1
    assert set(tally) == {"0", "1", "2", "3"} and max(tally.values()) < 0.4 * tally.total()


def test_which_regions_show_animals_is_answered_by_their_names():
    rng, kinds = np.random.default_rng(0), ["animals", "food", "animals", "town", "animals"]
    sizes = Counter()
    for _ in range(200):
        asked = questions.draw_counts(rng, kinds, task="which")
        regions = [int(number) for number in re.findall(r"<region(\d)>", asked.question)]
        assert asked.task == "which" and regions == sorted(regions)
        assert re.fullmatch(r"Which of (<region\d>, ){0,2}<region\d> and <region\d> show animals\?", asked.question)
        animals = [f"region{region}" for region in regions if kinds[region - 1] == "animals"]
        assert asked.answer == (", ".join(animals) or "none")
        sizes[len(animals)] += 1
    assert set(sizes) == {0, 1, 2, 3} and max(sizes.values()) < 0.4 * sizes.total()


def test_which_regions_show_one_thing_names_it_or_none_where_it_is_not_among_those_asked_about():
    rng, captions = np.random.default_rng(0), ["a lion", "a wheel", "a cup", "a bus"]
    answers = Counter()
    for _ in range(200):
        of_kind, of_thing = questions.draw_which(rng, ["animals", "vehicles", "household", "vehicles"], captions)
        assert "show animals?" in of_kind.question
        thing = of_thing.question.rpartition(" show ")[2].rstrip("?")
        asked = [int(number) for number in re.findall(r"<region(\d)>", of_thing.question)]
        region = captions.index(thing) + 1
        assert of_thing.answer == (f"region{region}" if region in asked else "none")
        answers[of_thing.answer] += 1
    assert 0.25 < answers["none"] / answers.total() < 0.5
    assert {answer for answer, count in answers.items() if count > 10} == {*map("region{}".format, range(1, 5)), "none"}
