"""Where an answer looked: equal to plain forward passes, inside of the box where the model sees nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor
from torch import nn
from torch.nn import functional as F

from gpt4roi import InputError, RegionChat, RegionSample, Turn
from gpt4roi.constants import IGNORE_INDEX
from gpt4roi.generation.explain import CELLS_IN_A_BOX, Explanation, Heatmap, _cells

LEFT, RIGHT = [0, 16, 56, 44], [64, 8, 120, 36]
"""Boxes of an image of 128 x 64 pixels, seen as a square of 64: 7 x 7 cells of the first map, each pooled by itself."""


class Patches(nn.Module):
    """A pyramid whose cells see their own pixels only; what is coarser than the first level is empty."""

    def __init__(self, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.channels, self.strides = channels, strides
        weight = torch.randn(channels[0], 3, strides[0], strides[0], generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        maps = [F.conv2d(pixel_values, self.weight, stride=self.strides[0])]
        for channels, stride in zip(self.channels[1:], self.strides[1:], strict=True):
            side = pixel_values.shape[-1] // stride
            maps.append(pixel_values.new_zeros(len(pixel_values), channels, side, side))
        return SimpleNamespace(feature_maps=maps)


def blind_elsewhere(**changes) -> RegionChat:
    """A model to which nothing but a region's own pixels makes a difference: its image tokens are always the same."""
    model = tiny_model("pyramid", roi_output_size=7, roi_sampling_ratio=1, **changes)
    model.language_model.set_attn_implementation("eager")
    tower = model.vision_tower
    tower.backbone = Patches(tower.level_channels, tower.level_strides)
    with torch.no_grad():
        for weight in model.mm_projector.parameters():
            weight.zero_()
        for weight in model.region_encoder.parameters():
            weight.mul_(4 if weight.ndim > 1 else 1)
    return RegionChat(model, tiny_processor(model.config))


