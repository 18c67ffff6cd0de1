"""The client programs of examples/ against a live server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
BOXES = [[5, 4, 40, 30], [20, 10, 55, 38]]
WHAT = "What is <region1>?"


@pytest.fixture(scope="module")
def open_api(chat):
    """A server that asks for no key."""
    from gpt4roi.serving.server import RunningApi, ServingOptions

    running = RunningApi(chat, "tiny", ServingOptions(port=0))
    serving = running.start()
    yield f"{running.url}/v1"
    running.close()
    serving.join(60)


@pytest.fixture(scope="module")
def photo(tmp_path_factory, picture) -> Path:
    file = tmp_path_factory.mktemp("photo") / "photo.jpg"
    picture.save(file, quality=95)
    return file


def run(*command: str | Path) -> str:
    environment = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
    done = subprocess.run([*command], capture_output=True, text=True, env=environment, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


def alone(chat, photo, *rounds) -> list[str]:
    chat.set_image(photo)
    return [chat.ask(text, boxes, max_new_tokens=64) for text, boxes in rounds]


@pytest.mark.heavy
def test_the_python_client_asks_and_asks_again(open_api, chat, photo):
    found = run(sys.executable, EXAMPLES / "chat_with_regions.py", photo, "5,4,40,30", open_api)
    answers = alone(chat, photo, (WHAT, BOXES[:1]), ("What is left of region1?", None))
    assert found == "".join(f"{answer}\n" for answer in answers)


@pytest.mark.heavy
def test_the_javascript_client_streams_the_answer(open_api, chat, photo):
    if shutil.which("node") is None:
        pytest.skip("node is missing")
    found = run("node", EXAMPLES / "chat_with_regions.mjs", photo, "5,4,40,30", open_api)
    assert [found.removesuffix("\n")] == alone(chat, photo, (WHAT, BOXES[:1]))


@pytest.mark.heavy
def test_curl_gets_a_line_for_each_box_and_probabilities(open_api, chat, photo):
    found = run("bash", EXAMPLES / "describe_regions.sh", photo, open_api, json.dumps(BOXES))
    first, second, choices = found.splitlines()
    answers = chat.describe(photo, BOXES, max_new_tokens=64)
    assert [json.loads(first)["answer"], json.loads(second)["answer"]] == answers
    labels = [one["choice"] for one in json.loads(choices)["regions"][0]["answers"][0]["choices"]]
    assert labels == ["a cat", "a dog", "something else"]
