"""One API on a tiny model for all tests of serving, and what a client needs."""

from __future__ import annotations

import os
from importlib.util import find_spec

import numpy as np
import pytest
from api_client import KEY, as_data_url
from PIL import Image
from tiny import region_sensitive_chat


@pytest.fixture(scope="session")
def chat():
    """A chat over a tiny model whose answers depend on the region."""
    return region_sensitive_chat()


@pytest.fixture(scope="session")
def api(chat):
    """The API, served on this machine, with an API key and limits small enough to meet."""
    for package in ("uvicorn", "starlette", "prometheus_client", "openai"):
        if find_spec(package) is None:
            line = f'{package} is missing; pip install "gpt4roi[serve,dev]"'
            pytest.fail(line) if os.environ.get("CI") else pytest.skip(line)
    from gpt4roi.processing.uploads import Limits
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


@pytest.fixture(scope="session")
def url(picture) -> str:
    """The image as a data URL."""
    return as_data_url(picture)
