"""One page on a tiny model and one browser, for all tests of the page."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny import region_sensitive_chat

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "build" / "screenshots"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def missing(what: str, how: str) -> None:
    """Skips where a part is missing; in CI that is a failure."""
    line = f"{what} is missing; {how}"
    if os.environ.get("CI"):
        pytest.fail(line)
    pytest.skip(line)


@pytest.fixture(scope="session")
def tiny_chat():
    """A chat over a tiny model whose answers depend on the region."""
    return region_sensitive_chat()


@pytest.fixture(scope="session")
def worker(tiny_chat):
    """A worker over it, for sessions without a page."""
    from gpt4roi.generation.batching import BatchingWorker

    made = BatchingWorker(tiny_chat.model, tiny_chat.processor)
    yield made
    made.close()


@pytest.fixture(scope="session")
def running(tiny_chat):
    """The page, served on this machine."""
    if find_spec("gradio") is None:
        missing("Gradio", 'pip install "gpt4roi[demo]"')
    from gpt4roi.demo.server import ServerOptions, serve
    from gpt4roi.processing.uploads import Limits

    served = serve(tiny_chat, "tiny", ServerOptions(limits=Limits(2 * 2**20, 4_000_000), max_sessions=40))
    yield served
    served.close()


@pytest.fixture
def slow_model(running):
    """Lets the tiny model take its time over each token, as large ones do, so that there is time to press Stop."""
    import time

    hook = running.worker._decoder.model.register_forward_pre_hook(lambda *_: time.sleep(0.05))
    yield
    hook.remove()


@pytest.fixture
def held_model(running):
    """Holds the page's worker before each step, a token of every answer, until it is released."""
    import threading

    tokens = threading.Semaphore(0)
    hook = running.worker._decoder.model.register_forward_pre_hook(lambda *_: tokens.acquire(timeout=600) and None)
    yield tokens
    hook.remove()
    tokens.release(10_000)


@pytest.fixture
def pausable_model(running):
    """An event without which the tiny model writes no token; it is set at first."""
    import threading

    go_on = threading.Event()
    go_on.set()
    hook = running.worker._decoder.model.register_forward_pre_hook(lambda *_: go_on.wait(600) and None)
    yield go_on
    go_on.set()
    hook.remove()


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, driven by Playwright."""
    if find_spec("playwright") is None:
        missing("Playwright", 'pip install "gpt4roi[dev]"')
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        missing("a browser", "apt-get install chromium")
    from page_driver import PATIENCE
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # A container's /dev/shm may be too small for it.
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]
        chromium = playwright.chromium.launch(executable_path=path, args=flags, timeout=PATIENCE)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def screenshots():
    """The folder where screenshots land."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS
