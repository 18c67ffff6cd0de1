"""Tiny models in folders that vLLM opens, the questions of its tests, and our own engine's answers to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor, tiny_text_config

from gpt4roi import RegionChat, RegionSample, Turn
from gpt4roi.generation.encoded_image import encode_images, prepare_image
from gpt4roi.generation.engine import generate_batches
from gpt4roi.generation.sampling import SamplingParams
from gpt4roi.processing.user_input import validate_regions
from gpt4roi.serving.vllm.items import image_item, tokens_prompt

QUESTION = "What is <region1>?"
BOXES = [[5, 6, 30, 38], [0, 0, 60, 40], [20, 3, 50, 22], [30, 20, 59, 39], [1, 1, 12, 12]]
IMAGE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8))
NUM_TOKENS = 48


def half(box: list[float], side: str) -> dict:
    """A region that holds the left or the right half of a box, and the same box around it."""
    x1, y1, x2, y2 = box
    start, end = (x1, (x1 + x2) / 2) if side == "left" else ((x1 + x2) / 2, x2)
    return {"box": box, "mask": [[start, y1, end, y1, end, y2, start, y2]]}


MASKS = [half(BOXES[0], "left"), half(BOXES[0], "right"), BOXES[0], half(BOXES[1], "left"), half(BOXES[2], "right")]
"""Regions of one box that differ by their masks alone, and of others."""


def samples_of(image: Image.Image, regions: list) -> list[RegionSample]:
    """The question about each region of an image by itself."""
    found, turns = validate_regions(regions, (image.height, image.width)), (Turn("user", QUESTION),)
    return [RegionSample("the image", turns, found.take([row])) for row in range(len(found))]


def tiny_chat(
    kind: str, tokens_per_region: int = 1, prompt_format: str = "chat", region_shape: str = "box"
) -> RegionChat:
    """A chat whose answers depend on the region, with heads of a width that vLLM's attention on a CPU takes."""
    heads = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
    changes = {"tokens_per_region": tokens_per_region, "region_shape": region_shape}
    model = tiny_model(kind, text_config=tiny_text_config(**heads), **changes)
    with torch.no_grad():
        for weight in model.region_encoder.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)
        if region_shape == "mask":  # it begins at zero
            shape = getattr(model.region_encoder, "pooler", model.region_encoder).shape_embedding.weight
            torch.nn.init.normal_(shape, generator=torch.Generator().manual_seed(1))
    return RegionChat(model, tiny_processor(model.config, prompt_format))


def save(chat: RegionChat, folder: Path) -> str:
    chat.model.save_pretrained(folder)
    chat.processor.save_pretrained(folder)
    return str(folder)


def own_tokens(chat: RegionChat, image: Image.Image, regions: list, num_tokens: int = NUM_TOKENS) -> list[list[int]]:
    """Our own engine's tokens about each region, past the end of the answer."""
    (encoded,) = encode_images(chat.model, [prepare_image(chat.processor, image)])
    prompts = encoded.prompts(chat.processor, samples_of(image, regions))
    found: dict[int, list[int]] = {}
    for batch, rows, _ in generate_batches(chat.model, prompts, SamplingParams(num_tokens), lambda _: False, 32):
        found |= zip(batch, rows, strict=True)
    return [found[number] for number in range(len(regions))]


def vllm_prompts(chat: RegionChat, image: Image.Image, regions: list) -> list[dict]:
    prepared = prepare_image(chat.processor, image)
    item, samples = image_item(prepared), samples_of(image, regions)
    encoded = [chat.processor.encode_text(one, generation=True, image_size=prepared.size) for one in samples]
    return [tokens_prompt(one, item) for one in encoded]


def vllm_tokens(llm, prompts: list[dict], num_tokens: int = NUM_TOKENS, **options) -> tuple[list[list[int]], list[int]]:
    """vLLM's tokens, and how many of each prompt were in its prefix cache."""
    from vllm import SamplingParams as VllmParams

    params = VllmParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    outputs = llm.generate(prompts, params, use_tqdm=False, **options)
    return [list(one.outputs[0].token_ids) for one in outputs], [one.num_cached_tokens for one in outputs]
