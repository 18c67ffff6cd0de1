"""Contract: a module of gpt4roi imports only modules that stand before it in the one list, `house.txt`.

Imports inside functions, for type checkers and `from package import module` count as every other. Processing and
models never import each other. Nothing imports mmcv, mmdet or a LLaVA package; the one exception is the optional
backend of RoIAlign.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "gpt4roi"
HOUSE = (Path(__file__).parent / "house.txt").read_text(encoding="utf-8").split()
LEVEL = {name: level for level, name in enumerate(HOUSE)}
STRANGERS = ("mmcv", "mmdet", "llava")
ROI_ALIGN = PACKAGE / "models" / "kernels" / "roi_align.py"
FACADES = {"models": "processing", "processing": "models"}
"""Rooms that never import each other."""

FILES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    """Returns a file's dotted name inside the package; an empty one for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in FILES if module_name(path)}


def imported(source: str) -> list[tuple[int, str]]:
    """Returns the line and the dotted name of every import, wherever in the source."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            # `from package import module` may name a module.
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def ours(source: str) -> list[tuple[int, str]]:
    """Returns the line and the module of every import from this package, without the package's name in front."""
    found = []
    for line, name in imported(source):
        if name.startswith("gpt4roi."):
            inner = name.removeprefix("gpt4roi.")
            found.append((line, inner if inner in MODULES else inner.rpartition(".")[0]))
    return [(line, module) for line, module in found if module]


def upwards(name: str, source: str) -> list[str]:
    """Returns the imports of a module that go to itself, sideways or upwards in the house."""
    return [
        f"line {line}: {name} (level {LEVEL[name]}) imports {target} (level {LEVEL.get(target)})"
        for line, target in ours(source)
        if LEVEL.get(target, len(HOUSE)) >= LEVEL[name]
    ]


def test_every_module_has_one_level_and_every_level_a_module():
    assert sorted(HOUSE) == sorted(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_in_the_house(name):
    assert not upwards(name, MODULES[name].read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        "import gpt4roi.cli",
        "from gpt4roi import cli",
        "from gpt4roi.cli import main",
        "def f():\n    import gpt4roi.cli",
    ],
)
def test_an_import_upwards_is_found_in_every_form(line):
    assert upwards("structures", line)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_package_of_the_original_is_imported(path):
    strangers = [name for _, name in imported(path.read_text(encoding="utf-8")) if name.split(".")[0] in STRANGERS]
    assert not strangers or path == ROI_ALIGN, strangers


@pytest.mark.parametrize("name", MODULES)
def test_processing_and_models_do_not_know_each_other(name):
    other = FACADES.get(name.split(".")[0])
    targets = [target for _, target in ours(MODULES[name].read_text(encoding="utf-8"))]
    assert not [target for target in targets if other is not None and target.split(".")[0] == other]
