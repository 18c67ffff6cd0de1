"""An ML backend of Label Studio: writes a text at every box, by a server of `gpt4roi serve`.

    gpt4roi serve --model exp/quickstart/stage2
    python examples/label_studio/backend.py --server http://127.0.0.1:8000/v1 --label-studio http://127.0.0.1:8080

Add http://127.0.0.1:9090 under Settings / Model of a project whose labelling interface is labeling.xml. A task gets a
text for each of its boxes: those drawn just now (interactive), else those of its annotations or predictions, else
`boxes` in its data ([x1, y1, x2, y2] in pixels). It speaks the protocol of Label Studio's own ML SDK (/health, /setup,
/predict, /webhook) and needs the standard library alone.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
import math
import os
import re
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urljoin
from xml.etree import ElementTree

logger = logging.getLogger("label_studio_backend")

RECTANGLES = ("rectangle", "rectanglelabels")
MAX_BODY = 64 * 2**20
TIMEOUT_SECONDS = 300


class RefusedError(ValueError):
    """What is wrong with a request, in one line for Label Studio's log."""


@dataclass(frozen=True)
class Interface:
    """Names of the tags of a labelling interface: the image and the field of a task it shows, its boxes, the text."""

    image: str
    field: str
    box: str
    box_type: str
    text: str

    @classmethod
    def parse(cls, config: str) -> Interface:
        """Reads a labelling interface, XML."""
        if "<!" in config.replace("<!--", ""):
            raise RefusedError("the labelling interface declares a document type; leave it out")
        try:
            tags = list(ElementTree.fromstring(config).iter())
        except ElementTree.ParseError as error:
            raise RefusedError(f"the labelling interface is no XML: {error}") from None
        image = next((tag for tag in tags if tag.tag == "Image"), None)
        box = next((tag for tag in tags if tag.tag.lower() in RECTANGLES), None)
        text = next((tag for tag in tags if tag.tag == "TextArea" and tag.get("perRegion") == "true"), None)
        if image is None or box is None or text is None:
            raise RefusedError(
                "the labelling interface needs Image, Rectangle (or RectangleLabels), and TextArea with "
                'perRegion="true", as in labeling.xml'
            )
        names = (tag.get("name", "") for tag in (image, box, text))
        shown, drawn, written = names
        return cls(shown, image.get("value", "").lstrip("$"), drawn, box.tag.lower(), written)


class Backend:
    """Predictions for tasks of Label Studio."""

    def __init__(
        self, server: str, label_studio: str, question: str | None = None, key: str = "", token: str = ""
    ) -> None:
        """server: Address of the API, with /v1. key, token: for the API, and for images of Label Studio."""
        self.server, self.label_studio, self.question = server.rstrip("/"), label_studio, question
        self._bearer, self._token = f"Bearer {key}" if key else "", token
        self.version = "gpt4roi"

    def setup(self, body: dict) -> dict:
        """Label Studio connects a project: its interface must fit; the answer is the model's version."""
        Interface.parse(str(body.get("schema") or body.get("label_config") or ""))
        with self._open(f"{self.server}/models", self._bearer) as response:
            self.version = json.load(response)["data"][0]["id"]
        return {"model_version": self.version}

    def predict(self, body: dict) -> dict:
        """Returns a prediction for each task."""
        interface = Interface.parse(str(body.get("label_config") or ""))
        drawn = ((body.get("params") or {}).get("context") or {}).get("result") or []
        return {"results": [self._task(task, interface, drawn) for task in body.get("tasks") or []]}

    def _task(self, task: dict, interface: Interface, drawn: list[dict]) -> dict:
        image = (task.get("data") or {}).get(interface.field)
        regions = list(_regions(task, drawn, interface))
        empty = {"result": [], "score": 0.0, "model_version": self.version}
        if not image or not regions:
            return empty
        asked = {"image": self._image(str(image)), "boxes": [_pixels(region) for region in regions], "max_tokens": 64}
        found = self._ask({**asked, "question": self.question} if self.question else asked)
        size = found["image"]["width"], found["image"]["height"]
        result, scores = [], []
        for region, told in zip(regions, found["regions"], strict=True):
            answer = told["answers"][0]
            scores.append(answer["confidence"])
            value = region.get("value") or _percentages(region["pixels"], *size)
            place = {name: value.get(name, 0) for name in ("x", "y", "width", "height", "rotation")}
            common = {
                "id": region["id"],
                "to_name": interface.image,
                "original_width": size[0],
                "original_height": size[1],
                "image_rotation": 0,
                "score": answer["confidence"],
            }
            result.append({**common, "from_name": interface.box, "type": interface.box_type, "value": value})
            written = {**place, "text": [answer["answer"]]}
            result.append({**common, "from_name": interface.text, "type": "textarea", "value": written})
        return {**empty, "result": result, "score": sum(scores) / len(scores)}

    def _ask(self, request: dict) -> dict:
        with self._open(f"{self.server}/regions", self._bearer, json.dumps(request).encode()) as response:
            return json.load(response)

    def _image(self, address: str) -> str:
        """Returns an image's file as base64: from Label Studio itself, or from a data URL; from nowhere else."""
        if address.startswith("data:"):
            return address
        url = urljoin(self.label_studio, address)
        if not url.startswith(self.label_studio.rstrip("/") + "/"):
            raise RefusedError(f"{address:.80}: images are fetched from {self.label_studio} only")
        with self._open(url, f"Token {self._token}" if self._token else "") as response:
            return base64.b64encode(response.read()).decode()

    @staticmethod
    def _open(url: str, authorization: str, body: bytes | None = None):
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        if authorization:
            request.add_unredirected_header(
                "authorization", authorization
            )  # a storage that is redirected to has its own
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise RefusedError(f"{url:.80} answers {error.code}: {said:.300}") from None
        except OSError as error:
            raise RefusedError(f"{url:.80} cannot be reached: {error}") from None


