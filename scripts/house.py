"""Import graph of gpt4roi, read from the source: modules, levels, upward imports, package cycles.

tests/contracts/test_import_levels.py holds the code to it, and scripts/house_report.py prints it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gpt4roi"
TABLE = ROOT / "tests/contracts/house.txt"
"""The one table of levels: every module, one a line, from the ground up."""


def levels() -> dict[str, int]:
    """Returns the level of every module in the table; the lowest is 0."""
    return {name: level for level, name in enumerate(TABLE.read_text(encoding="utf-8").split())}


def modules() -> dict[str, Path]:
    """Returns the files of the package by their dotted names inside it; without the package's own `__init__`."""
    paths = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
    names = [[part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__"] for path in paths]
    return {".".join(parts): path for parts, path in zip(names, paths, strict=True) if parts}


@cache
def public_names() -> dict[str, str]:
    """Returns the module behind each name that `from gpt4roi import NAME` gives."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    values = [node.value for node in tree.body if isinstance(node, ast.Assign) and _target(node) == "_EXPORTS"]
    return {name: module.removeprefix("gpt4roi.") for name, module in ast.literal_eval(values[0]).items()}


def _target(node: ast.Assign) -> str:
    return getattr(node.targets[0], "id", "")


@cache
def imports(source: str) -> tuple[tuple[int, str], ...]:
    """Returns the line and the dotted name of every import, wherever it stands; import_module("…") counts too.

    `from package import name` gives `package.name`, which may be a module or a name in one.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__"):
                found.append((node.lineno, str(node.args[0].value)))
    return tuple(found)


def own_imports(source: str, known: Iterable[str]) -> list[tuple[int, str]]:
    """Returns the line and the module of every import from gpt4roi, without `gpt4roi.` in front.

    A public name counts as an import of the module that it lies in; what is no known module is returned as written.
    """
    exports, known = public_names(), set(known)
    found = []
    for line, name in imports(source):
        if name.startswith("gpt4roi."):
            inner = name.removeprefix("gpt4roi.")
            inner = exports.get(inner, inner)
            found.append((line, inner if inner in known else inner.rpartition(".")[0]))
    return [(line, module) for line, module in found if module]


def upward_imports(name: str, source: str, table: Mapping[str, int]) -> list[str]:
    """Returns the imports of a module that go to itself, to its own level or up, each as one line of text."""
    return [
        f"line {line}: {name} (level {table[name]}) imports {target} (level {table.get(target)})"
        for line, target in own_imports(source, table)
        if table.get(target, len(table)) >= table[name]
    ]


def package_cycles(sources: Mapping[str, str]) -> list[str]:
    """Returns the pairs of packages that import each other, directly or through others, as `a <-> b`.

    Args:
        sources: Source text of every module by its dotted name inside gpt4roi.
    """
    edges: dict[str, set[str]] = {}
    for name, source in sources.items():
        room = name.split(".")[0]
        targets = {target.split(".")[0] for _, target in own_imports(source, sources)}
        edges.setdefault(room, set()).update(targets - {room})
    reach = {room: _reachable(room, edges) for room in edges}
    return sorted(f"{a} <-> {b}" for a in reach for b in reach[a] if a < b and a in reach.get(b, ()))


def _reachable(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = edges.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found
