"""Padding: what the batch holds where samples differ."""

import torch

from gpt4roi.processing.batch import pad_features


def encoded(length, **extra):
    ids = torch.arange(1, length + 1)
    return {"input_ids": ids, "labels": ids + 100, "n_dropped_rounds": 0, "source": "x", **extra}


def test_the_right_side_is_filled_and_masked():
    batch = pad_features([encoded(2), encoded(3)], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[1, 2, 9], [1, 2, 3]]
    assert batch["labels"].tolist() == [[101, 102, -100], [101, 102, 103]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["attention_mask"].dtype == torch.int64


def test_the_left_side_is_filled_where_asked():
    batch = pad_features([encoded(1), encoded(3)], pad_token_id=9, side="left")
    assert batch["input_ids"].tolist() == [[9, 9, 1], [1, 2, 3]]
    assert batch["labels"].tolist() == [[-100, -100, 101], [101, 102, 103]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]


def test_a_pad_id_inside_a_text_stays_visible():
    batch = pad_features([encoded(2), encoded(3)], pad_token_id=2)
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_labels_need_every_sample():
    without = encoded(2)
    del without["labels"]
    assert "labels" not in pad_features([without, encoded(2)], pad_token_id=0)


def test_a_plain_dialogue_beside_independent_ones_is_one_segment_in_order():
    packed = encoded(3, segment_ids=torch.tensor([0, 1, 2]), position_ids=torch.tensor([0, 1, 1]))
    batch = pad_features([packed, encoded(2)], pad_token_id=0)
    assert batch["segment_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 1], [0, 1, 0]]


def test_without_independent_turns_there_are_no_segments():
    assert pad_features([encoded(2)], pad_token_id=0).keys() == {"input_ids", "labels", "attention_mask"}


def test_images_and_boxes_keep_the_order_of_their_samples():
    first = encoded(1, pixel_values=torch.full((3, 2, 2), 1.0), boxes=torch.zeros(2, 4))
    second = encoded(1, pixel_values=torch.full((3, 2, 2), 2.0), boxes=torch.zeros(0, 4))
    batch = pad_features([first, encoded(2), second], pad_token_id=0)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [1.0, 2.0]
    assert [tuple(boxes.shape) for boxes in batch["boxes"]] == [(2, 4), (0, 4)]
