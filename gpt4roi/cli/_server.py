"""What the subcommands that serve others have in common: who may come in, and the limits of an image."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gpt4roi.errors import InputError

if TYPE_CHECKING:
    from gpt4roi.processing.uploads import Limits

LIMITS = ("max_upload_mb", "max_megapixels")


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the address to listen on, and the limits of an image."""
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="0.0.0.0 lets other machines in (default: %(default)s)"
    )
    parser.add_argument("--max-upload-mb", type=int, default=12, metavar="N", help="of an image (default: %(default)s)")
    parser.add_argument(
        "--max-megapixels", type=int, default=40, metavar="N", help="of an image (default: %(default)s)"
    )


def check_numbers(args: argparse.Namespace, least_port: int, *names: str) -> None:
    """Raises InputError where the port, a limit of an image, or one of the named arguments is out of range."""
    if args.port is not None and not least_port <= args.port <= 65535:
        raise InputError(f"--port is between {least_port} and 65535, got {args.port}")
    for name in (*LIMITS, *names):
        if not getattr(args, name) > 0:
            raise InputError(f"--{name.replace('_', '-')} must be above 0, got {getattr(args, name)}")


def limits(args: argparse.Namespace) -> Limits:
    """Returns the limits of an image."""
    from gpt4roi.processing.uploads import Limits

    return Limits(args.max_upload_mb * 2**20, args.max_megapixels * 1_000_000)


def is_local(host: str) -> bool:
    """Tells whether an address is one of this machine that no other can reach."""
    return host in ("127.0.0.1", "localhost", "::1")


def read_secrets(flag: str, path: str) -> list[str]:
    """Returns the lines of a file of secrets, without outer blanks. Raises InputError naming the flag."""
    try:
        return [line.strip() for line in Path(path).expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {path}: cannot be read: {getattr(error, 'strerror', error)}") from None
