"""Measures with answers written out."""

import pytest

from gpt4roi.evaluation.metrics import Estimate, Measure, exact_match, majority_share, word_overlap
from gpt4roi.evaluation.similarity import lexical_match


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [
        ("A red apple.", "a red apple", True),
        (" a  red\napple", "a red apple", True),
        ("a red apples", "a red apple", False),
        ("apple red a", "a red apple", False),
        ("", "a", False),
        ("l’été", "L’ÉTÉ", True),
    ],
)
def test_exact_match_ignores_case_and_punctuation_but_not_words_or_their_order(answer, truth, same):
    assert exact_match(answer, truth) is same


def test_word_overlap_is_the_f1_of_the_bags_of_words():
    assert word_overlap("a red apple", "a green apple") == pytest.approx(2 / 3)
    assert word_overlap("apple", "a green apple") == pytest.approx(2 * 1 / 4)
    assert word_overlap("apple apple", "apple") == pytest.approx(2 * 1 / 3)
    assert word_overlap("", "apple") == 0.0
    assert word_overlap("", "") == 1.0


def test_an_interval_holds_the_mean_and_is_the_same_every_time():
    scores = [1.0] * 80 + [0.0] * 20

    first = Measure.mean(scores).estimate()

    assert first == Measure.mean(scores).estimate()
    assert first.value == pytest.approx(0.8) and first.n == 100
    assert 0.70 < first.low < 0.75 and 0.85 < first.high < 0.90


def test_answers_about_one_image_are_resampled_together():
    scores = [1.0] * 50 + [0.0] * 50
    groups = [index // 25 for index in range(100)]

    together, apart = Measure.mean(scores, groups).estimate(), Measure.mean(scores).estimate()

    assert together.value == apart.value == pytest.approx(0.5)
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_no_scores_give_zeros_and_not_an_error():
    assert Measure.mean([]).estimate() == Estimate(0.0, 0.0, 0.0, 0)


def test_the_chance_level_is_the_share_of_the_commonest_truth():
    assert majority_share(["yes", "no", "yes"]) == pytest.approx(2 / 3)
    assert majority_share([]) == 0.0


@pytest.mark.parametrize(
    ("answer", "truth", "same", "lenient"),
    [
        ("The dogs", "dog", True, True),
        ("boxes", "box", True, True),
        ("glass", "glass", True, True),
        ("buses", "bus", True, True),
        ("horses", "horse", True, True),
        ("puppies", "puppy", True, True),
        ("a wheel of a car", "car wheel", True, True),
        ("golden retriever dog", "dog", False, True),
        ("a dog's tail", "dog", False, True),
        ("wheel", "car wheel", False, True),
        ("cat", "dog", False, False),
        ("hot dog stand", "dog", False, False),
        ("", "dog", False, False),
    ],
)
def test_names_match_by_their_words_in_two_readings(answer, truth, same, lenient):
    assert (lexical_match(answer, truth), lexical_match(answer, truth, lenient=True)) == (same, lenient)
