"""Boxes: every function on numpy arrays and on tensors alike."""

import numpy as np
import pytest
import torch

from gpt4roi.geometry import boxes as box_ops

KINDS = {"numpy": np.array, "torch": torch.tensor}


@pytest.fixture(params=KINDS)
def make(request):
    return KINDS[request.param]


def same(result, like, expected):
    assert type(result) is type(like)
    np.testing.assert_allclose(np.asarray(result), expected, atol=1e-12)


def test_left_top_width_height_become_corners_and_back(make):
    boxes = make([[1.0, 2.0, 3.0, 4.0]])
    same(box_ops.xywh_to_xyxy(boxes), boxes, [[1, 2, 4, 6]])
    same(box_ops.xyxy_to_xywh(box_ops.xywh_to_xyxy(boxes)), boxes, [[1, 2, 3, 4]])


def test_pixels_become_fractions_of_width_and_height_and_back(make):
    boxes = make([[10.0, 10.0, 50.0, 60.0]])
    same(box_ops.normalize(boxes, (40, 100)), boxes, [[0.1, 0.25, 0.5, 1.5]])
    same(box_ops.denormalize(box_ops.normalize(boxes, (40, 100)), (40, 100)), boxes, [[10, 10, 50, 60]])


def test_clipping_moves_corners_to_the_border(make):
    boxes = make([[-5.0, 3.0, 120.0, 50.0], [1.0, 1.0, 2.0, 2.0]])
    same(box_ops.clip(boxes, (40, 100)), boxes, [[0, 3, 100, 40], [1, 1, 2, 2]])


def test_a_box_is_valid_when_both_sides_are_greater_than_the_least(make):
    boxes = make([[0.0, 0.0, 3.0, 3.0], [0.0, 0.0, 2.0, 3.0], [0.0, 0.0, 3.0, -1.0]])
    assert box_ops.keep_valid(boxes, min_side=2).tolist() == [True, False, False]
    assert box_ops.keep_valid(boxes).tolist() == [True, True, False]


def test_no_boxes_stay_no_boxes(make):
    none = make(np.zeros((0, 4)) if make is np.array else []).reshape(0, 4)
    for function in (box_ops.xywh_to_xyxy, box_ops.xyxy_to_xywh):
        assert function(none).shape == (0, 4)
    assert box_ops.clip(none, (4, 4)).shape == (0, 4)


def test_rois_carry_the_index_of_their_image_and_input_pixels():
    boxes = [torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.zeros(0, 4), torch.tensor([[0.25, 0.5, 1.0, 1.0]])]
    rois = box_ops.to_rois(boxes, (100, 200))
    assert rois.tolist() == [[0, 0, 0, 100, 100], [2, 50, 50, 200, 100]]


def test_rois_of_boxes_in_half_precision_keep_every_pixel_and_every_image():
    boxes = [torch.tensor([[0.25, 0.5, 0.75, 300.0]], dtype=torch.float16)] * 2050
    rois = box_ops.to_rois(boxes, (224, 1001))
    assert rois[:, 0].tolist() == list(range(2050))
    assert rois[0, 1:].tolist() == [250.25, 112.0, 750.75, 67200.0]


def test_a_batch_without_images_gives_no_rois():
    assert box_ops.to_rois([], (10, 10)).shape == (0, 5)


def test_center_size_features_are_center_size_and_root_of_area():
    facts = box_ops.center_size_features(torch.tensor([[0.2, 0.1, 0.6, 0.5]]))
    torch.testing.assert_close(facts, torch.tensor([[0.4, 0.3, 0.4, 0.4, 0.4]]))
