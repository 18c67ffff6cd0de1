"""The page as a programming interface for gradio_client, and strangers' requests to it."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gpt4roi import InputError, RegionChat
from gpt4roi.processing.uploads import open_upload

pytestmark = pytest.mark.heavy


def noise(seed: int, size: tuple[int, int] = (96, 64)) -> str:
    """An image of coarse noise, as base64 text."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    packed = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(packed, "PNG")
    return base64.b64encode(packed.getvalue()).decode()


@pytest.fixture
def connect(running):
    """Opens clients, each with a session of its own."""
    from gradio_client import Client

    clients = []

    def one() -> Client:
        clients.append(Client(running.url, verbose=False))
        return clients[-1]

    yield one
    for client in clients:
        client.close()


def test_the_interface_has_these_names_and_no_others(connect):
    described = connect().view_api(return_format="dict", print_info=False)
    assert set(described["named_endpoints"]) == {
        "/set_image",
        "/set_picture",
        "/set_example",
        "/ask",
        "/stop",
        "/start_over",
        "/clear_all",
        "/conversation",
        "/conversation_image",
        "/explain",
        "/conversation_picture",
    }
    assert not described["unnamed_endpoints"]
    names = [one["parameter_name"] for one in described["named_endpoints"]["/ask"]["parameters"]]
    assert names == ["question", "boxes", "temperature", "max_new_tokens", "seed"]


def test_a_client_talks_as_region_chat_does(connect, tiny_chat):
    client, chat = connect(), RegionChat(tiny_chat.model, tiny_chat.processor)
    assert client.predict(noise(1), api_name="/set_image") == {"width": 96, "height": 64}
    chat.set_image(open_upload(noise(1)).image)
    said = []
    for question, boxes in [("Is <region1> like <region2>?", [[5, 5, 40, 30], [30, 10, 90, 60]]), ("And region1?", [])]:
        job = client.submit(question=question, boxes=boxes, max_new_tokens=12, api_name="/ask")
        said.append(job.result())
        assert said[-1] == chat.ask(question, boxes, max_new_tokens=12)
        assert len(job.outputs()) > 2 and job.outputs()[-1] == said[-1]

    record = client.predict(api_name="/conversation")
    assert record["model"] == "tiny"
    assert [one["box"] for one in record["regions"]] == [[5, 5, 40, 30], [30, 10, 90, 60]]
    assert [one["answer"] for one in record["rounds"]] == said
    sheet = open_upload(client.predict(api_name="/conversation_image").split(",")[1])
    assert sheet.own_size[0] == 960
    explained = client.predict(api_name="/explain")
    assert (explained["question"], explained["answer"]) == ("And region1?", said[-1])
    assert [len(heat["inside"]) for heat in explained["heatmaps"].values()] == [2, 2]
    assert open_upload(explained["image"].split(",")[1]).own_size == (2 * 96, 64)
    assert client.predict(api_name="/start_over")["rounds"] == []
    assert client.predict(api_name="/clear_all")["picture"] is None


def test_the_old_names_of_the_interface_still_work(connect):
    client = connect()
    assert client.predict(picture=noise(1), api_name="/set_picture") == {"width": 96, "height": 64}
    sheet = open_upload(client.predict(api_name="/conversation_picture").split(",")[1])
    assert sheet.own_size[0] == 960


def test_clients_do_not_see_each_other(connect):
    one, other = connect(), connect()
    one.predict("cat", api_name="/set_example")
    one.predict("What is <region1>?", [[10, 10, 90, 90]], max_new_tokens=4, api_name="/ask")
    assert other.predict(api_name="/conversation") == {"model": "tiny", "picture": None, "regions": [], "rounds": []}


def test_wrong_input_comes_back_as_one_line(connect):
    from gradio_client.exceptions import AppError

    client = connect()
    with pytest.raises(AppError, match="There is no image yet"):
        client.predict("What is this?", api_name="/ask")
    client.predict("cat", api_name="/set_example")
    for arguments, message in [
        ({"question": "What is <region1>?"}, "Draw a box for <region1>"),
        ({"question": "What is <region1>?", "boxes": [[1, 1, 9000, 20]]}, "reaches outside the image"),
        ({"question": "What?", "temperature": -1}, "temperature is between 0 and 10"),
        ({"question": "What?", "max_new_tokens": 10**6}, "max_new_tokens is between 1 and 1024"),
    ]:
        with pytest.raises(AppError, match=message):
            client.predict(**arguments, api_name="/ask")


