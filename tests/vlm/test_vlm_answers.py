"""Answers of pretrained vision-language models about regions: RegionChat, folders, and what a prompt is made of."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vlms import BUILDERS, COMMON, noise_image, tiny_vlm

from gpt4roi import RegionChat
from gpt4roi.cli import main
from gpt4roi.generation.batching import BatchingWorker
from gpt4roi.generation.encoded_image import encode_images, prepare_image
from gpt4roi.io.model_folders import REGIONS_ON_BASE, identify
from gpt4roi.structures import RegionSample, Turn

families = pytest.mark.parametrize(
    "vlm", [name if name in COMMON else pytest.param(name, marks=pytest.mark.slow) for name in BUILDERS], indirect=True
)
BOXES = [[3, 5, 40, 50], [30, 20, 60, 55], [10, 10, 30, 30]]
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture
def vlm(request):
    return tiny_vlm(request.param)


@families
@torch.no_grad()
def test_the_engine_answers_token_by_token_as_the_base_generates(vlm):
    image = noise_image(60, 90)
    turns = (Turn("user", "What are <region1> and <region2>?"),)
    batch = vlm.processor([RegionSample(image, turns, np.array(BOXES[:2], dtype=float))], generation=True)
    expected = vlm.model.generate(**batch, **GREEDY, max_new_tokens=6)[0, batch["input_ids"].shape[1] :]
    chat = RegionChat(vlm.model, vlm.processor)
    chat.set_image(image)
    text = chat.ask("What are <region1> and <region2>?", BOXES[:2], max_new_tokens=6)
    assert text == vlm.processor.decode(expected)


@families
@torch.no_grad()
def test_describe_answers_many_boxes_as_each_alone_and_the_next_round_reads_the_cache(vlm):
    image = noise_image(60, 90)
    chat = RegionChat(vlm.model, vlm.processor)
    chat.set_image(image)
    together = chat.describe(None, BOXES, max_new_tokens=5)
    assert together == [chat.describe(None, [box], max_new_tokens=5)[0] for box in BOXES]
    chat.ask("What is <region1>?", BOXES[:1], max_new_tokens=4)
    second = chat.ask("And <region2>?", BOXES[1:2], max_new_tokens=4)
    fresh = RegionChat(vlm.model, vlm.processor, keep_cache=False)
    fresh.set_image(image)
    fresh.ask("What is <region1>?", BOXES[:1], max_new_tokens=4)
    assert second == fresh.ask("And <region2>?", BOXES[1:2], max_new_tokens=4)
    shares = chat.classify(BOXES[:1], ["cat", "dog"])
    assert sum(shares[0].values()) == pytest.approx(1)


@pytest.mark.heavy
@families
@torch.no_grad()
def test_an_explanation_is_what_the_likelihood_loses_where_the_image_is_occluded(vlm):
    image, box = noise_image(60, 90), [60, 40, 90, 60]
    found = RegionChat(vlm.model, vlm.processor).explain([box], "What is <region1>?", image, "a cat", cells=1)
    pixels = np.array(image)
    pixels[:40, :60] = pixels.mean((0, 1))  # the corner cell, which is one window

    def likelihood(shown):
        turns = (Turn("user", "What is <region1>?"), Turn("assistant", "a cat"))
        batch = vlm.processor([RegionSample(shown, turns, np.array([box], dtype=float))])
        batch.pop("attention_mask")
        return -float(vlm.model(**batch).loss * (batch["labels"] != -100).sum())

    plain, hidden = likelihood(image), likelihood(Image.fromarray(pixels))
    assert found.log_likelihood == pytest.approx(plain, abs=1e-3)
    heat = found.heatmaps["occlusion"]
    assert heat.x[[0, 1, -1]].tolist() == [0, 60, 90] and heat.y[[0, 1, -1]].tolist() == [0, 40, 60]
    assert abs(plain - hidden) > 1e-3 and heat.values[0, 0] == pytest.approx(plain - hidden, abs=1e-3)
    assert heat.token_values.sum(0) == pytest.approx(heat.values)


def test_the_worker_of_page_and_api_answers_as_the_chat_does():
    vlm = tiny_vlm("qwen2_5_vl")
    image = noise_image(60, 90)
    alone = RegionChat(vlm.model, vlm.processor)
    alone.set_image(image)
    expected = alone.ask("What is <region1>?", BOXES[:1], max_new_tokens=5)
    worker = BatchingWorker(vlm.model, vlm.processor)
    try:
        chat = RegionChat(vlm.model, vlm.processor, worker=worker)
        chat.set_image(image)
        assert chat.ask("What is <region1>?", BOXES[:1], max_new_tokens=5) == expected
    finally:
        worker.close()


def test_a_folder_is_described_from_the_command_line_and_refused_where_it_does_not_belong(tmp_path, capsys):
    vlm = tiny_vlm("qwen2_5_vl")
    vlm.model.save_pretrained(tmp_path / "model")
    vlm.processor.save_pretrained(tmp_path / "model")
    assert identify(tmp_path / "model").kind == REGIONS_ON_BASE
    noise_image(60, 90).save(tmp_path / "photo.png")
    common = [str(tmp_path / "photo.png"), "--box", "3,5,40,50", "--model", str(tmp_path / "model")]
    assert main(["describe", *common, "--max-new-tokens", "4"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    chat = RegionChat(vlm.model, vlm.processor)
    expected = chat.describe(noise_image(60, 90), BOXES[:1], max_new_tokens=4)[0]
    assert line == f"1\t3,5,40,50\t{' '.join(expected.split())}"
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "out"), "--to", "original"]) == 2
    assert "a pretrained vision-language model ('qwen2_5_vl') with regions" in capsys.readouterr().err


def test_masks_reach_a_base_whose_region_shape_is_mask():
    vlm = tiny_vlm("smolvlm")
    from gpt4roi.models.vlm_base import add_regions

    model = add_regions(copy.deepcopy(vlm.base), vlm.processor.region_token_id, region_shape="mask").eval()
    processor = vlm.processor.with_settings(region_shape="mask")
    (encoded,) = encode_images(model, [prepare_image(processor, noise_image(60, 90))])
    box, half = torch.tensor([[0.1, 0.1, 0.6, 0.6]]), torch.zeros(1, 28, 28)
    half[:, :, 14:] = 1
    whole = encoded.region_features(box, torch.ones_like(half))
    assert (whole - encoded.region_features(box)).abs().max() < 1e-5
    assert (whole - encoded.region_features(box, half)).abs().max() > 1e-2
