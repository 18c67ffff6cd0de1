"""HTTP API of the page: the same actions under named endpoints for `gradio_client`.

Each client has a session of its own. Wrong input comes back as gradio_client's AppError with one line; nothing else
about the server is disclosed. docs/demo.md shows every call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import gradio as gr

from gpt4roi.demo.examples import open_example
from gpt4roi.demo.export import conversation_image
from gpt4roi.demo.handlers import Handlers, find_session, sampling_of
from gpt4roi.demo.session import NO_IMAGE, Session
from gpt4roi.errors import InputError
from gpt4roi.processing.uploads import Upload, open_upload
from gpt4roi.report.drawing import jpeg_data_url

logger = logging.getLogger(__name__)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns wrong input into one line for the client, and a defect into a line without details."""
    try:
        yield
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except (gr.Error, GeneratorExit):
        raise
    except Exception:
        logger.exception("a request to the interface failed")
        raise gr.Error("something went wrong; the log of the server says what", print_exception=False) from None


class Api:
    """The functions behind the endpoints; gr.api reads their types and docstrings for the page's own documentation."""

    def __init__(self, handlers: Handlers) -> None:
        self.handlers = handlers

    def _session(self, request: gr.Request) -> Session:
        return find_session(self.handlers.store, request)

    def set_image(self, image: str, request: gr.Request) -> dict:
        """Shows an image, given as base64 text, and begins a new conversation. Returns its width and height."""
        with one_line_errors():
            return self._show(request, lambda: open_upload(image, self.handlers.limits))

    def set_picture(self, picture: str, request: gr.Request) -> dict:
        """Old name of set_image."""
        return self.set_image(picture, request)

    def set_example(self, name: str, request: gr.Request) -> dict:
        """Shows one of the page's examples by name, and begins a new conversation. Returns its width and height."""
        with one_line_errors():
            return self._show(request, lambda: open_example(self.handlers.examples, name)[0])

    def _show(self, request: gr.Request, open_it: Callable[[], Upload]) -> dict:
        session = self._session(request)
        session.show(open_it())
        width, height = session.size
        return {"width": width, "height": height}

    def ask(
        self,
        question: str,
        request: gr.Request,
        boxes: list = [],  # noqa: B006 - gr.api shows it as the default
        temperature: float = 0,
        max_new_tokens: int = 256,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Asks the next question and streams the answer. boxes: the new ones, [x1, y1, x2, y2] in pixels.

        Of a model that reads masks also `{"box": [x1, y1, x2, y2], "mask": {"size": [height, width], "counts": …}}`, or
        polygons [[x1, y1, x2, y2, …], …] in pixels as the mask.
        """
        with one_line_errors():
            session = self._session(request)
            yield from session.ask(question, boxes, sampling_of(temperature, max_new_tokens, seed), force=True)

    def stop(self, request: gr.Request) -> dict:
        """Stops the answer being written; the conversation stays as it was. Returns the conversation."""
        with one_line_errors():
            session = self._session(request)
            session.stop(wait_seconds=10)
            return session.as_record()

    def start_over(self, request: gr.Request) -> dict:
        """Forgets boxes and conversation and keeps the image. Returns the conversation."""
        with one_line_errors():
            session = self._session(request)
            session.start_over()
            return session.as_record()

    def clear_all(self, request: gr.Request) -> dict:
        """Forgets everything, the image too. Returns the conversation."""
        with one_line_errors():
            session = self._session(request)
            session.clear()
            return session.as_record()

    def conversation(self, request: gr.Request) -> dict:
        """Returns the conversation: the image's size, regions and rounds."""
        with one_line_errors():
            return {"model": self.handlers.model_name, **self._session(request).as_record()}

    def conversation_image(self, request: gr.Request) -> str:
        """Returns the conversation as an image, a JPEG as `data:` text."""
        with one_line_errors():
            session = self._session(request)
            if session.image is None:
                raise InputError(NO_IMAGE.text)
            return jpeg_data_url(conversation_image(session), max_side=8192, quality=88)

    def explain(self, request: gr.Request) -> dict:
        """Returns where the last answer looked: heatmaps, and as `image` their drawing, a JPEG as `data:` text."""
        with one_line_errors():
            found, drawn = self._session(request).explain()
            return {**found.as_record(), "image": jpeg_data_url(drawn, max_side=2160)}

    def conversation_picture(self, request: gr.Request) -> str:
        """Old name of conversation_image."""
        return self.conversation_image(request)


def add_api(handlers: Handlers, queues: Mapping[str, int]) -> None:
    """Adds the API to the page being built; queues: the page's own, of images and of questions, with their limits."""
    api = Api(handlers)
    images, questions = ({"concurrency_id": name, "concurrency_limit": limit} for name, limit in queues.items())
    quick = {"concurrency_limit": 8}
    for names, queue in (
        (("set_image", "set_picture", "set_example"), images),
        (("ask", "explain"), questions),
        (("stop", "start_over", "clear_all", "conversation", "conversation_image", "conversation_picture"), quick),
    ):
        for name in names:
            function = getattr(api, name)
            gr.api(function, api_name=name, api_description=function.__doc__, **cast(Any, queue))