def bomb() -> str:
    """A PNG of some hundred bytes that promises 900 million pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    packed = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")):
        packed += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return base64.b64encode(packed).decode()


class Stranger:
    """Sends requests as they come to mind and keeps what was answered."""

    def __init__(self, url: str) -> None:
        import httpx

        self.http = httpx.Client(base_url=url, timeout=600, limits=httpx.Limits(max_keepalive_connections=0))

    def call(self, name: str, *data, session: str | None = "stranger-000001") -> tuple[int, str]:
        """Calls a named function; returns the status and the text of all that came back."""
        body = {"data": list(data), **({"session_hash": session} if session is not None else {})}
        return self.follow(f"call/{name}", self.post(f"call/{name}", json.dumps(body)))

    def join(self, fn_index: object, *data, **more) -> tuple[int, str]:
        """Calls a function by its number, as the page itself does."""
        body = {"data": list(data), "fn_index": fn_index, "session_hash": "stranger-000002", **more}
        status, text = self.post("queue/join", json.dumps(body))
        if status != 200:
            return status, text
        with self.http.stream("GET", "/gradio_api/queue/data?session_hash=stranger-000002") as answer:
            for line in answer.iter_lines():
                text += line.replace(" ", "") if '"wrong"' in line else line
                if "process_completed" in line or "unexpected_error" in line:
                    break
        return status, text

    def listener(self, event: str) -> int:
        """Returns the number of the function that the page calls on an event of the browser."""
        listeners = self.http.get("/config").json()["dependencies"]
        return next(
            one["id"] for one in listeners if one["backend_fn"] and event in [name for _, name in one["targets"]]
        )

    def follow(self, path: str, joined: tuple[int, str]) -> tuple[int, str]:
        """Reads the events of a call."""
        status, text = joined
        if status != 200:
            return joined
        event = json.loads(text)["event_id"]
        answer = self.http.get(f"/gradio_api/{path}/{event}")
        return answer.status_code, answer.text

    def post(self, path: str, body: object, **headers: str) -> tuple[int, str]:
        """Posts a body as it is."""
        headers = {"content-type": "application/json", **headers}
        answer = self.http.post(f"/gradio_api/{path}", content=body, headers=headers)
        return answer.status_code, answer.text

    def get(self, path: str) -> tuple[int, str]:
        """Gets a path, written as it is."""
        answer = self.http.get(path)
        return answer.status_code, answer.text


FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
ADDRESS = {"path": "http://127.0.0.1:9/x.png", "url": "http://127.0.0.1:9/", "meta": {"_type": "gradio.FileData"}}
ESCAPED = '{"data": [{"p\\u0061th": "/etc/passwd", "m\\u0065ta": {"_type": "gradio.F\\u0069leData"}}]}'
DEEP = '{"data": ' + "[" * 100_000 + "]" * 100_000 + "}"
NESTED = json.dumps({"data": [json.loads("[" * 60 + "]" * 60)], "session_hash": "stranger-000001"})

REFUSED = {
    "a file sent to the upload route": lambda s: s.post(
        "upload", b"--x\r\n", **{"content-type": "multipart/form-data; boundary=x"}
    ),
    "a file read by its path": lambda s: s.get("/gradio_api/file=/etc/passwd"),
    "a file read by a path that climbs": lambda s: s.get("/gradio_api/file=..%2f..%2f..%2fetc%2fpasswd"),
    "an address read through the server": lambda s: s.get("/gradio_api/file=http://127.0.0.1:9/"),
    "an address read through the proxy": lambda s: s.get("/gradio_api/proxy=http://169.254.169.254/latest/meta-data"),
    "a static file by a path that climbs": lambda s: s.get("/static/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd"),
    "a stored page by a path that climbs": lambda s: s.get("/?deep_link=..%2f..%2fetc"),
    "a path in the place of an image": lambda s: s.call("set_image", "/etc/passwd"),
    "an address in the place of an image": lambda s: s.call("set_image", "http://127.0.0.1:9/x.png"),
    "a file record with a path": lambda s: s.call("set_image", FILE),
    "a file record with an address": lambda s: s.call("set_image", ADDRESS),
    "a file record deep in a value": lambda s: s.call("ask", "What?", [[FILE]]),
    "a file record behind escapes": lambda s: s.post("call/set_image", ESCAPED),
    "a decompression bomb": lambda s: s.call("set_image", bomb()),
    "an image over the limit of pixels": lambda s: s.call("set_image", noise(0, (3000, 2000))),
    "an image over the limit of bytes": lambda s: s.call("set_image", "A" * 2_900_000),
    "a body over the limit": lambda s: s.post("call/set_image", b'{"data": ["' + b"A" * 4_000_000 + b'"]}'),
    "a body over the limit that does not say its length": lambda s: s.post(
        "call/set_image", (b"A" * 2**16 for _ in range(64))
    ),
    "a body that is not JSON": lambda s: s.post("call/ask", b"\xff\xfe{"),
    "a body nested so deep that a parser gives up": lambda s: s.post("call/ask", DEEP),
    "a body nested deeper than any of ours": lambda s: s.post("call/ask", NESTED),
    "an example by a path": lambda s: s.call("set_example", "../astronaut.png"),
    "an image that is a program": lambda s: s.call("set_image", base64.b64encode(b"#!/bin/sh\nid\n" * 9).decode()),
    "an image for Ghostscript": lambda s: s.call("set_image", base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n").decode()),
    "too few values": lambda s: s.call("ask"),
    "values of the wrong types": lambda s: s.call("ask", {"a": 1}, "boxes", [], {}, "seed"),
    "a question of a million letters": lambda s: s.call("ask", "x" * 1_000_000),
    "boxes without sense": lambda s: s.call("ask", "What is <region1>?", [[None, "a", 1e400, {}]]),
    "more boxes than anybody draws": lambda s: s.call("ask", "What is <region1>?", [[0, 0, 9, 9]] * 20_000),
    "a mention of a region far away": lambda s: s.call("ask", "What is <region99999999999999999999>?"),
    "the model's own tokens": lambda s: s.call("ask", "<im_patch><im_start><image><image>"),
    "numbers out of range": lambda s: s.call("ask", "What?", [], 1e300, -5, 2**70),
    "no number as temperature": lambda s: s.post("call/ask", '{"data": ["What?", [], NaN, 5, 1]}'),
    "a session of no name": lambda s: s.call("conversation", session=""),
    "a session whose name is a path": lambda s: s.call("conversation", session="../" * 100),
    "a function that there is not": lambda s: s.call("shutdown"),
    "a function of a number that there is not": lambda s: s.join(10**6),
    "a function of a number below zero": lambda s: s.join(-1),
    "the page's own function with nonsense": lambda s: s.join(
        s.listener("upload"), 1, 2, 3, event_data=["no", {"record": []}]
    ),
    "a server function of a component": lambda s: s.post(
        "component_server", '{"data": 1, "component_id": 1, "session_hash": "x", "fn_name": "__init__"}'
    ),
    "an editor that writes files": lambda s: s.post("vibe-edit", '{"prompt": "rm"}'),
}


@pytest.fixture(scope="module")
def stranger(running):
    """One stranger with an image of his own, so that questions reach the model's side."""
    one = Stranger(running.url)
    assert '"width"' in one.call("set_image", noise(5))[1]
    yield one
    one.http.close()


