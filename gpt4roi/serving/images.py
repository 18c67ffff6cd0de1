"""Images of requests: from data URLs, or fetched over https from hosts that the operator allows; encoded once each."""

from __future__ import annotations

import base64
import contextlib
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
"""How long a host may take to connect, and from then on until the whole image is here."""

_UNICAST = ipaddress.ip_network("2000::/3")


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
        is_public: Callable[[str], bool] | None = None,
        option: str = "--allow-image-host",
    ) -> None:
        """context, is_public: as tests need them, whose server is on this machine; option: which allows hosts."""
        self.hosts = frozenset(host.lower() for host in hosts)
        self.max_bytes = max_bytes
        self._context, self._is_public = context or ssl.create_default_context(), is_public or _is_public
        self._option = option

    def data_of(self, url: str) -> str:
        """Returns an image's file as base64 text: fetched where the URL is an address, else what stands in it."""
        return self.fetch(url) if url[:8].lower().startswith(("http://", "https://")) else url

    def fetch(self, url: str) -> str:
        """Returns an image's file as base64 text; raises InputError where it may not be fetched, or cannot."""
        url = " ".join(url.split())  # in the one line of an error too
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port or 443
        except ValueError as error:  # half an address in brackets, say
            raise InputError(f"{url:.80}: this is no address: {error}") from None
        if host not in self.hosts or parts.scheme != "https" or parts.username is not None:
            raise InputError(
                f"{url:.80}: this server fetches no image from there; send it as data:image/png;base64,… (who runs "
                f"the server allows hosts with {self._option})"
            )
        connection = _Connection(host, port, self._context, partial(self._public_address, host, port))
        try:
            connection.request("GET", f"{parts.path or '/'}{'?' * bool(parts.query)}{parts.query}")
            found = self._read(url, connection.getresponse())
            if connection.is_late:  # what was read is the beginning
                raise TimeoutError
            return found
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, InputError):
                raise
            why = f"it took more than {FETCH_SECONDS} seconds" if connection.is_late else error
            raise InputError(f"{url:.80}: the image could not be fetched: {why}") from None
        finally:
            connection.timer.cancel()
            connection.close()

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


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address)
    # Of IPv6 only what holds no IPv4 address, which could be a private one.
    plain = isinstance(found, ipaddress.IPv4Address) or (found in _UNICAST and found.sixtofour is None)
    return found.is_global and plain and not found.is_multicast


class _Connection(http.client.HTTPSConnection):
    """Connects to an address that was resolved and checked before, and checks the certificate for the host.

    Attributes:
        timer: Shuts the socket once the time is over: many slow parts are each in time.
        is_late: Whether it did.
    """

    def __init__(self, host: str, port: int, context: ssl.SSLContext, find: Callable[[], tuple[str, int]]) -> None:
        super().__init__(host, port, context=context, timeout=FETCH_SECONDS)
        self.context, self.find = context, find
        self.timer, self.is_late = threading.Timer(FETCH_SECONDS, self._shut), False

    def connect(self) -> None:
        """Opens the socket."""
        plain = socket.create_connection(self.find(), self.timeout)
        self.opened = self.context.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
        self.sock = self.opened
        self.timer.start()
        self.opened.do_handshake()

    def _shut(self) -> None:
        self.is_late = True
        with contextlib.suppress(OSError):  # it is closed already
            socket.socket.shutdown(self.opened, socket.SHUT_RDWR)
