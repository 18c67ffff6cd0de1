"""`vllm serve` with the plugin against `gpt4roi serve`: the same requests, texts and errors, by OpenAI's own client."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from vllm_models import BOXES, IMAGE, MASKS, QUESTION, save, tiny_chat
from vllm_servers import message, own_serving, post, vllm_serving

pytest.importorskip("vllm")


@pytest.fixture(scope="module")
def chat():
    return tiny_chat("clip", prompt_format="v0")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """What the server says."""
    return tmp_path_factory.mktemp("log") / "server.txt"


@pytest.fixture(scope="module")
def server(chat, tmp_path_factory, log):
    """The address of `vllm serve` over the chat's model."""
    with vllm_serving(save(chat, tmp_path_factory.mktemp("model")), log) as address:
        yield address


@pytest.fixture(scope="module")
def own_server(chat):
    """The address of our own API over the same model."""
    with own_serving(chat) as address:
        yield address


@pytest.fixture(scope="module")
def client(server):
    from openai import OpenAI

    return OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=300)


def ask(client, text: str, **fields):
    return client.chat.completions.create(model="tiny", messages=[message(text)], max_tokens=32, **fields)


def shown(text: str) -> str:
    """A text as vLLM shows it: without half a character at which the length has cut it."""
    return text.rstrip("\ufffd")


def texts(chat) -> list[str]:
    return [shown(text) for text in chat.describe(IMAGE, BOXES, QUESTION, max_new_tokens=32)]


def test_texts_are_those_of_our_own_engine_in_each_form_of_a_region(client, chat):
    expected = texts(chat)
    assert len(set(expected)) > 2
    for box, text in zip(BOXES, expected, strict=True):
        typed = f"What is <box>{','.join(map(str, box))}</box>?"
        found = [
            ask(client, QUESTION, extra_body={"boxes": [box]}),
            ask(client, QUESTION, extra_body={"chat_template_kwargs": {"boxes": [box]}}),
            ask(client, typed),
        ]
        assert [one.choices[0].message.content for one in found] == [text] * 3
    assert found[0].usage.completion_tokens == 32 and found[0].choices[0].finish_reason == "length"


def test_a_model_of_boxes_takes_a_mask_as_its_box_and_says_so(client, chat, log):
    found = ask(client, QUESTION, extra_body={"boxes": MASKS[:1]})
    assert found.choices[0].message.content == texts(chat)[0]
    assert "masks became their bounding boxes: region 1: 5,6,30,38" in log.read_text()


def test_a_stream_shows_the_same_text(client, chat):
    events = list(ask(client, QUESTION, extra_body={"boxes": BOXES[:1]}, stream=True))
    assert "".join(one.choices[0].delta.content or "" for one in events if one.choices) == texts(chat)[0]


def test_many_questions_at_once_get_their_own_answers(client, chat):
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda box: ask(client, QUESTION, extra_body={"boxes": [box]}), BOXES * 4))
    assert [one.choices[0].message.content for one in found] == texts(chat) * 4


def test_a_conversation_goes_on_as_in_region_chat(client, chat):
    chat.set_image(IMAGE)
    messages, boxes = [], []
    for number, box in enumerate(BOXES[:3], start=1):
        question = f"What is <region{number}>?"
        expected = chat.ask(question, [box], max_new_tokens=16)
        boxes.append(box)
        messages.append(message(question) if number == 1 else {"role": "user", "content": question})
        found = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=16, extra_body={"boxes": boxes}
        )
        assert found.choices[0].message.content == shown(expected)
        messages.append({"role": "assistant", "content": expected})
    chat.reset()


FAULTS = [
    {"messages": [message(QUESTION)]},
    {"messages": [message(QUESTION)], "boxes": [[60, 5, 20, 80]]},
    {"messages": [message("What is <region3>?")], "boxes": [[5, 6, 30, 38], [0, 0, 10, 10]]},
    {"messages": [message(QUESTION)], "boxes": [[0.1, 0.2, 0.5, 0.7]]},
    {"messages": [message("Hello")], "boxes": BOXES[:1]},
    {"messages": [message("What is <box>1,2,3</box>?")]},
    {"messages": [message(QUESTION, "/etc/passwd")], "boxes": BOXES[:1]},
    {"messages": [message(QUESTION, "file:///etc/passwd")], "boxes": BOXES[:1]},
    {"messages": [{"role": "system", "content": "Be brief."}, message("Hello")]},
    {"messages": [message("Hello")], "tools": []},
    {"messages": [message("Hello")], "temperature": -1},
    {"messages": [message("Hello " * 5000)]},
    {"messages": []},
    b"{",
]


@pytest.mark.parametrize("body", FAULTS, ids=lambda body: str(len(str(body))))
def test_faults_are_answered_as_by_our_own_server(server, own_server, body):
    status, found = post(server, body)
    assert (status, found) == post(own_server, body)
    assert status == 400 and found["error"]["message"]


def test_addresses_are_not_fetched_unless_their_host_is_allowed(server):
    status, found = post(server, {"messages": [message(QUESTION, "https://127.0.0.1/a.png")], "boxes": BOXES[:1]})
    assert status == 400 and found["error"]["message"] == (
        "https://127.0.0.1/a.png: this server fetches no image from there; send it as data:image/png;base64,… (who "
        "runs the server allows hosts with --allowed-media-domains)"
    )
