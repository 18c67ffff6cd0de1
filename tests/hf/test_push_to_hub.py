"""push_to_hub against a hub on this machine: what is uploaded opens again, with our card."""

from __future__ import annotations

import ast
import base64
import hashlib
import inspect
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import transformers.utils.hub
from huggingface_hub import HfApi
from tiny import tiny_model, tiny_processor

from gpt4roi.models import GPT4RoIForConditionalGeneration

PAGE = Path(__file__).parents[2] / "docs/transformers.md"


class Hub(BaseHTTPRequestHandler):
    """Takes files in commits, as the hub takes small ones, and gives them back."""

    files: dict[str, bytes]

    def log_message(self, *args):
        pass

    def answer(self, content, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content if self.command != "HEAD" else b"")

    def do_HEAD(self):
        name = self.path.split("/resolve/main/")[-1]
        if name not in self.files:
            self.answer(b"", 404, X_Error_Code="EntryNotFound")
        else:
            commit = hashlib.sha1(self.files[name]).hexdigest()
            self.answer(self.files[name], X_Repo_Commit=commit, ETag=f'"{commit}"')

    do_GET = do_HEAD  # noqa: N815

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        url = f"http://127.0.0.1:{self.server.server_port}/me/model"
        reply = {"url": url, "commitUrl": f"{url}/commit/0", "commitOid": "0" * 40}
        if "/preupload/" in self.path:
            reply = {
                "files": [
                    {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for one in json.loads(body)["files"]
                ]
            }
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.answer(json.dumps(reply).encode(), Content_Type="application/json")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The files of the repository me/model."""
    Hub.files = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", HfApi(endpoint=url, token="hf_none"), raising=False)
    yield Hub.files
    server.shutdown()
    server.server_close()


@pytest.mark.heavy
def test_what_is_pushed_opens_and_says_how(hub, tmp_path):
    model = tiny_model()
    model.push_to_hub("me/model", private=True, token="hf_none")
    assert (
        hub["README.md"].startswith(b"---\n# Written by gpt4roi") and b"RegionChat.from_pretrained" in hub["README.md"]
    )
    tiny_processor(model.config).push_to_hub("me/model", token="hf_none")
    assert {"model.safetensors", "config.json", "gpt4roi_auto.py", "processor_config.json", "tokenizer.json"} <= {*hub}
    assert b"RegionChat.from_pretrained" in hub["README.md"]
    for name, content in hub.items():
        (tmp_path / name).write_bytes(content)
    again = GPT4RoIForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.mm_projector.weight, model.mm_projector.weight)
    hub["README.md"] = b"---\nlicense: mit\n---\n# Mine\n"
    model.push_to_hub("me/model", token="hf_none")
    assert b"# Mine" in hub["README.md"] and b"gpt4roi" not in hub["README.md"]


def test_the_page_pushes_with_arguments_that_there_are():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    calls = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    pushed = [call for call in calls if getattr(call.func, "attr", None) == "push_to_hub"]
    taken = inspect.signature(GPT4RoIForConditionalGeneration.push_to_hub).parameters
    assert len(pushed) == 2 and {word.arg for call in pushed for word in call.keywords} <= {*taken}
