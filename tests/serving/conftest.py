"""One API on a tiny model for all tests of serving, and what a client needs."""

from __future__ import annotations

import base64
import io
import json
import os
import urllib.error
import urllib.request
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor

KEY = "sk-tests"


@pytest.fixture(scope="session")
def chat():
    """A chat over a tiny model whose answers depend on the region."""
    from gpt4roi import RegionChat

    model = tiny_model("pyramid")
    with torch.no_grad():
        for weight in model.region_encoder.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)
    return RegionChat(model, tiny_processor(model.config))


@pytest.fixture(scope="session")
def api(chat):
    """The API, served on this machine, with an API key and limits small enough to meet."""
    for package in ("uvicorn", "starlette", "prometheus_client", "openai"):
        if find_spec(package) is None:
            line = f'{package} is missing; pip install "gpt4roi[serve,dev]"'
            pytest.fail(line) if os.environ.get("CI") else pytest.skip(line)
    from gpt4roi.demo.uploads import Limits
    from gpt4roi.serving.server import RunningApi, ServingOptions

    options = ServingOptions(port=0, api_keys=("sk-other", KEY), limits=Limits(2**20, 1_000_000))
    running = RunningApi(chat, "tiny", options)
    thread = running.start()
    yield running
    running.close()
    thread.join(30)
    assert not thread.is_alive() and not running.worker.is_alive


@pytest.fixture(scope="session")
def client(api):
    """The official client of OpenAI's API."""
    from openai import OpenAI

    return OpenAI(base_url=f"{api.url}/v1", api_key=KEY, max_retries=0, timeout=60)


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """An image of 60 x 40 pixels."""
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def as_data_url(image: Image.Image, form: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.fixture(scope="session")
def url(picture) -> str:
    """The image as a data URL."""
    return as_data_url(picture)


def question(text: str, url: str | None = None) -> dict:
    """A user's message, with an image before the text."""
    if url is None:
        return {"role": "user", "content": text}
    return {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}],
    }


def post(api, path: str, body: object, key: str = KEY) -> tuple[int, dict, dict]:
    """Posts JSON, or bytes as they are; returns status, body and headers."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{api.url}{path}", data, headers), timeout=60) as found:
            return found.status, json.loads(found.read()), dict(found.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), dict(error.headers)
