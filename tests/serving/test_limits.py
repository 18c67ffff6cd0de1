"""Hostile requests, overload, fetching of images, metrics, and an end that completes what was begun."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import subprocess
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from api_client import KEY, as_data_url, post, question
from PIL import Image

from gpt4roi.errors import InputError
from gpt4roi.serving.images import ImageFetcher

WHAT = "What is <region1>?"
BOX = [5, 4, 40, 30]


def ask(api, url: str, **change) -> tuple[int, dict, dict]:
    body = {"model": "tiny", "messages": [question(WHAT, url)], "boxes": [BOX], "max_tokens": 3, **change}
    return post(api, "/v1/chat/completions", body)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/etc/passwd", "no image that can be read"),  # as base64, which it happens to be
        ("file:///etc/passwd", "the image is not base64 text"),
        ("http://127.0.0.1:1/x.png", "this server fetches no image from there; send it as data:image/png;base64"),
        ("https://169.254.169.254/latest/meta-data", "this server fetches no image from there"),
        ("HTTPS://example.com/x.png", "this server fetches no image from there"),
        ("https://2130706433/x.png", "this server fetches no image from there"),
        ("https://[::ffff:127.0.0.1]/x.png", "this server fetches no image from there"),
        ("https://[::1/x.png", "this is no address: Invalid IPv6 URL"),
        ("https://localhost:port/x.png", "this is no address: Port could not be cast to integer"),
        ("data:image/png;base64,AAAA", "no image that can be read"),
        ("data:image/svg+xml;base64,PHN2Zz48L3N2Zz4=", "SVG, which cannot be read here"),
        ("data:text/plain;base64,aGVsbG8=", "not base64 text"),
        ("", "there is no image in the request"),
    ],
)
def test_nothing_of_a_request_is_opened_as_a_path_or_fetched(api, url, message):
    status, found, _ = ask(api, url)
    assert status == 400 and message in found["error"]["message"]


def test_images_are_bounded_in_bytes_and_pixels(api):
    wide = as_data_url(Image.new("RGB", (2000, 1000)))
    assert ask(api, wide)[1]["error"]["message"].startswith("the image has 2000 x 1000 pixels; at most 1,000,000")
    assert "at most 1 MB are taken" in ask(api, "data:image/png;base64," + "A" * 1_500_000)[1]["error"]["message"]
    connection = http.client.HTTPConnection(api.url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("authorization", f"Bearer {KEY}")
    connection.putheader("content-length", "3000000")
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413 and response.headers["connection"] == "close"
    assert json.loads(response.read())["error"]["code"] == "request_too_large"


def test_few_images_are_decoded_at_once_however_many_come(api, url, monkeypatch):
    opened, most, now, lock = api.app.images.open, [0], [0], threading.Lock()

    def slow(data: str):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        return opened(data)

    monkeypatch.setattr(api.app.images, "open", slow)
    with ThreadPoolExecutor(12) as pool:
        statuses = [status for status, _, _ in pool.map(lambda _: ask(api, url, max_tokens=1), range(12))]
    assert statuses == [200] * 12 and most == [4]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"{}", b"[" * 100_000, b'{"messages": NaN}', b"\xff\xfe", b'{"messages": []}',
     b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
     b'{"messages": [{"role": "user", "content": "a"}], "seed": 1e400}',
     json.dumps({"messages": [{"role": "user", "content": "x" * 100_001}]}).encode(),
     json.dumps({"messages": [{"role": "user", "content": "<region" + "9" * 5000 + ">"}]}).encode(),
     json.dumps({"messages": [{"role": "user", "content": "<image> <im_patch> <bbox>"}]}).encode()],
)  # fmt: skip
def test_a_body_of_another_form_is_a_bad_request(api, body):
    status, found, _ = post(api, "/v1/chat/completions", body)
    assert status == 400 and found["error"]["type"] == "invalid_request_error"
    assert "\n" not in found["error"]["message"] and len(found["error"]["message"]) < 500


def test_a_request_that_does_not_arrive_is_refused_and_its_connection_closed(api, monkeypatch):
    monkeypatch.setattr("gpt4roi.serving.app.BODY_SECONDS", 0.2)
    connection = http.client.HTTPConnection(api.url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/v1/chat/completions")
    for header in ({"Content-Length": "1000", "Authorization": f"Bearer {KEY}"}).items():
        connection.putheader(*header)
    connection.endheaders(b'{"model":')
    response = connection.getresponse()
    message = json.loads(response.read())["error"]["message"]
    assert (response.status, message) == (408, "the request did not arrive within 0.2 s")
    assert response.headers["connection"] == "close"


def test_paths_and_methods_that_are_not_there_are_errors_in_the_same_form(api):
    assert post(api, "/v1/embeddings", {})[1]["error"]["message"] == "there is nothing at POST /v1/embeddings"
    status, found, _ = post(api, "/health", {})
    assert status == 405 and found["error"]["type"] == "invalid_request_error"


def test_too_many_questions_are_refused_with_the_time_to_come_back(api, url, monkeypatch):
    monkeypatch.setattr(api.worker, "max_waiting", 0)
    status, found, headers = ask(api, url)
    assert status == 429 and found["error"]["type"] == "rate_limit_error" and found["error"]["code"] == "overloaded"
    assert headers["retry-after"] == "2"


def test_a_defect_says_nothing_about_the_server(api, url, monkeypatch, caplog):
    monkeypatch.setattr("gpt4roi.serving.requests.validate_regions", lambda *_, **__: 1 // 0)
    status, found, _ = ask(api, url)
    assert status == 500 and found["error"]["message"] == "something went wrong; the log of the server says what"
    assert "ZeroDivisionError" in caplog.text


def test_health_and_metrics_are_open_and_count(api, url):
    def metrics() -> dict[str, float]:
        text = urllib.request.urlopen(f"{api.url}/metrics", timeout=30).read().decode()
        rows = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in rows}

    before = metrics()
    assert ask(api, url)[0] == 200
    after = metrics()
    asked = 'gpt4roi_requests_total{path="/v1/chat/completions",status="200"}'
    assert after[asked] == before.get(asked, 0) + 1
    assert after["gpt4roi_generated_tokens"] == before["gpt4roi_generated_tokens"] + 3
    assert after["gpt4roi_num_running"] == 0
    assert json.load(urllib.request.urlopen(f"{api.url}/health", timeout=30)) == {"status": "ok"}


@pytest.mark.heavy
def test_a_server_that_ends_completes_the_answers_that_it_has_begun(chat, url):
    from gpt4roi.serving.server import RunningApi, ServingOptions

    running = RunningApi(chat, "tiny", ServingOptions(port=0))
    serving = running.start()
    found: list = []
    asking = threading.Thread(target=lambda: found.append(ask(running, url, max_tokens=150)))
    asking.start()
    deadline = time.monotonic() + 60
    while not running.worker.num_running and time.monotonic() < deadline:
        time.sleep(0.01)
    running.close()
    serving.join(60)
    asking.join(60)

    assert not serving.is_alive() and not running.worker.is_alive
    ((status, answer, _),) = found
    assert status == 200 and answer["usage"]["completion_tokens"] == 150
    with pytest.raises(OSError):
        http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=5).request("GET", "/health")


def test_a_port_that_is_taken_is_said_in_one_line(api, chat):
    from gpt4roi.serving.server import RunningApi, ServingOptions

    port = int(api.url.rsplit(":", 1)[1])
    with pytest.raises(InputError, match=rf"cannot listen on 127.0.0.1:{port}: .*; give another --port"):
        RunningApi(chat, "tiny", ServingOptions(port=port))


@pytest.fixture(scope="module")
def image_host(tmp_path_factory, picture):
    """A host of images over https, and what trusts its certificate."""
    folder = tmp_path_factory.mktemp("host")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", folder / "key.pem"]
    command += ["-out", folder / "cert.pem", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)
    picture.save(folder / "image.png")
    content = (folder / "image.png").read_bytes()

    class Host(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = {"/image.png": 200, "/large.png": 200, "/slow.png": 200, "/moved.png": 302}.get(self.path, 404)
            self.send_response(status)
            if status == 302:
                self.send_header("location", "https://169.254.169.254/")
            self.end_headers()
            if self.path == "/slow.png":  # each byte in time
                with contextlib.suppress(OSError):
                    for _ in range(100):
                        self.wfile.write(b".")
                        time.sleep(0.1)
                return
            self.wfile.write(content if self.path == "/image.png" else bytes(5000))

        def log_message(self, *_args) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    trust = ssl.create_default_context(cafile=str(Path(folder, "cert.pem")))
    yield f"https://localhost:{server.server_port}", trust
    server.shutdown()


def test_an_allowed_host_is_fetched_from_within_its_limits(image_host, picture):
    root, trust = image_host
    fetcher = ImageFetcher(["localhost"], 4900 + 5000, trust, is_public=lambda _: True)
    assert as_data_url(picture).endswith(fetcher.fetch(f"{root}/image.png"))
    for path, message in (("/moved.png", "answers 302; redirects are not followed"), ("/none.png", "answers 404")):
        with pytest.raises(InputError, match=message):
            fetcher.fetch(root + path)
    with pytest.raises(InputError, match="has more than 100 bytes"):
        ImageFetcher(["localhost"], 100, trust, is_public=lambda _: True).fetch(f"{root}/large.png")
    with pytest.raises(InputError, match=r"could not be fetched: .*certificate"):
        ImageFetcher(["localhost"], is_public=lambda _: True).fetch(f"{root}/image.png")


@pytest.mark.heavy
def test_a_host_that_sends_byte_after_byte_is_left_when_the_time_is_over(image_host, monkeypatch):
    root, trust = image_host
    monkeypatch.setattr("gpt4roi.serving.images.FETCH_SECONDS", 0.5)
    with pytest.raises(InputError, match=r"slow\.png: the image could not be fetched: it took more than 0\.5 seconds"):
        ImageFetcher(["localhost"], context=trust, is_public=lambda _: True).fetch(f"{root}/slow.png")


PRIVATE = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "224.0.0.1", "::1", "fe80::1", "ff02::1", "fec0::1"]
HOLD_PRIVATE = ["::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"]


@pytest.mark.parametrize("address", [*PRIVATE, *HOLD_PRIVATE])
def test_an_allowed_name_at_a_private_address_is_not_connected_to(address, monkeypatch):
    found = [(0, 0, 0, "", (one, 443)) for one in ("8.8.8.8", "2001:4860:4860::8888", address)]
    monkeypatch.setattr("gpt4roi.serving.images.socket.getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr("gpt4roi.serving.images.socket.create_connection", lambda *_: pytest.fail("connected"))
    with pytest.raises(InputError, match=r"example\.com is at no public address"):
        ImageFetcher(["example.com"]).fetch("https://example.com/x.png")


@pytest.mark.parametrize(
    "url",
    ["{root}/image.png", "http://localhost/x.png", "https://user@localhost/x.png", "https://localhost.example.com/x"],
)
def test_private_addresses_and_other_hosts_are_never_fetched_from(image_host, url):
    root, trust = image_host
    with pytest.raises(InputError, match=r"is at no public address|fetches no image from there"):
        ImageFetcher(["localhost"], context=trust).fetch(url.format(root=root))


def test_an_image_of_an_allowed_host_is_answered_about(image_host, chat, picture):
    from gpt4roi.serving.server import RunningApi, ServingOptions

    root, trust = image_host
    options = ServingOptions(port=0, image_hosts=["localhost"])
    running = RunningApi(chat, "tiny", options, context=trust, is_public=lambda _: True)
    serving = running.start()
    _, fetched, _ = ask(running, f"{root}/image.png")
    _, sent, _ = ask(running, as_data_url(picture))
    running.close()
    serving.join(60)
    assert fetched["choices"] == sent["choices"]


def test_the_key_is_asked_for_before_anything_is_read(api):
    assert post(api, "/v1/regions", b"{", key="wrong")[0] == 401
    assert post(api, "/v1/regions", b"{", key=KEY)[0] == 400
