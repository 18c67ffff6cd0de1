"""The `gpt4roi` command.

A verb is a module of this package, `gpt4roi/cli/<verb>.py` (`-` in the verb is `_` in the file), with

    HELP: str                                one line, shown in the list of verbs
    EXAMPLE: str                             command lines, shown at the end of the verb's own --help
    add_arguments(parser) -> None
    run(args) -> int                         the exit code
    TAKES_MORE = True                        where other arguments are taken too, as the list args.more

Verbs import torch and the like inside `run`, so that every --help answers at once. Answers go to stdout, logs to
stderr. Exit codes: 0 done; 2 the input is wrong (one line says what and what to do); 130 interrupted.
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

_DESCRIPTION = "Draw boxes on an image and talk about them."
_NOT_VERBS = {"output"}

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


def verb_names() -> list[str]:
    """Lists the verbs, without importing them."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in modules if not name.startswith("_") and name not in _NOT_VERBS)


def load_verb(verb: str) -> ModuleType:
    """Imports the module of one verb."""
    return import_module(f"{__name__}.{verb.replace('-', '_')}")


def build_parser(verb: str) -> argparse.ArgumentParser:
    """Builds the argument parser of one verb."""
    module = load_verb(verb)
    example = getattr(module, "EXAMPLE", "").strip("\n")
    parser = _Parser(
        prog=f"gpt4roi {verb}",
        description=module.HELP,
        epilog=f"example:\n{example}" if example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser


def overview() -> str:
    """Returns what `gpt4roi --help` prints: every verb with its line."""
    verbs = verb_names()
    width = max(map(len, verbs), default=0)
    lines = [f"  {verb:<{width}}  {load_verb(verb).HELP}" for verb in verbs]
    return "\n".join(
        [
            "usage: gpt4roi VERB [arguments]",
            "",
            _DESCRIPTION,
            "",
            "verbs:",
            *lines,
            "",
            "`gpt4roi VERB --help` explains one verb, with an example; `gpt4roi --version` prints the version.",
        ]
    )


def _unknown(verb: str) -> InputError:
    close = difflib.get_close_matches(verb, verb_names(), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"verbs are {', '.join(verb_names())}"
    return InputError(f"unknown verb {verb!r}; {hint}")


def _run_verb(verb: str, arguments: list[str]) -> int:
    try:
        parser = build_parser(verb)
        if getattr(load_verb(verb), "TAKES_MORE", False):
            args, more = parser.parse_known_args(arguments)
            args.more = more
        else:
            args = parser.parse_args(arguments)
    except SystemExit as leaving:  # argparse leaves this way after printing --help
        return int(leaving.code or 0)
    output.log_to_stderr()
    return int(load_verb(verb).run(args) or 0)


def main(argv: list[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = "gpt4roi"
    if sys.stdin is None:  # closed by who called: then there is nothing to read
        sys.stdin = io.TextIOWrapper(io.BytesIO())
    try:
        if not arguments:
            raise InputError(f"which verb? One of {', '.join(verb_names())} (see `gpt4roi --help`)")
        verb, *rest = arguments
        if verb in ("-h", "--help", "help"):
            output.line(overview())
            return 0
        if verb in ("-V", "--version"):
            output.line(f"gpt4roi {__version__}")
            return 0
        if verb not in verb_names():
            raise _unknown(verb)
        name = f"gpt4roi {verb}"
        return _run_verb(verb, rest)
    except InputError as error:
        output.error(name, str(error))
        return EXIT_WRONG_INPUT
    except KeyboardInterrupt:
        output.error(name, "interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left, as in `gpt4roi … | head`
        output.silence_stdout()
        return EXIT_BROKEN_PIPE
