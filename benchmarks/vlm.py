"""Times questions about boxes of one image to a pretrained vision-language model with regions, what is kept and not.

    python benchmarks/vlm.py [--quick]

The base has Qwen2.5-VL's shape, with 52 million random weights. The alternative is its own `generate`, image and all,
for each box. `RegionChat.ask` encodes the image once; `describe` also prefills once what all prompts begin with, and
decodes the answers together. All are in float32, 16 tokens an answer; --quick: 2 boxes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Row, main, rows, time_in_turn
from PIL import Image

from gpt4roi import RegionChat, RegionSample, Turn
from gpt4roi.models.vlm_base import add_regions
from gpt4roi.processing.vlm_processor import RegionProcessor

ROOT = Path(__file__).resolve().parents[1]
PLAIN, EACH, TOGETHER = "generate, box by box", "ask, box by box", "describe"
MAX_NEW_TOKENS = 16


def measure(quick: bool) -> Iterator[Row]:
    """Compares the three ways."""
    chat = make_chat()
    noise = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((448, 448))
    count = 2 if quick else 8
    boxes = [[x, y, x + 100, y + 100] for x, y in np.random.default_rng(1).integers(0, 340, (count, 2)).tolist()]
    answers: dict[str, list[str]] = {}

    def run(way: str) -> None:
        answers[way] = WAYS[way](chat, image, boxes)

    spent = time_in_turn({way: partial(run, way) for way in WAYS}, repeats=1 if quick else 2, warm_ups=0)
    assert all(found == answers[PLAIN] for found in answers.values()), answers
    yield from rows(f"256 image tokens, {count} boxes", spent, f"the same {count} answers")


def make_chat() -> RegionChat:
    """Builds the base with regions: 12 blocks of width 384 in the tower, 8 layers of width 512 in the decoder."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "vlm")]
    from tiny_vlms import _chat_template, _qwen, _rope

    torch.manual_seed(0)
    tower = {"depth": 12, "hidden_size": 384, "num_heads": 6, "intermediate_size": 1536, "out_hidden_size": 512}
    tower |= {"fullatt_block_indexes": [2, 5, 8, 11], "window_size": 112}
    decoder = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}
    rope = _rope([8, 12, 12])
    base, processor = _qwen("Qwen2_5_VL", tower, rope_parameters=rope, head_dim=64, **decoder)
    for parameter in base.parameters():
        if parameter.ndim > 1:  # large enough that answers differ
            torch.nn.init.normal_(parameter, std=0.06)
    processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 448 * 448}
    processor.chat_template = _chat_template(processor.image_token)
    regions = RegionProcessor(processor)
    return RegionChat(add_regions(base, regions.region_token_id).eval(), regions)


@torch.inference_mode()
def generate_each(chat: RegionChat, image: Image.Image, boxes: list[list[int]]) -> list[str]:
    """Asks the base's own `generate` about each box, image and all."""
    model, processor, answers = chat.model, chat.processor, []
    for box in boxes:
        sample = RegionSample(image=image, boxes_px=np.array([box]), turns=(Turn("user", chat.default_question),))
        inputs: Any = processor([sample], generation=True)
        options = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "eos_token_id": list(processor.stop_token_ids)}
        tokens = model.generate(**inputs, **options, pad_token_id=0)
        answers.append(processor.decode(tokens[0, inputs["input_ids"].shape[1] :]))
    return answers


def ask_each(chat: RegionChat, image: Image.Image, boxes: list[list[int]]) -> list[str]:
    """Encodes the image once and asks about each box in a conversation of its own."""
    chat.set_image(image)
    return [str(chat.fork().ask(chat.default_question, [box], max_new_tokens=MAX_NEW_TOKENS)) for box in boxes]


def describe(chat: RegionChat, image: Image.Image, boxes: list[list[int]]) -> list[str]:
    """Asks about all boxes at once."""
    return chat.describe(image, boxes, max_new_tokens=MAX_NEW_TOKENS)


WAYS = {PLAIN: generate_each, EACH: ask_each, TOGETHER: describe}

if __name__ == "__main__":
    main(measure, __doc__)
