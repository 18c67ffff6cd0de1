"""Java programs of pycocoevalcap, run alike in every locale and from every path; a failure is one readable line."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

_ENGLISH = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")


class JavaProgramError(Exception):
    """A Java program did not give what it was asked for; the message is one line."""


def program_folder(name: str) -> Path:
    """Returns a folder of pycocoevalcap, such as `meteor`, whether it is there or not."""
    package = importlib.util.find_spec("pycocoevalcap")
    places = package.submodule_search_locations if package else None
    return Path(places[0] if places else "pycocoevalcap") / name


@contextlib.contextmanager
def linked_folder(name: str) -> Iterator[tuple[Path, Path]]:
    """Yields a link to a folder of pycocoevalcap, and an empty folder that can be written, for as long as the block.

    Neither path has a blank or another character that a URL escapes, for programs that take a path for a URL.

    Raises:
        JavaProgramError: No temporary folder can be written.
    """
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(_temporary_folder()))
        link = work / "program"
        try:
            link.symlink_to(program_folder(name).absolute(), target_is_directory=True)
        except OSError as error:
            raise JavaProgramError(f"cannot write to {work}: {error.strerror or error}") from None
        yield link, work


def _temporary_folder() -> tempfile.TemporaryDirectory:
    refused = ""
    with contextlib.suppress(OSError):  # Python's own choice may not exist
        refused = tempfile.gettempdir()
    places = list(dict.fromkeys(place for place in (refused, "/tmp", "/var/tmp", "/dev/shm") if place))
    places.sort(key=lambda place: re.fullmatch(r"[\w./-]+", place, re.ASCII) is None)
    for place in places:
        try:
            return tempfile.TemporaryDirectory(prefix="gpt4roi-", dir=place)
        except OSError as error:
            refused = f"{place}: {error.strerror or error}"
    raise JavaProgramError(f"cannot write to {refused}; free space, or name another folder in TMPDIR")


def run_java(arguments: Iterable[object], lines: Iterable[str] = ()) -> list[str]:
    """Runs a Java program in an English UTF-8 locale on lines of text, and returns the lines that it prints.

    Raises:
        JavaProgramError: It does not run, or ends with an error.
    """
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    if "_JAVA_OPTIONS" in environment:  # stands above the command line; JAVA_TOOL_OPTIONS stands below
        environment["_JAVA_OPTIONS"] += " " + " ".join(_ENGLISH)
    command = ["java", *_ENGLISH, *map(str, arguments)]
    text = "".join(line + "\n" for line in lines).encode(errors="replace")
    try:
        done = subprocess.run(command, input=text, capture_output=True, env=environment, check=False)
    except OSError as error:
        raise JavaProgramError(f"Java does not run: {error.strerror or error}") from None
    if done.returncode:
        said = [line for line in done.stderr.decode(errors="replace").splitlines() if line[:1].strip()]
        raise JavaProgramError(f"its program ended: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout.decode(errors="replace").split("\n")[:-1]