@pytest.fixture(scope="module")
def chat() -> RegionChat:
    """It reads boxes."""
    return blind_elsewhere()


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((128, 64), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def explained(chat, image):
    """One explanation of each box."""
    return [chat.explain([box], image=image, answer="a cat", cells=4) for box in (LEFT, RIGHT)]


def test_what_an_answer_depends_on_lies_inside_of_the_box_and_moves_with_it(explained):
    left, right = explained

    for method in ("occlusion", "gradient"):
        assert left.heatmaps[method].share_inside(LEFT) > 0.99
        assert right.heatmaps[method].share_inside(RIGHT) > 0.99
        assert left.heatmaps[method].share_inside(RIGHT) < 0.01
    assert left.heatmaps["occlusion"].values.max() > 1e-3  # in units of log-likelihood, beside rounding errors


def test_of_a_mask_the_windows_end_at_its_edge_and_a_model_of_boxes_looks_beyond_it(chat, image):
    shape = np.zeros((64, 128), dtype=np.uint8)
    shape[16:44, :24] = shape[32:44, :56] = 1  # an L, in whole cells of the box LEFT
    settings = {"image": image, "answer": "a cat", "cells": 2, "methods": ["occlusion"]}

    of_mask = blind_elsewhere(region_shape="mask").explain([shape], **settings)
    of_box = chat.explain([shape], **settings)

    assert of_mask.boxes_px.tolist() == of_box.boxes_px.tolist() == [LEFT]
    assert of_mask.inside("occlusion")[0] > 0.99
    assert of_mask.as_record()["heatmaps"]["occlusion"]["inside"] == [round(of_mask.inside("occlusion")[0], 4)]
    assert 0.3 < of_box.inside("occlusion")[0] < 0.97
    heat = of_box.heatmaps["occlusion"]
    assert heat.share_inside(LEFT) > 0.99 and heat.share_inside(shape > 0) == pytest.approx(
        of_box.inside("occlusion")[0], abs=1e-6
    )


def test_the_same_box_is_not_where_a_model_looks_that_sees_image_tokens_alone(image):
    model = tiny_model("pyramid")
    with torch.no_grad():
        for weight in model.region_encoder.parameters():
            weight.zero_()
    found = RegionChat(model, tiny_processor(model.config)).explain(
        [LEFT], image=image, answer="a cat", cells=4, methods=["occlusion", "gradient"]
    )

    assert max(heat.share_inside(LEFT) for heat in found.heatmaps.values()) < 0.5


@pytest.mark.parametrize(("values", "remark"), [([[0.0005, -3.0]], "by 0.0005, all windows"), ([[0.06, 0.05]], "")])
def test_an_occlusion_that_changes_next_to_nothing_says_so(values, remark):
    heat = Heatmap(np.array(values), np.arange(3.0), np.arange(2.0))
    found = Explanation("What is <region1>?", "a cat", -0.01, (), np.zeros((1, 4)), {"occlusion": heat})

    assert remark in found.remark and bool(remark) == bool(found.remark)
    assert not Explanation("", "a cat", -0.01, (), found.boxes_px, {"gradient": heat}).remark


def log_likelihood(chat: RegionChat, image: Image.Image, boxes, hidden=None) -> float:
    """By one forward pass of the whole text; hidden: rows and columns of the pixel values that show their mean."""
    sample = RegionSample(image, (Turn("user", chat.default_question), Turn("assistant", "a cat")), np.asarray(boxes))
    inputs = chat.processor(sample)
    if hidden:
        pixels = inputs["pixel_values"][0]
        pixels[:, hidden[0], hidden[1]] = pixels.mean(dim=(1, 2))[:, None, None]
    labels = inputs["labels"][0, 1:]
    names = ("input_ids", "attention_mask", "pixel_values", "boxes")
    with torch.no_grad():
        logits = chat.model(**{name: inputs[name] for name in names}).logits[0, :-1].log_softmax(-1)
    answer = labels != IGNORE_INDEX
    return float(logits[answer].gather(1, labels[answer][:, None]).sum())


def test_a_cell_counts_by_what_the_likelihood_loses_where_its_window_shows_the_mean(chat, image, explained):
    heat = explained[0].heatmaps["occlusion"]
    y, x = heat.y.astype(int), (heat.x / 2).astype(int)  # 128 pixels are seen as 64
    first = y.tolist().index(LEFT[1])  # the row of the box's upper left cell, which lies in one window of 2 x 2 alone

    plain = log_likelihood(chat, image, [LEFT])
    hidden = log_likelihood(chat, image, [LEFT], (slice(y[first], y[first + 2]), slice(x[0], x[2])))

    assert explained[0].log_likelihood == pytest.approx(plain, abs=1e-4)
    assert abs(plain - hidden) > 1e-2
    part = (y[first + 1] - y[first]) * (x[1] - x[0]) / ((y[first + 2] - y[first]) * (x[2] - x[0]))
    assert heat.values[first, 0] == pytest.approx((plain - hidden) * part, abs=1e-4)
    assert heat.token_values.sum(0) == pytest.approx(heat.values)
    assert "".join(explained[0].tokens).startswith("a cat")


def test_attention_has_a_part_for_the_image_one_for_each_region_and_the_rest(chat, image, explained):
    found = chat.explain([LEFT, RIGHT], "Is <region2> left of <region1>?", image, "no", ["attention"])
    heat = found.heatmaps["attention"]

    sample = RegionSample(image, (Turn("user", found.question), Turn("assistant", "no")), np.asarray([LEFT, RIGHT]))
    inputs = chat.processor(sample)
    names = ("input_ids", "attention_mask", "pixel_values", "boxes")
    with torch.no_grad():
        layers = chat.model(**{name: inputs[name] for name in names}, output_attentions=True).attentions
    places = (inputs["labels"][0] != IGNORE_INDEX).nonzero()[:, 0] - 1
    rows = torch.stack(layers)[:, 0, :, places].mean((0, 1, 2))
    ids, config = inputs["input_ids"][0], chat.model.config
    assert heat.values.flatten() == pytest.approx(rows[ids == config.image_token_id].numpy(), abs=1e-6)
    # region2 is named first
    assert heat.regions[::-1] == pytest.approx(rows[ids == config.region_token_id].numpy(), abs=1e-6)
    assert 0 < heat.values.sum() + sum(heat.regions) < 1


def test_without_arguments_the_last_round_is_explained_and_the_conversation_stays(chat, image, explained):
    chat.set_image(image)
    with pytest.raises(InputError, match="ask first"):
        chat.explain()
    chat.ask(chat.default_question, [LEFT], max_new_tokens=2)
    chat.correct(1, "a cat")

    found = chat.explain(cells=4, methods=["occlusion"])

    assert found.heatmaps["occlusion"].values == pytest.approx(explained[0].heatmaps["occlusion"].values, abs=1e-5)
    assert [turn.text for turn in chat.turns] == [chat.default_question, "a cat"]
    assert (
        chat.explain([LEFT], methods=["gradient"], max_new_tokens=2).answer
        == chat.describe(None, [LEFT], max_new_tokens=2).pop()
    )


def test_of_a_later_round_the_last_answer_alone_is_explained(chat, image):
    chat.set_image(image)
    chat.ask(chat.default_question, [LEFT], max_new_tokens=2)
    chat.correct(1, "a cat")
    chat.ask("And <region2>?", [RIGHT], max_new_tokens=2)
    chat.correct(2, "a dog")

    found = chat.explain(cells=1, methods=["occlusion"])

    assert "".join(found.tokens).startswith("a dog") and "cat" not in "".join(found.tokens)


def test_edges_of_boxes_are_edges_of_cells_and_windows_inside_of_them_overlap():
    edges, windows = _cells(np.array([[10.2, 30.0], [20.0, 60.0]]), 100, 10)

    assert {0, 10, 20, 30, 60, 100} <= set(edges.tolist())
    assert sum(10 <= edge < 30 for edge in edges.tolist()) >= CELLS_IN_A_BOX
    assert edges.tolist() == sorted(set(edges.tolist()))
    spans = [(int(edges[window.start]), int(edges[window.stop])) for window in windows]
    assert spans[0] == (0, 10)
    assert {(30, 50), (40, 60)} <= set(spans)  # from 20 to 60 a cell is 10 wide
    assert not any(start < bound < stop for start, stop in spans for bound in (10, 20, 30, 60))
    assert _cells(np.zeros((0, 2)), 100, 10)[0].tolist() == list(range(0, 101, 10))
    assert _cells(np.array([[3.0, 5.0]]), 8, 2)[0].tolist() == [0, 3, 4, 5, 8]  # no cell is thinner than a pixel


def test_a_cell_is_inside_of_a_box_or_a_mask_by_the_part_that_is_covered():
    heat = Heatmap(np.array([[3.0, 1.0], [-5.0, 0.0]]), np.array([0.0, 10, 20]), np.array([0.0, 10, 20]))
    mask = np.zeros((20, 20), dtype=bool)
    mask[:5, :10] = True

    assert heat.share_inside([0, 0, 10, 20]) == 0.75
    assert heat.share_inside([5, 0, 20, 10]) == pytest.approx((1.5 + 1) / 4)
    assert heat.share_inside(mask) == pytest.approx(1.5 / 4)
    assert Heatmap(-np.ones((1, 1)), np.array([0.0, 1]), np.array([0.0, 1])).share_inside([0, 0, 1, 1]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["occlusion", "lime"]}, "methods are some of occlusion, gradient, attention; got lime"),
        ({"methods": []}, "methods are some of occlusion, gradient, attention; got none"),
        ({"cells": 0}, "cells and batch_size must be at least 1, got 0 and 16"),
        ({"answer": " <image> "}, None),
        ({"answer": "so " * 5000}, "the question is too long for the model: 'What is <region1>?'"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_expected(chat, image, arguments, message):
    settings = {"answer": "a cat", "methods": ["gradient"]} | arguments
    if message is None:
        assert chat.explain([LEFT], image=image, **settings).answer == "image"
        return
    with pytest.raises(InputError) as error:
        chat.explain([LEFT], image=image, **settings)
    assert str(error.value) == message


def test_attention_is_refused_by_name_and_else_left_out_where_its_weights_are_not_kept(image):
    model = tiny_model("pyramid")
    model.language_model.set_attn_implementation("sdpa")
    other = RegionChat(model, tiny_processor(model.config))

    assert set(other.explain([LEFT], image=image, answer="a", cells=1).heatmaps) == {"occlusion", "gradient"}
    with pytest.raises(InputError, match=r"set_attn_implementation\('eager'\)"):
        other.explain([LEFT], image=image, answer="a", methods=["attention"])
