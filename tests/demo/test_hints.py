"""What a question lacks, and the text that fixes it."""

from __future__ import annotations

import pytest

from gpt4roi.demo.hints import find_hints, normalize_mentions


def texts(question: str, num_boxes: int, **more) -> list[str]:
    return [hint.text for hint in find_hints(normalize_mentions(question), num_boxes, **more)]


@pytest.mark.parametrize(
    ("question", "num_boxes"),
    [
        ("What is <region1>?", 1),
        ("Is <2> left of < Region 1 >?", 2),
        ("What is in this image?", 0),
    ],
)
def test_a_whole_question_lacks_nothing(question, num_boxes):
    assert find_hints(normalize_mentions(question), num_boxes) == []


def test_an_empty_question_is_given_one_about_the_first_new_box():
    (hint,) = find_hints("", 3, introduced={1}, num_known=1)
    assert hint.question == "What is <region2>?"
    (hint,) = find_hints(normalize_mentions("  "), 0)
    assert hint.question == "What is in this image?"


def test_the_next_number_without_a_box_says_to_draw_one_and_a_far_one_how_many_there_are():
    assert texts("What is <region2>?", 1, introduced={1}, num_known=1) == [
        "Draw a box for <region2>: there is none yet."
    ]
    (text,) = texts("What is <region7>?", 2, introduced={1, 2}, num_known=2)
    assert "<region7> has no box. The boxes go up to <region2>" in text
    (text,) = texts("What is <region0>?", 0)
    assert "There is no box yet" in text


def test_a_drawn_box_can_be_added_to_a_question_that_mentions_none_or_left_out():
    (hint,) = find_hints("What is this?", 2, introduced={1}, num_known=1)
    assert hint.text == "<region2> is drawn, but the question does not mention it." and hint.force
    assert (hint.label, hint.question) == ("Add <region2>", "What is this <region2>?")
    assert find_hints("What is this?", 3, force=True) == []


def test_a_question_about_some_of_the_boxes_lacks_nothing():
    assert find_hints("What is <region1>?", 3) == find_hints("What is <region3>?", 3) == []
    assert find_hints("And region 1?", 3, introduced={1}, num_known=1) == []
    assert texts("And region 7?", 3, introduced={1}, num_known=1)[0].startswith("<region2> and <region3> are drawn")


def test_several_drawn_boxes_that_are_not_mentioned_are_one_hint():
    (hint,) = find_hints("What is here?", 4, introduced={1}, num_known=1)
    assert hint.text == "<region2>, <region3> and <region4> are drawn, but the question does not mention them."
    assert (hint.label, hint.question) == ("Add them", "What is here <region2> <region3> <region4>?")


def test_boxes_of_earlier_rounds_need_no_mention():
    assert find_hints("And why?", 2, introduced={1}, num_known=2) == []
    assert find_hints("And region 1, or <region1>?", 2, introduced={1}, num_known=2) == []


def test_a_plain_mention_of_a_new_box_is_written_as_an_introduction():
    (hint,) = find_hints("Is region 2 near region1?", 2, introduced={1}, num_known=1)
    assert hint.question == "Is <region2> near region1?"
    (hint,) = find_hints("What is region12?", 12, introduced=set(range(1, 12)), num_known=11)
    assert hint.question == "What is <region12>?"


def test_a_bare_place_holder_is_given_the_number_of_its_box():
    (hint, *_) = find_hints("What is <bbox>?", 1)
    assert hint.question == "What is <region1>?"
    (hint, *_) = find_hints("What is <bbox>?", 0)
    assert hint.label == ""


def test_what_is_missing_comes_before_what_is_left_over():
    assert texts("What is <region9>?", 2) == [
        "<region9> has no box. The boxes go up to <region2>; boxes are numbered in the order in which they are drawn."
    ]


def test_numbers_typed_in_a_question_without_a_region_are_to_be_drawn_but_may_be_asked():
    question = "What is at [60, 60, 100, 100]?"
    (hint,) = find_hints(question, 0)
    assert "reads 60,60,100,100 as text: draw that box" in hint.text and hint.force
    assert find_hints(question, 0, force=True) == []
