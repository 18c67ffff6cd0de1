"""`vllm serve` with the plugin against `gpt4roi serve`: the same requests, texts and errors, by OpenAI's own client."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from vllm_models import BOXES, IMAGE, QUESTION, save, tiny_chat

pytest.importorskip("vllm")
START_SECONDS = 400


def data_url() -> str:
    file = io.BytesIO()
    IMAGE.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


URL = data_url()


def message(text: str, url: str = URL) -> dict:
    return {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}],
    }


@pytest.fixture(scope="module")
def chat():
    return tiny_chat("clip", prompt_format="v0")


@pytest.fixture(scope="module")
def server(chat, tmp_path_factory):
    """The address of `vllm serve` over the chat's model."""
    folder = save(chat, tmp_path_factory.mktemp("model"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--dtype", "float32", "--max-model-len", "1024", "--block-size", "32", "--enforce-eager"]
    command = [str(Path(sys.executable).with_name("vllm")), "serve", folder, "--tokenizer-mode", "gpt4roi"]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), *options]
    environment = os.environ | {"VLLM_PLUGINS": "gpt4roi", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    log = tmp_path_factory.mktemp("log") / "server.txt"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
                time.sleep(1)
        yield address
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def own_server(chat):
    """The address of our own API over the same model."""
    from gpt4roi.serving.server import RunningApi, ServingOptions

    running = RunningApi(chat, "tiny", ServingOptions(port=0))
    thread = running.start()
    yield running.url
    running.close()
    thread.join(30)


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


def post(address: str, body: object) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/v1/chat/completions", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, json.loads(found.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


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
