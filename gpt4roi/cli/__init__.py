"""The `gpt4roi` command: finds, parses and runs its subcommands.

A subcommand is a module of this package, `gpt4roi/cli/<name>.py` (`-` in the name is `_` in the file), with

    HELP: str                                one line, shown in the list of subcommands
    EXAMPLE: str                             command lines, shown at the end of the subcommand's own --help
    add_arguments(parser) -> None
    run(args) -> int                         the exit code
    ALLOWS_EXTRA_ARGS = True                 where unknown arguments are taken too, as the list args.extra_args

Subcommands import torch and the like inside `run`, so that every --help answers at once. Answers go to stdout, logs to
stderr. Exit codes: 0 done; 2 wrong input (one line says what and what to do); 130 interrupted; 141 closed pipe.
"""

from __future__ import annotations

import argparse
import difflib
import io
import pkgutil
import re
import sys
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

from gpt4roi import __version__
from gpt4roi.cli import output
from gpt4roi.errors import InputError
from gpt4roi.io.atomic import is_disk_full

_DESCRIPTION = "Draw boxes on an image and talk about them."
_HELPERS = {"output"}

EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument as an InputError, so that it is printed like every other wrong input."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # also of a box, -0.5,10,40,50, which is no flag

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see `{self.prog} --help`)")


def subcommand_names() -> list[str]:
    """Lists the subcommands, without importing them."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in modules if not name.startswith("_") and name not in _HELPERS)


def load_subcommand(name: str) -> ModuleType:
    """Imports the module of one subcommand."""
    return import_module(f"{__name__}.{name.replace('-', '_')}")


def build_parser(name: str) -> argparse.ArgumentParser:
    """Builds the argument parser of one subcommand."""
    module = load_subcommand(name)
    example = getattr(module, "EXAMPLE", "").strip("\n")
    parser = _Parser(
        prog=f"gpt4roi {name}",
        description=module.HELP,
        epilog=f"example:\n{example}" if example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser


def overview() -> str:
    """Returns what `gpt4roi --help` prints: every subcommand with its line."""
    names = subcommand_names()
    width = max(map(len, names), default=0)
    lines = [f"  {name:<{width}}  {load_subcommand(name).HELP}" for name in names]
    return "\n".join(
        [
            "usage: gpt4roi COMMAND [arguments]",
            "",
            _DESCRIPTION,
            "",
            "commands:",
            *lines,
            "",
            "`gpt4roi COMMAND --help` explains one command, with an example; `gpt4roi --version` prints the version.",
        ]
    )


def _unknown(name: str) -> InputError:
    close = difflib.get_close_matches(name, subcommand_names(), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"commands are {', '.join(subcommand_names())}"
    return InputError(f"unknown command {name!r}; {hint}")


def _run_subcommand(name: str, arguments: list[str]) -> int:
    try:
        parser = build_parser(name)
        if getattr(load_subcommand(name), "ALLOWS_EXTRA_ARGS", False):
            args, extra_args = parser.parse_known_args(arguments)
            args.extra_args = extra_args
        else:
            args = parser.parse_args(arguments)
    except SystemExit as exit_request:  # argparse exits after printing --help
        return int(exit_request.code or 0)
    output.log_to_stderr()
    return int(load_subcommand(name).run(args) or 0)


def main(argv: list[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    prog = "gpt4roi"
    if sys.stdin is None:  # closed by the caller: there is nothing to read
        sys.stdin = io.TextIOWrapper(io.BytesIO())
    try:
        if not arguments:
            raise InputError(f"which command? One of {', '.join(subcommand_names())} (see `gpt4roi --help`)")
        name, *rest = arguments
        if name in ("-h", "--help", "help"):
            output.line(overview())
            return 0
        if name in ("-V", "--version"):
            output.line(f"gpt4roi {__version__}")
            return 0
        if name not in subcommand_names():
            raise _unknown(name)
        prog = f"gpt4roi {name}"
        return _run_subcommand(name, rest)
    except InputError as error:
        output.error(prog, str(error))
        return EXIT_WRONG_INPUT
    except Exception as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output was closed, as in `gpt4roi … | head`
            output.silence_stdout()
            return EXIT_BROKEN_PIPE
        if not is_disk_full(error):
            raise
        output.error(prog, f"a disk is full: {error}; make room, and run it again")
        return EXIT_WRONG_INPUT
    except KeyboardInterrupt:
        output.error(prog, "interrupted")
        return EXIT_INTERRUPTED
