"""`gpt4roi serve`: an OpenAI-compatible API over HTTP, in which regions are boxes of the user's own image."""

from __future__ import annotations

import argparse
import logging
import time
from importlib.util import find_spec
from pathlib import Path

from gpt4roi.cli import output
from gpt4roi.cli._model import add_model_arguments, check_model_folder, open_chat
from gpt4roi.cli._server import add_server_arguments, check_numbers, is_local, limits, read_secrets
from gpt4roi.errors import InputError

logger = logging.getLogger(__name__)

HELP = "serve an OpenAI-compatible API: chat with regions, and answers for many regions"
EXAMPLE = """
  gpt4roi serve --model ./GPT4RoI-7B
  gpt4roi serve --model ./GPT4RoI-7B --host 0.0.0.0 --port 8000 --api-key-file ~/api-keys
  curl http://127.0.0.1:8000/v1/models
"""
NEEDS = ("uvicorn", "starlette", "pydantic", "prometheus_client")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the model, the address, who may ask, and the limits."""
    add_model_arguments(parser)
    parser.add_argument("--served-name", metavar="NAME", help="the model's name in requests (default: its folder's)")
    add_server_arguments(parser)
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0: any free one (default: %(default)s)")
    parser.add_argument("--api-key-file", metavar="FILE", help="file with the keys that clients may give, one a line")
    parser.add_argument(
        "--allow-image-host",
        action="append",
        default=[],
        metavar="HOST",
        help="a host whose https images may be fetched (default: none; images come inside the requests)",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=16384,
        metavar="N",
        help="tokens in memory, of all prompts and answers together (default: %(default)s)",
    )
    parser.add_argument(
        "--max-sequences", type=int, default=64, metavar="N", help="answers written at once (default: %(default)s)"
    )
    parser.add_argument(
        "--max-waiting", type=int, default=256, metavar="N", help="questions that may wait (default: %(default)s)"
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="decode one question after the other, so that no bit of an answer depends on others (default: in batches)",
    )


def run(args: argparse.Namespace) -> int:
    """Opens the model, serves until Ctrl-C or SIGTERM."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise InputError(f'the API needs {", ".join(missing)}; install with: pip install "gpt4roi[serve]"')
    check_numbers(args, 0, "max_tokens", "max_sequences", "max_waiting")
    keys = _read_keys(args.api_key_file)
    check_model_folder(args.model)
    started = time.monotonic()
    logger.info("opening %s …", args.model)
    chat = open_chat(args)

    from gpt4roi.serving.server import RunningApi, ServingOptions

    options = ServingOptions(
        host=args.host,
        port=args.port,
        api_keys=keys,
        image_hosts=args.allow_image_host,
        limits=limits(args),
        worker={name: getattr(args, name) for name in ("max_tokens", "max_sequences", "max_waiting", "deterministic")},
    )
    name = args.served_name or Path(args.model).name
    running = RunningApi(chat, name, options)
    if not keys and not is_local(args.host):
        logger.warning("anyone who has the address can ask; --api-key-file FILE asks for a key")
    logger.info("model %s, ready after %.0f s; Ctrl-C ends it", name, time.monotonic() - started)
    output.line(f"{running.url}/v1")
    running.run()
    return 0


def _read_keys(path: str | None) -> list[str]:
    if path is None:
        return []
    keys = [key for key in read_secrets("--api-key-file", path) if key]
    if not keys:
        raise InputError(f"--api-key-file {path}: holds no key; write one a line")
    return keys
