"""Server of the API: uvicorn over the application; it ends after the answers that it has begun."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from gpt4roi.errors import InputError
from gpt4roi.generation.batching import BatchingWorker
from gpt4roi.processing.uploads import Limits
from gpt4roi.region_chat import RegionChat
from gpt4roi.serving.app import ServingApp
from gpt4roi.serving.images import ImageFetcher, ImageStore

GRACE_SECONDS = 60
"""How long a server that is told to end goes on with the answers that it has begun."""


@dataclass(frozen=True)
class ServingOptions:
    """Address, access and limits of the API.

    Attributes:
        port: 0 takes any free one.
        api_keys: Any of them lets a client in; without any, everybody may ask.
        image_hosts: Hosts from which images may be fetched over https.
        limits: Of an image.
        worker: Arguments of BatchingWorker.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: Sequence[str] = ()
    image_hosts: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)
    worker: dict[str, Any] = field(default_factory=dict)


class RunningApi:
    """The API while it is being served."""

    def __init__(self, chat: RegionChat, model_name: str, options: ServingOptions, **fetching: Any) -> None:
        """Binds the address; `run` serves. fetching: As of ImageFetcher.

        Raises:
            InputError: The address cannot be listened on.
        """
        self._socket = _bind(options.host, options.port)
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self.worker = BatchingWorker(chat.model, chat.processor, **options.worker)
        self.app = ServingApp(
            self.worker,
            ImageStore(chat.model, chat.processor, options.limits),
            model_name,
            ImageFetcher(options.image_hosts, options.limits.max_bytes, **fetching),
            options.api_keys,
            chat.default_question,
        )
        config = uvicorn.Config(
            self.app.asgi(), log_level="warning", lifespan="off", timeout_graceful_shutdown=GRACE_SECONDS
        )
        self._server = uvicorn.Server(config)

    def run(self) -> None:
        """Serves until SIGINT or SIGTERM, or `close`; answers that were begun are completed."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self.worker.close(finish=False)  # what is still being written has no reader any more
            self._socket.close()

    def start(self) -> threading.Thread:
        """Serves in a thread of its own."""
        thread = threading.Thread(target=self.run, name="gpt4roi-api", daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """Takes no more requests, and lets `run` return once it has answered those that it has."""
        self._server.should_exit = True


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror or error}; give another --port") from None
    return listener
