"""What of the vLLM plugin needs no vLLM: the ids of a prompt, and what identifies its image and its regions."""

from __future__ import annotations

import pytest
import torch
from vllm_models import BOXES, IMAGE, tiny_chat, vllm_prompts

from gpt4roi.serving.vllm.items import ImageItem, RegionItem


@pytest.fixture(scope="module")
def chat():
    return tiny_chat("clip", tokens_per_region=3)


def region(image: ImageItem, *box: float) -> RegionItem:
    return RegionItem(image, {"boxes": torch.tensor(box)})


def test_a_prompt_has_all_its_placeholders_and_an_item_for_each_mention(chat):
    prompt = vllm_prompts(chat, IMAGE, BOXES[:1])[0]
    ids, config = prompt["prompt_token_ids"], chat.model.config
    assert ids.count(config.image_token_id) == config.image_seq_length == 16
    assert ids.count(config.region_token_id) == 3
    assert len(prompt["multi_modal_data"]["image"]) == len(prompt["multi_modal_data"]["region"]) == 1
    box = prompt["multi_modal_data"]["region"][0].fields["boxes"]
    assert box.dtype == torch.float32
    assert torch.allclose(box, torch.tensor([5 / 60, 6 / 40, 30 / 60, 38 / 40]), atol=0.1)  # of the resized image


def test_regions_are_told_apart_by_image_and_by_every_bit_of_the_box():
    image, other = ImageItem(torch.zeros(3, 4, 4)), ImageItem(torch.ones(3, 4, 4))
    first = region(image, 0.1, 0.2, 0.3, 0.4)
    assert first.digest == region(ImageItem(torch.zeros(3, 4, 4)), 0.1, 0.2, 0.3, 0.4).digest
    next_number = torch.nextafter(torch.tensor(0.1), torch.tensor(1.0)).item()
    digests = [region(image, next_number, 0.2, 0.3, 0.4), region(other, 0.1, 0.2, 0.3, 0.4)]
    digests.append(RegionItem(image, {**first.fields, "masks": torch.ones(4, 4)}))
    assert len({first.digest, *(one.digest for one in digests)}) == 4
    assert {len(one.digest) for one in digests} == {32} == {len(image.digest)}


def test_an_image_is_the_same_whatever_its_regions(chat):
    prompts = vllm_prompts(chat, IMAGE, BOXES)
    assert len({one["multi_modal_data"]["image"][0].digest for one in prompts}) == 1
    assert len({one["multi_modal_data"]["region"][0].digest for one in prompts}) == len(BOXES)