@pytest.mark.parametrize("kind", REFUSED)
def test_a_hostile_request_tells_nothing_and_does_no_harm(stranger, running, kind):
    status, text = REFUSED[kind](stranger)

    # The page's own functions answer with a word on the page, the interface's with an error.
    assert status >= 400 or "error" in text or '"wrong":true' in text, (status, text[:300])
    for word in ("Traceback", "site-packages", "root:x:", 'File "'):
        assert word not in text, text[:500]
    status, text = stranger.call("ask", "What is <region1>?", [[5, 5, 40, 30]], 0, 2, None)
    assert status == 200 and "event: complete" in text
    stranger.call("start_over")


def test_there_are_at_least_25_kinds():
    assert len(REFUSED) >= 25


def test_nothing_of_a_stranger_is_written_to_the_disk(running, stranger, tmp_path):
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.gettempdir()) / "gradio"
    before = set(folder.rglob("*")) if folder.exists() else set()
    stranger.call("set_image", noise(6))
    stranger.call("ask", "What is <region1>?", [[5, 5, 40, 30]], 0, 2, None)
    stranger.call("conversation_image")
    assert (set(folder.rglob("*")) if folder.exists() else set()) == before


def test_a_question_that_does_not_fit_any_more_goes_back_where_it_was_typed(running, tiny_chat):
    from types import SimpleNamespace

    from tiny import tiny_tokenizer

    from gpt4roi import GPT4RoIProcessor
    from gpt4roi.demo.handlers import Handlers
    from gpt4roi.demo.session import Session
    from gpt4roi.demo.store import SessionStore
    from gpt4roi.generation.batching import BatchingWorker
    from gpt4roi.processing.uploads import Limits

    sizes = {name: getattr(tiny_chat.processor, name) for name in ("image_size", "image_seq_length", "prompt_format")}
    worker = BatchingWorker(tiny_chat.model, GPT4RoIProcessor(tiny_tokenizer(), **sizes, model_max_length=150))
    handlers = Handlers(SessionStore(lambda: Session(worker)), Limits(), "tiny")
    request = SimpleNamespace(session_hash="somebody")
    session = handlers.store.get("somebody")
    session.show(open_upload(noise(1)))
    stage = {"image": session.image_id, "boxes": [], "fixed": 0}
    asked = "What may be seen here, and what else, and what beside it, if there is anything at all? " * 2

    first, *_, last = handlers.ask(asked, stage, 0, 4, None, request)

    assert first[1]["pending"] and first[3] == ""
    assert not last[1]["pending"] and last[3] == asked
    assert "model_max_length is 150" in last[2]["hints"][0]["text"]
    worker.close()


