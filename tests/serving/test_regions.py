"""`POST /v1/regions`: an answer for each box of an image in one call, or the probabilities of labels."""

from __future__ import annotations

import json
import urllib.request

import numpy as np
import pytest
import torch
from api_client import KEY, post
from api_client import question as message
from tiny import region_sensitive_chat

from gpt4roi import RegionSample, Turn

BOXES = [[5, 4, 40, 30], [20, 10, 55, 38], [0, 0, 25, 20]]


def test_each_box_gets_the_answer_of_describe_with_a_confidence(api, chat, picture, url):
    status, found, _ = post(api, "/v1/regions", {"image": url, "boxes": BOXES, "max_tokens": 8})
    expected = chat.describe(picture, BOXES, scores=True, max_new_tokens=8)

    assert status == 200 and found["image"] == {"width": 60, "height": 40} and found["model"] == "tiny"
    assert [(one["region"], one["box"]) for one in found["regions"]] == list(enumerate(BOXES, start=1))
    answers = [region["answers"][0] for region in found["regions"]]
    assert [one["answer"] for one in answers] == [one.text for one in expected]
    assert [one["confidence"] for one in answers] == pytest.approx([one.score for one in expected], abs=1e-3)
    assert {one["question"] for one in answers} == {"What is <region1>?"}
    assert found["usage"]["completion_tokens"] == 24
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] + 24


def test_several_questions_are_asked_about_each_box(api, chat, picture, url):
    questions = ["What is <region1>?", "Which colour is <region1>?"]
    _, found, _ = post(api, "/v1/regions", {"image": url, "boxes": BOXES, "questions": questions, "max_tokens": 5})
    for number, question in enumerate(questions):
        expected = chat.describe(picture, BOXES, question, max_new_tokens=5)
        assert [region["answers"][number]["answer"] for region in found["regions"]] == expected
        assert {region["answers"][number]["question"] for region in found["regions"]} == {question}


def test_masks_are_taken_as_their_boxes(api, url):
    polygon = [[5, 4, 40, 4, 40, 30, 5, 30]]
    _, masked, _ = post(api, "/v1/regions", {"image": url, "boxes": [polygon], "max_tokens": 5})
    _, boxed, _ = post(api, "/v1/regions", {"image": url, "boxes": BOXES[:1], "max_tokens": 5})
    assert masked["regions"] == boxed["regions"]


def test_choices_come_with_probabilities_that_are_those_of_classify(api, chat, picture, url):
    labels = ["a cat", "a dog", "the sky"]
    status, found, _ = post(api, "/v1/regions", {"image": url, "boxes": BOXES, "choices": labels})
    expected = chat.classify(BOXES, labels, image=picture)

    assert status == 200
    for region, shares in zip(found["regions"], expected, strict=True):
        (answer,) = region["answers"]
        given = {one["choice"]: one["probability"] for one in answer["choices"]}
        assert given == pytest.approx(shares, abs=1e-3)
        assert sum(given.values()) == pytest.approx(1, abs=1e-4)
        assert answer["answer"] == max(shares, key=shares.get)


def test_choices_report_the_tokens_that_were_read_and_none_generated(api, chat, url):
    labels, question = ["a cat", "a dog", "the sky"], "What is <region1>?"
    _, found, _ = post(api, "/v1/regions", {"image": url, "boxes": BOXES, "choices": labels})
    turns = [(Turn("user", question), Turn("assistant", label)) for label in labels]
    samples = [RegionSample("the image", pair, np.array(BOXES[:1])) for pair in turns]
    encoded = [chat.processor.encode_text(one, image_size=(40, 60)) for one in samples]
    rows, begins = [one["input_ids"] for one in encoded], int((encoded[0]["labels"] != -100).nonzero()[0])
    shared = min(begins, next(n for n, tokens in enumerate(zip(*rows, strict=False)) if len(set(map(int, tokens))) > 1))
    read = 3 * (shared + sum(len(row) - shared for row in rows))
    assert found["usage"] == {"prompt_tokens": read, "completion_tokens": 0, "total_tokens": read}


def test_pairs_get_the_answers_of_describe_and_their_probabilities(api, chat, picture, url):
    question, pairs = "Is <region1> left of <region2>?", [[1, 2], [3, 1]]
    body = {"image": url, "boxes": BOXES, "question": question, "pairs": pairs}
    status, found, _ = post(api, "/v1/regions", {**body, "max_tokens": 6})
    expected = chat.describe(picture, BOXES, question, pairs=pairs, max_new_tokens=6)
    assert status == 200 and "regions" not in found
    assert [one["answers"][0]["answer"] for one in found["pairs"]] == expected
    assert found["pairs"][1]["pair"] == [3, 1] and found["pairs"][1]["boxes"] == [BOXES[2], BOXES[0]]
    _, chosen, _ = post(api, "/v1/regions", {**body, "choices": ["yes", "no"]})
    shares = chat.classify(BOXES, ["yes", "no"], question, picture, pairs=pairs)
    given = [one["answers"][0]["choices"][0]["probability"] for one in chosen["pairs"]]
    assert given == pytest.approx([one["yes"] for one in shares], abs=1e-3)


