"""Server of the page: binds to this machine only by default, and is never shared unless asked."""

from __future__ import annotations

import hmac
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import gradio as gr
from starlette.middleware import Middleware

from gpt4roi.demo.examples import Examples, shipped_examples
from gpt4roi.demo.gradio_compat import LAUNCH_OPTIONS, forget_session, tolerate_double_deletion
from gpt4roi.demo.handlers import Handlers
from gpt4roi.demo.request_filter import RequestFilter
from gpt4roi.demo.session import Session
from gpt4roi.demo.store import SessionStore
from gpt4roi.demo.ui import asset, build_page, head, theme
from gpt4roi.errors import InputError
from gpt4roi.generation.batching import BatchingWorker
from gpt4roi.processing.uploads import Limits
from gpt4roi.region_chat import RegionChat

logger = logging.getLogger(__name__)

HOME = "127.0.0.1"
THREADS = 40
"""For everything but the questions and the names that are being answered, each of which occupies one."""


@dataclass(frozen=True)
class ServerOptions:
    """Address, access and limits of the page.

    Attributes:
        port: None looks for a free one from 7860 on.
        max_sessions: Conversations held; the one that was idle longest is evicted.
        idle_minutes: After which a conversation expires.
        concurrency: Answers written together, in batches.
        queue_size: Questions that may wait.
        name_boxes: Whether boxes are named as they are drawn.
        examples: Shown below the image; by default those that scikit-image ships.
        limitations: What the model can and cannot do, in a sentence or two; shown below the title.
    """

    host: str = HOME
    port: int | None = None
    share: bool = False
    password: str | None = None
    limits: Limits = field(default_factory=Limits)
    max_sessions: int = 64
    idle_minutes: float = 30
    concurrency: int = 32
    queue_size: int = 64
    name_boxes: bool = True
    examples: Examples | None = None
    limitations: str = ""


@dataclass
class RunningServer:
    """The page while it is being served."""

    page: gr.Blocks
    url: str
    store: SessionStore
    ended: threading.Event
    worker: BatchingWorker

    def wait(self) -> None:
        """Waits until the page is closed, by `close` or by Ctrl-C."""
        try:
            self.ended.wait()
        except KeyboardInterrupt:
            logger.info("closing the page")

    def close(self) -> None:
        """Ends the server and frees every session."""
        self.ended.set()
        self.page.close(verbose=False)
        self.worker.close(finish=False)


def serve(chat: RegionChat, model_name: str, options: ServerOptions = ServerOptions()) -> RunningServer:
    """Starts the page over one loaded model, in threads of its own, and returns it.

    Raises:
        InputError: The port is taken, or no public address can be had.
    """
    worker = BatchingWorker(chat.model, chat.processor, max_sequences=options.concurrency)
    store = SessionStore(lambda: Session(worker), options.max_sessions, idle_seconds=60 * options.idle_minutes)
    examples = shipped_examples() if options.examples is None else options.examples
    handlers = Handlers(store, options.limits, model_name, examples)
    masks = chat.processor.region_shape == "mask"
    page = build_page(handlers, options.concurrency, options.name_boxes, options.limitations, masks)
    page.queue(max_size=options.queue_size, default_concurrency_limit=options.concurrency)
    _check_port(options)
    # base64 needs a third more than the file; the rest of a request is small.
    request_filter = Middleware(RequestFilter, max_body=options.limits.max_bytes * 4 // 3 + 2 ** (21 if masks else 17))
    try:
        with _without_proxies(options.share):
            _, local, shared = page.launch(
                server_name=f"[{options.host}]" if ":" in options.host else options.host,
                server_port=options.port,
                share=options.share,
                auth=_password_check(options.password),
                auth_message="This page asks for a password. Write anything as the user name.",
                app_kwargs={"middleware": [request_filter]},
                max_threads=THREADS + 2 * options.concurrency,
                state_session_capacity=options.max_sessions,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                ssr_mode=False,
                enable_monitoring=False,
                run_history=False,
                pwa=False,
                mcp_server=False,
                footer_links=["api", "settings"],
                theme=theme(),
                css=asset("page.css"),
                head=head(),
                **LAUNCH_OPTIONS,
            )
    except (OSError, RuntimeError) as error:
        raise InputError(f"the page cannot be served: {error}") from None
    if options.share and not shared:
        page.close(verbose=False)
        raise InputError("no public address could be had; is there a network? Without --share the page stays local")
    tolerate_double_deletion(page)
    store.on_drop = partial(forget_session, page)
    return RunningServer(page, shared or local, store, store.start_sweeper(), worker)


@contextmanager
def _without_proxies(share: bool) -> Iterator[None]:
    """Lets Gradio reach its own server also where a proxy is set for all addresses.

    With `share`, Gradio asks for a public address too, for which the proxy stays.
    """
    before = os.environ.get("no_proxy")
    os.environ["no_proxy"] = "*"
    if share:
        exempt = before or os.environ.get("NO_PROXY", "")
        os.environ["no_proxy"] = f"{exempt},localhost,127.0.0.1,::1".lstrip(",")
    try:
        yield
    finally:
        if before is None:
            del os.environ["no_proxy"]
        else:
            os.environ["no_proxy"] = before


def _password_check(password: str | None) -> Callable[[str, str], bool] | None:
    if password is None:
        return None
    expected = password.encode()
    return lambda _user, given: hmac.compare_digest(given.encode(), expected)


def _check_port(options: ServerOptions) -> None:
    """Raises one line where a port is taken or a host is not this machine's, before Gradio does it at length."""
    if options.port is None:
        return
    with socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            raise InputError(
                f"cannot listen on {options.host}:{options.port}: {error.strerror or error}; give another --port"
            ) from None
