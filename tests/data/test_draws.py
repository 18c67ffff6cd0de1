"""What the readers draw, and how often: the original's probabilities and limits."""

from collections import Counter

import numpy as np
import pytest
from recordings import ENTRIES

from gpt4roi.data.readers.coco_det import draw_shift
from gpt4roi.data.readers.coco_format import in_frame, large_enough
from gpt4roi.data.readers.det_llava import confident
from gpt4roi.data.registry import open_reader
from gpt4roi.processing import prompts

DRAWS = 1000


def draws(name, index, count=DRAWS):
    reader = open_reader(ENTRIES[name])
    return [reader.sample(index, np.random.default_rng(seed)) for seed in range(count)]


def test_half_of_the_samples_are_shifted_by_at_most_32_pixels_and_half_mirrored():
    augmentations = [sample.augmentation for sample in draws("coco_det_train", 0)]
    shifts = np.array([one.shift for one in augmentations])
    assert abs((shifts != 0).any(axis=1).mean() - 0.5) < 0.05
    assert abs(np.mean([one.flip for one in augmentations]) - 0.5) < 0.05
    assert (shifts.min(), shifts.max()) == (-32, 32)
    assert abs(shifts[(shifts != 0).any(axis=1)].mean()) < 3


def test_a_sample_in_test_mode_is_neither_shifted_nor_mirrored():
    assert {sample.augmentation for sample in draws("coco_det_test", 0, 20)} == {None}


def test_boxes_that_a_shift_pushes_out_go_with_their_question():
    # 224 px wide frame: the second box is 10 px wide at the left border.
    frame = np.array([[100, 100, 200, 200], [0, 50, 10, 150]], dtype=np.float32)
    seen = Counter()
    for seed in range(DRAWS):
        (dx, _), kept = draw_shift(frame, np.random.default_rng(seed))
        assert kept.tolist() == [True, dx > -8]  # more than 2 px have to be left of 10 + dx
        seen[bool(kept[1])] += 1
    assert seen[True] > seen[False] > 0


@pytest.mark.parametrize(
    ("box", "size", "kept"),
    [
        ([0, 0, 1, 50], (112, 112), False),  # 2 px in the frame exactly
        ([0, 0, 1.01, 50], (112, 112), True),
        ([0, 0, 50, 1], (112, 112), False),
        ([0, 0, 2, 50], (448, 224), False),  # 2 px of 224 wide
        ([0, 0, 50, 4], (448, 224), False),  # 4 px of 448 high are 2
        ([0, 0, 50, 4.1], (448, 224), True),
        ([110, 0, 130, 50], (112, 112), True),  # 2 px of 20 inside, which are 4 in the frame
        ([111, 0, 130, 50], (112, 112), False),
    ],
)
def test_boxes_of_two_pixels_in_the_clipped_frame_are_left_out(box, size, kept):
    assert large_enough(in_frame(np.array([box], dtype=float), np.array([size]))).tolist() == [kept]


def test_every_question_of_a_bank_is_drawn_and_every_order_of_boxes():
    reader = open_reader(ENTRIES["vg"])
    seen, orders = set(), Counter()
    for seed in range(400):
        sample = reader.sample(0, np.random.default_rng(seed))
        orders[sample.region_texts] += 1
        seen |= {turn.text for turn in sample.turns[2::2]}
    assert len(seen) == len(prompts.VISUAL_GENOME_QUESTIONS)
    assert len(orders) == 2 and min(orders.values()) > 150


@pytest.mark.heavy
def test_half_of_the_samples_of_a_dialogue_list_the_detections():
    listed = [len(sample.boxes_px) for sample in draws("det_llava", 0)]
    assert set(listed) == {0, 2} and abs(np.mean(listed) / 2 - 0.5) < 0.05


def test_sure_and_large_detections_are_listed_or_else_the_first_ten():
    sure, small, unsure = [0.1, 0.1, 0.5, 0.5, 0.9], [0.1, 0.1, 0.12, 0.5, 0.9], [0.1, 0.1, 0.5, 0.5, 0.3]
    assert confident(np.array([small, sure, unsure], dtype=np.float32)).tolist() == [1]
    assert confident(np.array([sure] * 120, dtype=np.float32)).tolist() == list(range(100))
    assert confident(np.array([unsure] * 12, dtype=np.float32)).tolist() == list(range(10))
    assert confident(np.zeros((0, 5), dtype=np.float32)).tolist() == []


def test_the_reason_is_asked_for_only_where_it_means_no_other_object():
    turns = {index: len(draws("vcr_multi", index, 1)[0].turns) for index in range(4)}
    assert turns == {0: 4, 1: 4, 2: 4, 3: 2}  # the last reason: "3 dropped 5 .", and 3 is not in the question
    assert len(draws("vcr_single", 2, 1)[0].turns) == 2  # "1 sits in 2 ."
