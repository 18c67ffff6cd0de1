"""Contract: a module of gpt4roi imports from its own package or from a lower level of the house, never upwards.

Processor and models stand on one level and never import each other. Nothing imports mmcv, mmdet or a LLaVA package;
the one exception is the optional backend of RoIAlign.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "gpt4roi"
LEVELS = {
    "constants": 0,
    "errors": 0,
    "boxes": 0,
    "structures": 0,
    "prompts": 1,
    "conversation": 1,
    "checkpoint.legacy": 1,
    "padding": 2,
    "processor": 2,
    "models": 2,
    "datasets": 3,
    "checkpoint": 3,
    "inference": 4,
    "captioning": 5,
    "evaluation": 5,
    "report": 5,
    "doctor": 5,
    "serve": 5,
    "configs": 6,
    "train": 6,
    "cli": 7,
    "app": 8,
}
"""The house, from the ground up; modules beside these are given the lowest level that their imports allow."""
NEIGHBOURS = {("structures", "errors"), ("processor", "padding"), ("evaluation", "report"), ("doctor", "report")}
"""Who may look across on one level: the first at the second, never back."""
STRANGERS = ("mmcv", "mmdet", "llava")
ROI_ALIGN = PACKAGE / "models" / "roi_align.py"

FILES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    """Returns a file's dotted name inside the package; an empty one for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported(path: Path) -> list[tuple[int, str]]:
    """Returns the line and the dotted name of every import in a file, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            # `from package import module` may name a module.
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def ours(path: Path) -> list[tuple[int, str]]:
    """Returns the imports of a file from this package, without its own name in front."""
    return [(line, name.removeprefix("gpt4roi.")) for line, name in imported(path) if name.startswith("gpt4roi.")]


def room(name: str) -> str | None:
    """Returns the longest part of a dotted name that has a place in the house."""
    parts = name.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in LEVELS), None)


def level(name: str, seen: tuple[str, ...] = ()) -> int:
    """Returns the level of a module: its room's, or for one outside the house one that its imports need."""
    place = room(name)
    if place is not None:
        return LEVELS[place]
    path = next((path for path in FILES if module_name(path) == name.split(".")[0]), None)
    if path is None or name in seen:
        return 0
    return max((level(target, (*seen, name)) for _, target in ours(path)), default=0)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_to_a_lower_level_or_stay_in_the_package(path):
    name = module_name(path)
    if not name:
        return
    upwards = []
    for line, target in ours(path):
        source_room, target_room = room(name), room(target)
        same_package = name.split(".")[0] == target.split(".")[0] and source_room != "checkpoint.legacy"
        beside_the_house = source_room is None or target_room is None
        across = beside_the_house or (source_room, target_room) in NEIGHBOURS
        allowed = level(target) < level(name) or (across and level(target) == level(name))
        if not same_package and not allowed:
            upwards.append(f"line {line}: {name} (level {level(name)}) imports {target} (level {level(target)})")
    assert not upwards, upwards


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_package_of_the_original_is_imported(path):
    strangers = [name for _, name in imported(path) if name.split(".")[0] in STRANGERS]
    assert not strangers or path == ROI_ALIGN, strangers


def test_processor_and_models_do_not_know_each_other():
    of_models = [path for path in FILES if module_name(path).startswith("models")]
    assert not [path for path in of_models if any(name.startswith("processor") for _, name in ours(path))]
    assert not [name for _, name in ours(PACKAGE / "processor.py") if name.startswith("models")]


def test_importing_the_package_does_not_import_torch():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert "torch" not in names and "transformers" not in names