def test_a_clock_that_is_set_back_does_not_make_the_browser_pass_over_what_is_new(worker, monkeypatch):
    from gpt4roi.demo import page_values
    from gpt4roi.demo.session import Session

    session = Session(worker)
    first = page_values.conversation(session)["version"]
    monkeypatch.setattr(page_values.time, "time_ns", lambda: 0)
    assert first < page_values.conversation(session)["version"] < page_values.conversation(session)["version"]


@pytest.fixture
def refused(worker):
    """Presses a button of the page that raises an error; returns the outputs."""
    from types import SimpleNamespace

    from gpt4roi.demo.handlers import Handlers
    from gpt4roi.demo.session import Session
    from gpt4roi.demo.store import SessionStore
    from gpt4roi.processing.uploads import Limits

    def press(name: str, error: Exception) -> tuple:
        class Refusing(Session):
            def refuse(self, *_, **__):
                raise error

            stop = start_over = clear = as_record = boxes_in_stored_image = refuse

        handlers = Handlers(SessionStore(lambda: Refusing(worker)), Limits(), "tiny")
        handlers.store.get("somebody").show(open_upload(noise(1)))
        given = {"stop": ("Half a question", None), "clear_all": ()}.get(name, (None,))
        return getattr(handlers, name)(*given, SimpleNamespace(session_hash="somebody"))

    return press


BUTTONS = {"stop": (6, 2), "start_over": (5, 2), "clear_all": (6, 2), "save_record": (2, 1), "save_image": (2, 1)}
"""How many outputs each has, and which of them are the hints."""


@pytest.mark.parametrize("name", BUTTONS)
def test_an_error_of_a_button_is_a_hint_in_place_and_all_else_stays(refused, name, caplog):
    num_outputs, place = BUTTONS[name]
    for error, said in [
        (InputError("the answer being written does not stop"), "The answer being written does not stop"),
        (KeyError("of the server"), "Something went wrong here; the log of the server says what."),
    ]:
        outputs = refused(name, error)
        assert len(outputs) == num_outputs
        assert [hint["text"] for hint in outputs[place]["hints"]] == [said]
        changes = [update.get("interactive") for update in outputs if "value" not in update and "hints" not in update]
        assert set(changes) <= {None, True} and changes.count(True) == (num_outputs > 2), "only Ask is free again"
    assert "of the server" in caplog.text and "does not stop" not in caplog.text


def test_nobody_comes_in_without_the_password(tiny_chat):
    from gradio_client import Client

    from gpt4roi.demo.server import ServerOptions, serve

    served = serve(tiny_chat, "tiny", ServerOptions(password="open sesame"))
    try:
        guest = Stranger(served.url)
        assert guest.call("conversation")[0] == 401
        assert guest.get("/config")[0] == 401
        assert guest.http.post("/login", data={"username": "a", "password": "wrong"}).status_code == 400
        client = Client(served.url, auth=("anyone", "open sesame"), verbose=False)
        assert client.predict(api_name="/conversation")["picture"] is None
        client.close()
    finally:
        served.close()


def test_by_default_the_page_is_on_this_machine_only(running):
    assert running.url.startswith("http://127.0.0.1:")
    assert running.page.share_url is None


def test_a_port_that_is_taken_is_said_in_one_line(running, tiny_chat):
    from gpt4roi import InputError
    from gpt4roi.demo.server import ServerOptions, serve

    taken = int(running.url.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{taken}"):
        serve(tiny_chat, "tiny", ServerOptions(port=taken))


def test_the_page_is_served_on_an_address_of_the_newer_kind(tiny_chat):
    from gpt4roi.demo.server import ServerOptions, serve

    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    served = serve(tiny_chat, "tiny", ServerOptions(host="::1"))
    try:
        assert served.url.startswith("http://[::1]:")
        assert Stranger(served.url).call("conversation")[0] == 200
    finally:
        served.close()


@pytest.mark.parametrize("exempt", [None, "example.org"])
def test_the_page_is_served_also_where_a_proxy_is_set_for_all_addresses(tiny_chat, monkeypatch, exempt):
    from gpt4roi.demo.server import serve

    with monkeypatch.context() as patch:
        patch.setenv("http_proxy", "http://127.0.0.1:9")
        patch.delenv("no_proxy")
        if exempt:
            patch.setenv("no_proxy", exempt)
        served = serve(tiny_chat, "tiny")
        after = os.environ.get("no_proxy")
    try:
        assert Stranger(served.url).call("conversation")[0] == 200
        assert after == exempt
    finally:
        served.close()
