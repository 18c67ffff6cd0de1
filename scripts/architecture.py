"""Writes docs/architecture.md: the modules from their docstrings, and the walks from a traced run.

    python scripts/architecture.py            prints the page
    python scripts/architecture.py --write    writes it

What stands above the marker is written by hand and stays. The walks are those of scripts/walk.py.
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts.house import ROOT, levels, modules

if TYPE_CHECKING:
    from scripts.walk import Walk

PAGE = ROOT / "docs" / "architecture.md"
MARKER = "<!-- generated below this line: python scripts/architecture.py --write -->\n"


def first_line(path: Path) -> str:
    """Returns the first line of a module's docstring; empty where there is none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def rooms() -> dict[str, list[str]]:
    """Returns the modules of each room, both in the order of house.txt; a module of the root is a room of its own."""
    found: dict[str, list[str]] = {}
    for name in levels():
        found.setdefault(name.partition(".")[0], []).append(name)
    return found


def table(rows: list[tuple[str, str]]) -> list[str]:
    """Returns a Markdown table of files and what they are."""
    cells = [(f"`{name}`", text.replace("|", "\\|")) for name, text in rows]
    return ["| file | |", "|---|---|", *(f"| {name} | {text} |" for name, text in cells), ""]


def modules_by_room() -> str:
    """Returns the list of modules, in the order of the import levels, by room."""
    lines = ["## Modules", "", "From the ground up: a module imports only what stands above it.", ""]
    loose: list[tuple[str, str]] = []
    packages: list[str] = []
    files = modules()
    for room, names in rooms().items():
        rows = [(str(files[name].relative_to(ROOT / "gpt4roi")), first_line(files[name])) for name in names]
        if files[room].name != "__init__.py":
            loose += rows
            continue
        about = first_line(files[room])
        inner = [row for row in rows if row[0] != f"{room}/__init__.py"]
        packages += [f"### {room}/", "", *([about, ""] if about else []), *table(inner)]
    quickstart = sorted((ROOT / "quickstart").rglob("*.py"))
    rows = [(str(path.relative_to(ROOT)), text) for path in quickstart if (text := first_line(path))]
    lines += ["### gpt4roi/", "", *table(loose), *packages]
    lines += ["### quickstart/, beside the library", "", *table(rows)]
    return "\n".join(lines)


def walk_lines(title: str, walk: Walk) -> list[str]:
    """Returns a walk as a list of files in the order of their first call, each with its functions."""
    lines = [f"**{title}**: {len(walk.steps)} functions in {len(walk.files)} files.", ""]
    for number, file in enumerate(walk.files, start=1):
        functions = ", ".join(f"`{name}`" for where, name in walk.steps if where == file)
        lines.append(f"{number}. `{file}`: {functions}")
    return [*lines, ""]


def walks() -> str:
    """Returns the paths of a training sample and of an answer, as traced."""
    from scripts.walk import answer, training_sample  # needs torch, which the site does without

    to_batch, to_loss = training_sample()
    lines = [
        "",
        "## The walks",
        "",
        "Every function that runs, by file, in the order of the first call; `scripts/walk.py` traces a tiny model.",
        "",
        *walk_lines("A training sample, from the annotation file to the batch", to_batch),
        *walk_lines("A batch, from its tensors to the loss", to_loss),
        *walk_lines("An answer, from the image and the question to the text", answer()),
    ]
    return "\n".join(lines) + "\n"


def whole_page() -> str:
    """Returns the page as it should be: what is written by hand, and the modules."""
    return PAGE.read_text(encoding="utf-8").partition(MARKER)[0] + MARKER + walks() + modules_by_room().rstrip() + "\n"


def main() -> None:
    """Prints or writes the page."""
    parser = argparse.ArgumentParser(description="The page of modules, made of their docstrings.")
    parser.add_argument("--write", action="store_true", help="write docs/architecture.md instead of printing it")
    if parser.parse_args().write:
        PAGE.write_text(whole_page(), encoding="utf-8")
    else:
        print(whole_page(), end="")


if __name__ == "__main__":
    main()
