"""Records refuse what no later step could use."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from gpt4roi.errors import InputError
from gpt4roi.structures import RegionSample, Turn

TURNS = [Turn("user", "Hi."), Turn("assistant", "Ho.")]


def test_a_turn_has_one_of_two_roles():
    with pytest.raises(InputError, match="must be 'user' or 'assistant', got 'human'"):
        Turn("human", "Hi.")


def test_a_turn_holds_a_string():
    with pytest.raises(InputError, match="must be a string, got int"):
        Turn("user", 7)


def test_boxes_may_be_lists_and_none_at_all():
    sample = RegionSample("a.png", TURNS, boxes_px=[[1, 2, 3, 4]])
    assert sample.boxes_px.dtype == np.float64 and sample.boxes_px.tolist() == [[1, 2, 3, 4]]
    assert RegionSample("a.png", TURNS, boxes_px=[]).boxes_px.shape == (0, 4)
    assert RegionSample("a.png", TURNS).boxes_px.shape == (0, 4)


def test_boxes_of_another_shape_are_refused_with_the_source():
    with pytest.raises(InputError, match=r"must be \[N, 4\] .* got shape \(1, 3\) in d\.json#2"):
        RegionSample("a.png", TURNS, boxes_px=[[1, 2, 3]], source="d.json#2")


def test_boxes_that_are_no_numbers_are_refused():
    with pytest.raises(InputError, match="must be finite numbers"):
        RegionSample("a.png", TURNS, boxes_px=[[0, 0, float("nan"), 1]])


def test_choices_are_checked():
    with pytest.raises(InputError, match="image_pipeline must be 'detection' or 'dialogue', got 'nearest'"):
        RegionSample("a.png", TURNS, image_pipeline="nearest")
    with pytest.raises(InputError, match="box_frame must be 'pixels' or 'unit', got 'cm'"):
        RegionSample("a.png", TURNS, box_frame="cm")


def test_paths_become_strings_and_turns_a_tuple():
    sample = RegionSample(Path("a.png"), TURNS)
    assert sample.image == "a.png" and sample.turns == tuple(TURNS)


def test_the_old_names_of_the_image_pipelines_are_understood():
    sample = RegionSample("a.png", TURNS, picture_pipeline="bilinear")
    assert (sample.image_pipeline, sample.picture_pipeline) == ("detection", "bilinear")
    assert dataclasses.replace(sample, image_pipeline="bicubic").image_pipeline == "dialogue"
