"""Masks through `vllm serve` against `gpt4roi serve` over a model that reads them: forms, answers and errors."""

from __future__ import annotations

import numpy as np
import pytest
from vllm_models import BOXES, MASKS, QUESTION, save, tiny_chat
from vllm_servers import message, own_serving, post, vllm_serving

pytest.importorskip("vllm")

POLYGON = [[5, 6, 30, 6, 30, 22, 17, 22, 17, 38, 5, 38]]


def run_lengths(x1: int, y1: int, x2: int, y2: int) -> dict:
    """A rectangle of the image as COCO writes it, column by column."""
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[y1:y2, x1:x2] = 1
    changes = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel(), [0]])))
    return {"size": [40, 60], "counts": np.diff(np.concatenate([[0], changes, [2400]])).tolist()}


FORMS = {
    "left half": MASKS[0],
    "right half": MASKS[1],
    "box": BOXES[0],
    "polygon": POLYGON,
    "run lengths": {"box": BOXES[0], "mask": run_lengths(10, 10, 25, 30)},
    "point": {"point": [17, 22], "radius": 8},
    "stroke": {"stroke": [[8, 10], [28, 34]], "radius": 3},
}


@pytest.fixture(scope="module")
def addresses(tmp_path_factory):
    """vLLM's server and ours, over one model."""
    chat = tiny_chat("clip", region_shape="mask")
    folder, log = save(chat, tmp_path_factory.mktemp("model")), tmp_path_factory.mktemp("log") / "server.txt"
    with vllm_serving(folder, log) as found, own_serving(chat) as own:
        yield found, own


def ask(address: str, text: str = QUESTION, **fields) -> list[float]:
    """The log-probability of each token of an answer.

    Texts would not do: of bytes that are no text the servers show different parts.
    """
    status, found = post(address, {"messages": [message(text)], "max_tokens": 24, "logprobs": True, **fields})
    assert status == 200, found
    return [one["logprob"] for one in found["choices"][0]["logprobs"]["content"]]


def are_same(found: list[float], expected: list[float]) -> bool:
    """Whether two answers are the same; our server leaves the token out that ends one."""
    both = zip(found, expected, strict=False)
    return len(found) - len(expected) in (0, 1) and all(abs(one - other) < 1e-3 for one, other in both)


def test_each_form_of_a_mask_gets_the_answer_of_our_own_server(addresses):
    server, own = addresses
    expected = [ask(own, boxes=[region]) for region in FORMS.values()]
    assert [[are_same(one, other) for one in expected] for other in expected] == np.eye(len(FORMS)).tolist()
    for _ in range(2):  # computed, then from the caches
        found = [ask(server, boxes=[region]) for region in FORMS.values()]
        assert [are_same(one, other) for one, other in zip(found, expected, strict=True)] == [True] * len(FORMS)
    found = [ask(server, chat_template_kwargs={"boxes": [region]}) for region in FORMS.values()]
    assert [are_same(one, other) for one, other in zip(found, expected, strict=True)] == [True] * len(FORMS)


def test_masks_and_boxes_stand_together_in_one_question(addresses):
    text = "Is <region1> left of <region2>, or of <box>20,3,50,22</box>?"
    found, expected = (ask(address, text, boxes=[MASKS[0], BOXES[3]]) for address in addresses)
    assert are_same(found, expected)
    assert not are_same(ask(addresses[0], text, boxes=[MASKS[1], BOXES[3]]), expected)


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        ({"size": [30, 60], "counts": [0, 1800]}, "the mask of region 1 is 60x30 but the image is 60x40 pixels"),
        ({"size": [40, 60], "counts": [2400]}, "the mask is empty: no pixel lies inside of region 1"),
        ({"point": [70, 5]}, "region 1: expected [x, y] inside the image"),
    ],
)
def test_a_wrong_mask_is_the_same_error(addresses, region, expected):
    asked = {"messages": [message(QUESTION)], "boxes": [region]}
    (status, found), own = (post(address, asked) for address in addresses)
    assert (status, found) == own
    assert status == 400 and expected in found["error"]["message"]
