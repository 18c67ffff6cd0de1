"""What the tests send to the API, and how."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request

from PIL import Image

KEY = "sk-tests"


def as_data_url(image: Image.Image, form: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


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
