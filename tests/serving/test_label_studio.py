"""The ML backend of Label Studio in examples/, between a live API and a Label Studio that hands out an image."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from api_client import KEY

FOLDER = Path(__file__).parents[2] / "examples" / "label_studio"
INTERFACE = (FOLDER / "labeling.xml").read_text()
BOXES = [[5, 4, 40, 30], [20, 10, 55, 38]]


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("label_studio_backend", FOLDER / "backend.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for its names
    spec.loader.exec_module(module)
    return module


def serving(server):
    """Serves in a thread; yields the address."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(30)


@pytest.fixture(scope="module")
def label_studio(picture):
    """Hands out an image to who has the token."""
    file = io.BytesIO()
    picture.save(file, "PNG")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers["authorization"] == "Token ls" and self.path == "/data/upload/1/photo.png"
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(file.getvalue() if allowed else b"no")

        def log_message(self, *_) -> None:
            pass

    yield from serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler))


@pytest.fixture(scope="module")
def backend(program, api, label_studio):
    made = program.Backend(f"{api.url}/v1", label_studio, key=KEY, token="ls")
    yield from serving(program.make_server(made, "127.0.0.1", 0))


def call(address: str, path: str, body: dict | None = None) -> tuple[int, dict]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}{path}", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def rectangle(number: str, box, **more) -> dict:
    """A box of the image of 60 x 40 pixels as Label Studio writes it."""
    x1, y1, x2, y2 = box
    value = {"x": x1 / 0.6, "y": y1 / 0.4, "width": (x2 - x1) / 0.6, "height": (y2 - y1) / 0.4, "rotation": 0, **more}
    names = {"id": number, "from_name": "box", "to_name": "image", "type": "rectangle", "value": value}
    return {**names, "original_width": 60, "original_height": 40, "image_rotation": 0}


def predict(backend, *tasks, context=None) -> list[dict]:
    body = {"tasks": tasks, "label_config": INTERFACE, "project": "1.17", "params": {"context": context}}
    status, found = call(backend, "/predict", body)
    assert status == 200, found
    return found["results"]


def texts(prediction) -> dict[str, str]:
    return {one["id"]: one["value"]["text"][0] for one in prediction["result"] if one["type"] == "textarea"}


IMAGE = {"image": "/data/upload/1/photo.png"}


def test_the_backend_is_up_and_takes_the_interface_that_it_comes_with(backend):
    assert call(backend, "/health") == (200, {"status": "UP", "model_class": "GPT4RoI"})
    assert call(backend, "/setup", {"project": "1.17", "schema": INTERFACE}) == (200, {"model_version": "tiny"})
    assert call(backend, "/webhook", {"action": "PROJECT_UPDATED"}) == (200, {"status": "ok"})


@pytest.mark.heavy
def test_boxes_of_annotations_of_predictions_and_of_the_data_get_the_model_s_text(backend, chat, picture):
    boxes = [rectangle("a", BOXES[0]), rectangle("b", BOXES[1])]
    tasks = [
        {"id": 1, "data": IMAGE, "annotations": [{"result": boxes}]},
        {"id": 2, "data": IMAGE, "predictions": [{"result": boxes[::-1]}]},
        {"id": 3, "data": {**IMAGE, "boxes": BOXES}},
        {"id": 4, "data": IMAGE},
    ]
    annotated, predicted, listed, without = predict(backend, *tasks)
    expected = chat.describe(picture, BOXES, max_new_tokens=64, scores=True)
    first, second = (one.text for one in expected)
    assert texts(annotated) == {"a": first, "b": second} and texts(predicted) == {"b": second, "a": first}
    assert list(texts(listed).values()) == [first, second]
    assert without["result"] == []
    assert annotated["score"] == pytest.approx(sum(one.score for one in expected) / 2, abs=1e-3)
    drawn = [one for one in listed["result"] if one["type"] == "rectangle"]
    assert drawn[0]["value"] == pytest.approx(boxes[0]["value"])
    assert {one["from_name"] for one in listed["result"]} == {"box", "text"}


@pytest.mark.heavy
def test_a_box_drawn_just_now_is_the_only_one_that_is_described(backend, chat, picture):
    turned = rectangle("c", [40, 4, 66, 39], rotation=90)  # about its corner: 35 to the left, 26 down
    task = {"id": 1, "data": IMAGE, "annotations": [{"result": [rectangle("a", BOXES[0])]}]}
    (found,) = predict(backend, task, context={"result": [turned, {"id": "d", "type": "textarea"}]})
    assert texts(found) == {"c": chat.describe(picture, [[5, 4, 40, 30]], max_new_tokens=64)[0]}


def test_the_sdk_of_label_studio_takes_a_prediction(backend):
    objects = pytest.importorskip("label_studio_sdk.label_interface.objects", reason="pip install label-studio-sdk")
    from label_studio_sdk.label_interface import LabelInterface

    (found,) = predict(backend, {"id": 1, "data": {**IMAGE, "boxes": BOXES}})
    prediction = objects.PredictionValue(**found)
    assert len(prediction.result) == 4
    assert LabelInterface(INTERFACE).validate_prediction(found, return_errors=True) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"label_config": "<View>"}, "is no XML"),
        ({"label_config": "<!DOCTYPE a [<!ENTITY b 'c'>]><View/>"}, "declares a document type"),
        ({"label_config": "<View/>"}, "needs Image, Rectangle (or RectangleLabels), and TextArea"),
        (
            {"tasks": [{"data": {"image": "http://elsewhere/a.png", "boxes": BOXES}}]},
            "are fetched from http://127.0.0.",
        ),
        ({"tasks": [{"data": {"image": "/etc/passwd", "boxes": BOXES}}]}, "answers 401"),
        ({"tasks": [{"data": {**IMAGE, "boxes": [[5, 4, 400, 30]]}}]}, "box 1"),
    ],
)
def test_a_fault_is_said_in_one_line(backend, body, message):
    status, found = call(backend, "/predict", {"label_config": INTERFACE, "tasks": [], **body})
    assert status == 400 and message in found["error"]
