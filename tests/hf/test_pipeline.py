"""transformers' image-text-to-text pipeline answers with a folder of ours, as its own models do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor
from transformers import pipeline

from gpt4roi.checkpoint.loading import load_model, load_processor
from gpt4roi.structures import RegionSample, Turn

QUESTION, BOXES = "What is <region1>?", [[2, 3, 20, 25]]
SETTINGS = {"max_new_tokens": 4, "return_full_text": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pipeline")
    model = tiny_model()
    model.save_pretrained(place)
    tiny_processor(model.config).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))


def answer(folder, image, question=QUESTION, boxes=BOXES) -> str:
    """What the model says to the sample, decoded as the pipeline does it."""
    processor, model = load_processor(folder), load_model(folder)
    inputs = processor(RegionSample(image, (Turn("user", question),), boxes), generation=True)
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def pipe(folder):
    pipe = pipeline("image-text-to-text", model=str(folder), device="cpu", dtype=torch.float32)
    pipe.model.generation_config.do_sample = False
    return pipe


@pytest.mark.heavy
def test_a_question_an_image_and_boxes_are_answered(pipe, folder, image):
    (said,) = pipe(images=image, text=QUESTION, boxes=BOXES, **SETTINGS)
    assert said["generated_text"] == answer(folder, image)
    (said,) = pipe(images=image, text="What is this?", **SETTINGS)
    assert said["generated_text"] == answer(folder, image, "What is this?", []) != answer(folder, image)


def test_a_chat_is_answered_and_goes_on(pipe, folder, image):
    content = [{"type": "image", "image": image, "boxes": BOXES}, {"type": "text", "text": QUESTION}]
    (said,) = pipe(text=[{"role": "user", "content": content}], max_new_tokens=4)
    assert said["generated_text"][-1] == {"role": "assistant", "content": answer(folder, image)}
    pipe(text=said["generated_text"] + [{"role": "user", "content": "And what else?"}], max_new_tokens=2)


@pytest.mark.heavy
def test_several_questions_are_answered_in_one_batch(pipe, folder, image):
    said = pipe(images=[image, image], text=[QUESTION, "A <region1>, or what?"], boxes=[BOXES, BOXES], **SETTINGS)
    assert [one["generated_text"] for one in said] == [
        answer(folder, image),
        answer(folder, image, "A <region1>, or what?"),
    ]
