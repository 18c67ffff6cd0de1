"""`gpt4roi demo`: serves the Gradio page where boxes are drawn on an image and talked about."""

from __future__ import annotations

import argparse
import logging
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gpt4roi.cli import output
from gpt4roi.cli._model import add_model_arguments, check_model_folder, open_chat
from gpt4roi.cli._server import add_server_arguments, check_numbers, is_local, limits, read_secrets
from gpt4roi.errors import InputError

if TYPE_CHECKING:
    from gpt4roi.demo.examples import Examples

logger = logging.getLogger(__name__)

HELP = "open a page in the browser: draw boxes on an image, talk about them"
EXAMPLE = """
  gpt4roi demo
  gpt4roi demo --model ./GPT4RoI-7B --port 7860
  gpt4roi demo --host 0.0.0.0 --password-file ~/page-password
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the model, the address of the page, and its limits."""
    add_model_arguments(parser)
    parser.add_argument("--port", type=int, metavar="N", help="(default: the first free one from 7860 on)")
    add_server_arguments(parser)
    parser.add_argument("--share", action="store_true", help="also get a public URL from Gradio's servers")
    parser.add_argument("--open", action="store_true", help="open the page in this machine's browser")
    parser.add_argument("--password-file", metavar="FILE", help="file whose first line is the password of the page")
    parser.add_argument(
        "--max-sessions",
        type=int,
        default=64,
        metavar="N",
        help="conversations held; the longest idle one is evicted (default: %(default)s)",
    )
    parser.add_argument(
        "--idle-minutes",
        type=float,
        default=30,
        metavar="N",
        help="after which an idle conversation expires (default: %(default)s)",
    )
    parser.add_argument(
        "--concurrency",
        "--at-once",
        type=int,
        default=32,
        metavar="N",
        help="answers written together, in batches (default: %(default)s)",
    )
    parser.add_argument(
        "--examples",
        type=Path,
        metavar="FILE",
        help="example images with boxes (default: examples.json in the model's folder, or scikit-image's photographs)",
    )
    parser.add_argument("--no-names", action="store_true", help="do not name boxes as they are drawn")


def run(args: argparse.Namespace) -> int:
    """Opens the model, serves the page until Ctrl-C."""
    if find_spec("gradio") is None:
        raise InputError('the page needs Gradio; install it with: pip install "gpt4roi[demo]"')
    check_numbers(args, 1, "max_sessions", "idle_minutes", "concurrency")
    password = _read_password(args.password_file)
    check_model_folder(args.model)
    examples = _examples(args)

    started = time.monotonic()
    logger.info("opening %s …", args.model)
    chat = open_chat(args)

    from gpt4roi.demo.server import ServerOptions, serve
    from gpt4roi.models.model_card import limitations

    options = ServerOptions(
        host=args.host,
        port=args.port,
        share=args.share,
        password=password,
        limits=limits(args),
        max_sessions=args.max_sessions,
        idle_minutes=args.idle_minutes,
        concurrency=args.concurrency,
        name_boxes=not args.no_names,
        examples=examples,
        limitations=limitations(Path(args.model)),
    )
    running = serve(chat, Path(args.model).name, options)
    if password is None and (args.share or not is_local(args.host)):
        logger.warning("anyone who has the address can use the page; --password-file FILE asks for a password")
    logger.info("ready after %.0f s; Ctrl-C ends it", time.monotonic() - started)
    output.line(running.url)
    if args.open:
        import webbrowser

        webbrowser.open(running.url)
    try:
        running.wait()
    finally:
        running.close()
    return 0


def _examples(args: argparse.Namespace) -> Examples | None:
    from gpt4roi.demo.examples import FILE_NAME, read_examples

    if args.examples is not None:
        return read_examples(args.examples)
    own = Path(args.model) / FILE_NAME
    try:
        return read_examples(own) if own.is_file() else None
    except InputError as error:  # a model's folder may travel without the images
        logger.warning("%s; scikit-image's photographs are shown instead", error)
        return None


def _read_password(path: str | None) -> str | None:
    if path is None:
        return None
    lines = read_secrets("--password-file", path)
    if not lines or not lines[0]:
        raise InputError(f"--password-file {path}: the first line is empty; write the password there")
    return lines[0]
