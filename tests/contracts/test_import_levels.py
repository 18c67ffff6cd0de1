"""Contract: a module of gpt4roi imports only modules that stand before it in the one table of levels, `house.txt`.

Imports inside functions, for type checkers, `from package import module` and import_module("…") count as every other.
No two packages import each other. Processing and models do not, in either direction. Nothing imports mmcv, mmdet, a
LLaVA package or what lies beside the package; the one exception is the optional backend of RoIAlign.
"""

from __future__ import annotations

import pytest

from scripts import house

MODULES = house.modules()
LEVELS = house.levels()
SOURCES = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
STRANGERS = ("mmcv", "mmdet", "llava", "quickstart", "benchmarks", "scripts", "tests")
ROI_ALIGN = "models.kernels.roi_align"
FACADES = {"models": "processing", "processing": "models"}
"""Packages that never import each other."""


def test_every_module_has_one_level_and_every_level_a_module():
    table = house.TABLE.read_text(encoding="utf-8").split()
    assert sorted(table) == sorted(MODULES), "tests/contracts/house.txt lists every module once"


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_in_the_table(name):
    assert not house.upward_imports(name, SOURCES[name], LEVELS)


@pytest.mark.parametrize(
    "line",
    [
        "import gpt4roi.cli",
        "from gpt4roi import cli",
        "from gpt4roi.cli import main",
        "def f():\n    import gpt4roi.cli",
        "if TYPE_CHECKING:\n    from gpt4roi.cli import main",
        "importlib.import_module('gpt4roi.cli')",
        "from gpt4roi import RegionChat",
        "from gpt4roi.no_such_module import name",
    ],
)
def test_an_import_upwards_is_found_in_every_form(line):
    assert house.upward_imports("structures", line, LEVELS)


def test_no_packages_import_each_other():
    assert not house.package_cycles(SOURCES)


def test_a_cycle_of_packages_is_found_also_through_a_third():
    sources = {
        "models.a": "import gpt4roi.checkpoint.b",
        "checkpoint.b": "from gpt4roi.io import c",
        "io.c": "from gpt4roi.models.a import f",
    }
    assert house.package_cycles(sources) == ["checkpoint <-> io", "checkpoint <-> models", "io <-> models"]


def test_nothing_relative_and_no_stranger_is_imported():
    strangers = [
        (name, target)
        for name, source in SOURCES.items()
        for _, target in house.imports(source)
        if target.split(".")[0] in ("", *STRANGERS) and name != ROI_ALIGN
    ]
    assert not strangers


def test_processing_and_models_do_not_know_each_other():
    acquaintances = [
        (name, target)
        for name, source in SOURCES.items()
        for _, target in house.own_imports(source, MODULES)
        if target.split(".")[0] == FACADES.get(name.split(".")[0])
    ]
    assert not acquaintances
