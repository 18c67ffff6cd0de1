"""The curl and JavaScript of docs/http.md get an answer from a running page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy

pytest.importorskip("gradio")
PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text(encoding="utf-8")
SHOWN_URL = "http://127.0.0.1:7860/"


def example(language: str, url: str) -> str:
    """The block of a language, for a page at another address."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert SHOWN_URL in block
    return block.replace(SHOWN_URL, url)


@pytest.fixture(scope="module")
def url(model_and_photo):
    """The address of the demo page over a tiny model."""
    from gpt4roi import RegionChat
    from gpt4roi.demo.server import ServerOptions, serve
    from gpt4roi.processing.uploads import Limits

    chat = RegionChat.from_pretrained(model_and_photo / "model", dtype="float32")
    served = serve(chat, "tiny", ServerOptions(limits=Limits(2 * 2**20, 4_000_000), max_sessions=40))
    yield served.url
    served.close()


def run(command: list[str], folder: Path) -> str:
    """Runs a program and returns what it printed; it must succeed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is missing")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_curl_example_sets_an_image_and_gets_an_answer(url, model_and_photo):
    if shutil.which("curl") is None:
        pytest.skip("curl is missing")
    shown, answered = [
        json.loads(data)
        for data in re.findall(
            r"^event: complete\ndata: (.*)$", run(["bash", "-c", example("bash", url)], model_and_photo), re.MULTILINE
        )
    ]
    assert shown == [{"width": 420, "height": 300}]
    assert isinstance(answered[0], str)
    assert answered[0]


def test_the_javascript_example_sets_an_image_and_gets_an_answer(url, model_and_photo):
    (model_and_photo / "ask.mjs").write_text(example("js", url), encoding="utf-8")
    printed = run(["node", "ask.mjs"], model_and_photo)
    shown, _, answered = printed.partition("\n")
    assert shown == "{ width: 420, height: 300 }"
    assert answered.strip()


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        (("call set_image", ": set_image"), "There is no image yet"),
        (("SESSION=$(date +%s%N)", "SESSION=short"), "the request belongs to no session"),
    ],
    ids=["no image", "a session of five letters"],
)
def test_a_call_that_lacks_what_the_page_asks_for_is_told_so(url, model_and_photo, planted, message):
    assert planted[0] in example("bash", url)
    assert message in run(["bash", "-c", example("bash", url).replace(*planted)], model_and_photo)
