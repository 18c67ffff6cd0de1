"""`vllm serve` with the plugin and `gpt4roi serve` on this machine, and requests to them."""

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vllm_models import IMAGE

from gpt4roi import RegionChat

START_SECONDS = 900


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


@contextmanager
def vllm_serving(folder: str, log: Path) -> Iterator[str]:
    """The address of `vllm serve` over a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--dtype", "float32", "--max-model-len", "1024", "--block-size", "32", "--enforce-eager"]
    command = [str(Path(sys.executable).with_name("vllm")), "serve", folder, "--tokenizer-mode", "gpt4roi"]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), *options]
    environment = os.environ | {"VLLM_PLUGINS": "gpt4roi", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        try:
            address, end = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
            while not _answers(address):
                assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
                time.sleep(1)
            yield address
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()


def _answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/health", timeout=5).status == 200
    except OSError:
        return False


@contextmanager
def own_serving(chat: RegionChat) -> Iterator[str]:
    """The address of our own API over a chat's model."""
    from gpt4roi.serving.server import RunningApi, ServingOptions

    running = RunningApi(chat, "tiny", ServingOptions(port=0))
    thread = running.start()
    yield running.url
    running.close()
    thread.join(30)


def post(address: str, body: object) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/v1/chat/completions", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, json.loads(found.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
