"""Images of requests: from data URLs, or fetched over https from hosts that the operator allows; encoded once each."""

from __future__ import annotations

import base64
import hashlib
import http.client
import ipaddress
import socket
import ssl
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from gpt4roi.errors import InputError
from gpt4roi.generation.encoded_image import EncodedImage, PreparedImage, encode_images
from gpt4roi.processing.uploads import Limits, open_upload

FETCH_SECONDS = 10
"""How long a host may take to connect, and to send each part of an image."""


@dataclass(frozen=True)
class OpenedImage:
    """An image that was opened, or is encoded already: it has one of the two.

    Attributes:
        digest: SHA-256 of its file.
        size: (height, width) of the user's own image, upright, in whose pixels boxes are given.
    """

    digest: str
    size: tuple[int, int]
    prepared: PreparedImage | None = None
    encoded: EncodedImage | None = None


def prepare_upload(processor: Any, data: str, limits: Limits) -> PreparedImage:
    """Opens an image that came as base64 and prepares it; its size is that of the user's own, upright."""
    upload = open_upload(data, limits)
    width, height = upload.own_size
    return PreparedImage(processor.image_inputs(upload.image), (height, width))


class ImageStore:
    """Opens images in any thread and encodes each once, in the worker's; holds the encoded ones used last."""

    def __init__(self, model: Any, processor: Any, limits: Limits, max_images: int = 32) -> None:
        self._model, self._processor = model, processor
        self.limits, self.max_images = limits, max_images
        self._encoded: OrderedDict[str, EncodedImage] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, data: str) -> OpenedImage:
        """Opens an image that came as base64, with or without `data:image/…;base64,` before it.

        Raises InputError where it is no image within the limits. A path or an address is text like any other.
        """
        digest = hashlib.sha256(data.encode()).hexdigest()
        known = self._find(digest)
        if known is not None:
            return OpenedImage(digest, known.size, encoded=known)
        prepared = prepare_upload(self._processor, data, self.limits)
        return OpenedImage(digest, prepared.size, prepared)

    def encode(self, image: OpenedImage) -> EncodedImage:
        """Returns an image encoded; by the thread that computes."""
        found = image.encoded or self._find(image.digest)
        if found is None:
            assert image.prepared is not None
            (found,) = encode_images(self._model, [image.prepared])
        with self._lock:
            self._encoded[image.digest] = found
            self._encoded.move_to_end(image.digest)
            while len(self._encoded) > self.max_images:
                self._encoded.popitem(last=False)
        return found

    def _find(self, digest: str) -> EncodedImage | None:
        with self._lock:
            return self._encoded.get(digest)


class ImageFetcher:
    """Fetches images from the hosts that the operator allows, and from no private address whatever they resolve to.

    Only https, without redirects, within a size and a time. The address that was checked is the one connected to.
    """

    def __init__(
        self,
        hosts: Iterable[str] = (),
        max_bytes: int = Limits.max_bytes,
        context: ssl.SSLContext | None = None,
        is_public: Callable[[str], bool] = lambda address: ipaddress.ip_address(address).is_global,
        option: str = "--allow-image-host",
    ) -> None:
        """context, is_public: as tests need them, whose server is on this machine; option: which allows hosts."""
        self.hosts = frozenset(host.lower() for host in hosts)
        self.max_bytes = max_bytes
        self._context, self._is_public = context or ssl.create_default_context(), is_public
        self._option = option

    def data_of(self, url: str) -> str:
        """Returns an image's file as base64 text: fetched where the URL is an address, else what stands in it."""
        return self.fetch(url) if url[:8].lower().startswith(("http://", "https://")) else url

    def fetch(self, url: str) -> str:
        """Returns an image's file as base64 text; raises InputError where it may not be fetched, or cannot."""
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        if host not in self.hosts or parts.scheme != "https" or parts.username is not None:
            raise InputError(
                f"{url:.80}: this server fetches no image from there; send it as data:image/png;base64,… (who runs "
                f"the server allows hosts with {self._option})"
            )
        try:
            connection = _Connection(host, parts.port or 443, context=self._context, timeout=FETCH_SECONDS)
            connection.connect_to = partial(self._public_address, host, parts.port or 443)
            try:
                connection.request("GET", f"{parts.path or '/'}{'?' * bool(parts.query)}{parts.query}")
                return self._read(url, connection.getresponse())
            finally:
                connection.close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{url:.80}: the image could not be fetched: {error}") from None

    def _read(self, url: str, response: http.client.HTTPResponse) -> str:
        if response.status != 200:
            hint = "; redirects are not followed" if 300 <= response.status < 400 else ""
            raise InputError(f"{url:.80}: the image could not be fetched: the host answers {response.status}{hint}")
        content = response.read(self.max_bytes + 1)
        if len(content) > self.max_bytes:
            raise InputError(f"{url:.80}: the image has more than {self.max_bytes:,} bytes")
        return base64.b64encode(content).decode()

    def _public_address(self, host: str, port: int) -> tuple[str, int]:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        private = [address for address in sorted(found) if not self._is_public(address)]
        if private or not found:
            raise InputError(f"{host} is at no public address; images are not fetched from there")
        return sorted(found)[0], port


class _Connection(http.client.HTTPSConnection):
    """Connects to an address that was resolved and checked before, and checks the certificate for the host."""

    connect_to: Callable[[], tuple[str, int]]
    context: ssl.SSLContext

    def __init__(self, host: str, port: int, *, context: ssl.SSLContext, timeout: float) -> None:
        super().__init__(host, port, context=context, timeout=timeout)
        self.context = context

    def connect(self) -> None:
        """Opens the socket."""
        plain = socket.create_connection(self.connect_to(), self.timeout)
        self.sock = self.context.wrap_socket(plain, server_hostname=self.host)
