"""Many regions on many images in one call."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from test_region_chat import BOXES, chat_with, make_image

from gpt4roi import InputError
from gpt4roi.generation.many import batched_by_size


@pytest.fixture(scope="module")
def chat():
    return chat_with("pyramid")


IMAGES = [make_image(seed) for seed in range(5)]
OF_IMAGE = [BOXES[:1], BOXES, [], BOXES[1:4], BOXES[2:3]]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_many_images_are_answered_as_each_by_itself(chat, batch_size):
    alone = [chat.describe(*pair, max_new_tokens=6) for pair in zip(IMAGES, OF_IMAGE, strict=True)]

    together = list(chat.describe_many(IMAGES, OF_IMAGE, max_new_tokens=6, batch_size=batch_size))

    assert together == alone
    assert [len(answers) for answers in together] == [1, 5, 0, 3, 1]


def test_every_image_is_looked_at_once_and_together_with_its_neighbours(chat):
    looks = []
    hook = chat.model.vision_tower.register_forward_hook(lambda _module, args, _output: looks.append(len(args[0])))

    list(chat.describe_many(IMAGES, OF_IMAGE, max_new_tokens=2, batch_size=6))

    hook.remove()
    assert looks == [2, 2]  # the first two fill a batch; of the others one has no box


def test_images_are_taken_as_needed(chat):
    taken = []

    def one_after_the_other():
        for number, shown in enumerate(IMAGES):
            taken.append(number)
            yield shown

    answers = chat.describe_many(one_after_the_other(), OF_IMAGE, max_new_tokens=2, batch_size=4)
    next(answers)

    assert taken == [0, 1]


def test_images_of_a_batch_are_opened_one_by_one(chat, monkeypatch):
    opened, held = [], []

    def open_and_count(number):
        shown = IMAGES[number].copy()
        opened.append(weakref.ref(shown))
        held.append(sum(one() is not None for one in opened))
        return shown

    monkeypatch.setattr("gpt4roi.region_chat.open_image", open_and_count)
    list(chat.describe_many(range(5), OF_IMAGE, max_new_tokens=2, batch_size=100))

    assert held == [1] * 5


def test_lists_of_different_lengths_are_refused(chat):
    with pytest.raises(ValueError, match="shorter"):
        list(chat.describe_many(IMAGES[:2], OF_IMAGE[:1], max_new_tokens=2))


def test_a_wrong_question_is_refused_before_any_image_is_opened(chat):
    with pytest.raises(InputError, match="mentions no region"):
        chat.describe_many(["nowhere.png"], [BOXES], "What?")


def test_draws_do_not_depend_on_the_batch(chat):
    settings = {"max_new_tokens": 6, "temperature": 1.5, "seed": 3}

    answers = chat.describe(IMAGES[0], BOXES, batch_size=5, **settings)

    assert answers == chat.describe(IMAGES[0], BOXES, batch_size=2, **settings)
    assert answers != chat.describe(IMAGES[0], BOXES, batch_size=2, **settings | {"seed": 4})


def test_the_image_of_the_conversation_is_not_looked_at_again(chat):
    chat.set_image(IMAGES[1])
    looks = []
    hook = chat.model.vision_tower.register_forward_hook(lambda *_: looks.append(1))

    answers = chat.describe(None, BOXES, max_new_tokens=6)

    hook.remove()
    assert not looks
    assert answers == chat.describe(IMAGES[1], BOXES, max_new_tokens=6)
    with pytest.raises(InputError, match="call set_image first"):
        chat_with("pyramid").describe(None, BOXES)


@pytest.mark.parametrize("kind", ["clip", "pyramid"])
def test_the_pyramid_of_an_image_is_computed_once(kind):
    chat = chat_with(kind)
    computed = []
    encoder = chat.model.region_encoder
    part = encoder.fusion if kind == "clip" else encoder.standardise[0]
    part.register_forward_hook(lambda *_: computed.append(1))
    chat.set_image(IMAGES[0])

    for box in BOXES:
        chat.ask("What is it?" if box is BOXES[0] else "And what is <region1>?", [box], max_new_tokens=2)
        chat.reset()

    assert len(computed) == 1


def test_only_the_regions_asked_about_last_are_kept_of_an_image(monkeypatch):
    chat = chat_with("pyramid", image=True)
    expected = chat.describe(None, BOXES, max_new_tokens=4)
    encoded = chat._dialogue.encoded
    one_region = encoded.region_features(torch.tensor([BOXES[0]]) / 100).nbytes
    monkeypatch.setattr("gpt4roi.generation.encoded_image.REGION_CACHE_SIZE", 3)

    for corner in range(20):
        chat.ask("What is <region1>?", [[corner, corner, 60, 60]], max_new_tokens=1)
        chat.reset()
    assert len(encoded._regions) == 3
    assert sum(features.untyped_storage().nbytes() for features in encoded._regions.values()) == 3 * one_region

    computed = []
    with monkeypatch.context() as patched:
        patched.setattr(encoded.model.region_encoder, "embed_boxes", lambda *_: computed.append(1))
        chat.ask("What is <region1>?", [[19, 19, 60, 60]], max_new_tokens=1)
    assert not computed, "the last one is still there"
    assert chat.describe(None, BOXES, max_new_tokens=4) == expected, "a call may ask about more than are kept"


def test_a_batch_ends_once_it_is_large_enough():
    assert list(batched_by_size([3, 0, 2, 9, 1], int, 4)) == [[3, 0], [2, 9], [1]]
    assert list(batched_by_size([], int, 4)) == []


def test_a_batch_of_nothing_is_refused(chat):
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        chat.describe(IMAGES[0], np.asarray(BOXES), batch_size=0)