def test_a_stream_is_a_line_for_each_answer(api, url):
    body = {"image": url, "boxes": BOXES, "max_tokens": 5, "stream": True}
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{api.url}/v1/regions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        kind, lines = response.headers["content-type"], [json.loads(line) for line in response]
    _, whole, _ = post(api, "/v1/regions", {**body, "stream": False})

    assert kind.startswith("application/x-ndjson")
    assert [line["region"] for line in lines] == [1, 2, 3]
    assert [line["answer"] for line in lines] == [region["answers"][0]["answer"] for region in whole["regions"]]


def test_a_stream_that_cannot_go_on_ends_with_an_error(api, chat, url, monkeypatch, caplog):
    encode, calls = chat.processor.encode_text, []

    def fail_later(*args, **kwargs):
        calls.append(args)
        return encode(*args, **kwargs) if len(calls) < 2 else 1 // 0

    monkeypatch.setattr("gpt4roi.serving.app.WINDOW", 1)
    monkeypatch.setattr(chat.processor, "encode_text", fail_later)
    body = {"image": url, "boxes": BOXES, "max_tokens": 2, "stream": True}
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{api.url}/v1/regions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        first, last = [json.loads(line) for line in response]
    assert first["region"] == 1
    assert last["error"]["type"] == "server_error"
    assert last["error"]["message"] == "something went wrong; the log of the server says what"
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.heavy
def test_a_model_of_masks_reads_them(api, picture, url):
    from gpt4roi.serving.server import RunningApi, ServingOptions

    chat = region_sensitive_chat(region_shape="mask")
    shape = chat.model.region_encoder.shape_embedding
    torch.nn.init.normal_(shape.weight, std=8, generator=torch.Generator().manual_seed(1))
    running = RunningApi(chat, "tiny", ServingOptions(port=0))
    serving = running.start()
    regions = [{"box": BOXES[0], "mask": [[5, 4, 40, 4, 5, 30]]}, BOXES[0], {"point": [30, 20], "radius": 8}]
    _, found, _ = post(running, "/v1/regions", {"image": url, "boxes": regions, "max_tokens": 16})
    asked = {"messages": [message("What is <region1>?", url)], "max_tokens": 16}
    talks = [post(running, "/v1/chat/completions", {**asked, "boxes": [one]})[1] for one in regions]
    running.close()
    serving.join(60)
    expected = chat.describe(picture, regions, max_new_tokens=16)
    assert len(set(expected)) == 3
    assert [one["answers"][0]["answer"] for one in found["regions"]] == expected
    assert [one["choices"][0]["message"]["content"] for one in talks] == expected


def test_more_boxes_than_questions_may_wait_are_answered_all_the_same(api, chat, picture, url, monkeypatch):
    monkeypatch.setattr(api.worker, "max_waiting", 2)
    boxes = [[x, y, x + 20, y + 15] for x in (0, 12, 25, 38) for y in (0, 9, 20)]
    status, found, _ = post(api, "/v1/regions", {"image": url, "boxes": boxes, "max_tokens": 4})
    assert status == 200
    answers = [region["answers"][0]["answer"] for region in found["regions"]]
    assert answers == chat.describe(picture, boxes, max_new_tokens=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": []}, "boxes: list should have at least 1 item"),
        ({"boxes": [[1, 2, 3]]}, "box 1: expected four numbers x1, y1, x2, y2, got 3"),
        ({"boxes": [[1, 2, 30, 30]] * 1001}, "1001 boxes for one image, expected 1000 at most"),
        ({"question": "What is it?"}, "the question mentions no region"),
        ({"question": "Is <region1> on <region2>?"}, "the question mentions <region1>, <region2>, expected one region"),
        ({"question": "a <region1>", "questions": ["b <region1>"]}, "give question or questions, not both"),
        ({"choices": ["cat"]}, "expected at least two labels, none empty or given twice, got ['cat']"),
        ({"choices": ["cat", "cat "]}, "expected at least two labels"),
        ({"image": None}, "image: input should be a valid string"),
        ({"pairs": [[1, 4]]}, "a question about pairs mentions <region1> and <region2>"),
        (
            {"pairs": [[1, 4]], "question": "<region1> <region2>?"},
            "pair 1: expected the numbers of two different regions",
        ),
        ({"pairs": [], "question": "<region1> <region2>?"}, "pairs: there is none"),
        ({"masks": []}, "masks: is no field of this request"),
    ],
)
def test_a_fault_is_one_line(api, url, change, message):
    status, found, _ = post(api, "/v1/regions", {"image": url, "boxes": BOXES, **change})
    assert status == 400 and message in found["error"]["message"]
    assert found["error"]["type"] == "invalid_request_error"