def _regions(task: dict, drawn: list[dict], interface: Interface) -> Iterator[dict]:
    """Yields boxes as Label Studio writes them: what was drawn, else what the task has, else those of its data."""
    given = [
        drawn,
        *(one.get("result") or [] for name in ("annotations", "predictions") for one in task.get(name) or []),
    ]
    for results in given:
        boxes = {one.get("id"): one for one in results if one.get("type") in RECTANGLES}
        if boxes:
            yield from ({**one, "id": number or uuid.uuid4().hex[:10]} for number, one in boxes.items())
            return
    for box in (task.get("data") or {}).get("boxes") or []:
        yield {"id": uuid.uuid4().hex[:10], "pixels": box}


def _pixels(region: dict) -> list[float]:
    """Returns the box around a region, xyxy in pixels; Label Studio's are in percent, and may be rotated."""
    if "pixels" in region:
        return [float(value) for value in region["pixels"]]
    size = width, height = region["original_width"], region["original_height"]
    value = region["value"]
    parts = zip(("x", "y", "width", "height"), (*size, *size), strict=True)
    x, y, w, h = (float(value[name]) * side / 100 for name, side in parts)
    angle = math.radians(value.get("rotation") or 0)  # clockwise, about the box's top left corner
    cosine, sine = math.cos(angle), math.sin(angle)
    corners = [(x + a * cosine - b * sine, y + a * sine + b * cosine) for a in (0, w) for b in (0, h)]
    across, down = zip(*corners, strict=True)
    return [max(min(across), 0), max(min(down), 0), min(max(across), width), min(max(down), height)]


def _percentages(box: list[float], width: int, height: int) -> dict[str, float]:
    x1, y1, x2, y2 = box
    place = {"x": x1 / width, "y": y1 / height, "width": (x2 - x1) / width, "height": (y2 - y1) / height}
    return {name: 100 * share for name, share in place.items()} | {"rotation": 0}


def make_server(backend: Backend, host: str, port: int) -> ThreadingHTTPServer:
    """Returns the HTTP server; `serve_forever` runs it."""
    routes = {"/setup": backend.setup, "/predict": backend.predict, "/webhook": lambda _: {"status": "ok"}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path in ("/", "/health")
            self._answer(200 if known else 404, {"status": "UP", "model_class": "GPT4RoI"} if known else {})

        def do_POST(self) -> None:
            length = self.headers.get("content-length", "")
            route = routes.get(re.sub(r"[?#].*", "", self.path))
            if route is None or not length.isdigit() or int(length) > MAX_BODY:
                self._answer(404 if route is None else 413, {})
                return
            try:
                body = json.loads(self.rfile.read(int(length)))
                if not isinstance(body, dict):
                    raise RefusedError("the body is no JSON object")
                self._answer(200, route(body))
            except (RefusedError, ValueError, KeyError, TypeError, AttributeError) as error:
                logger.warning("%s: %s", self.path, error)
                self._answer(400, {"error": f"{error}"})

        def _answer(self, status: int, content: dict) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            logger.info(format, *args)

    return ThreadingHTTPServer((host, port), Handler)


def main() -> None:
    """Serves until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:8000/v1", help="the API of gpt4roi serve")
    parser.add_argument("--label-studio", default="http://127.0.0.1:8080", help="images are fetched from here only")
    parser.add_argument("--question", help="about <region1> (default: the model's own)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9090)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Secrets come from the environment, as Label Studio's own backends take them: arguments are seen by every user.
    keys = (os.environ.get("OPENAI_API_KEY", ""), os.environ.get("LABEL_STUDIO_API_KEY", ""))
    backend = Backend(args.server, args.label_studio, args.question, *keys)
    server = make_server(backend, args.host, args.port)
    logger.info("http://%s:%d", *server.server_address[:2])
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.shutdown()


if __name__ == "__main__":
    main()
