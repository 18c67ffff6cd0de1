"""What is no Python lies in the package too: an installed gpt4roi must hold every file that its code reads."""

import ast
import re
from pathlib import Path

import jinja2
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "gpt4roi"


def test_every_file_of_the_package_that_is_no_python_is_declared_as_package_data():
    listed = re.search(
        r"\[tool.setuptools.package-data\]\ngpt4roi = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.S
    )
    declared = {path for pattern in ast.literal_eval(listed[1]) for path in PACKAGE.glob(pattern)}
    there = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}

    assert there <= declared, sorted(path.name for path in there - declared)
    assert {path.name for path in declared} >= {"py.typed", "report.html", "report.css", "report.js", "page.js"}


@pytest.mark.parametrize("template", sorted(path.name for path in (PACKAGE / "report" / "templates").iterdir()))
def test_every_template_escapes_what_it_is_given(template):
    from gpt4roi.report.rendering import _environment

    source = (PACKAGE / "report" / "templates" / template).read_text()
    assert _environment().autoescape is True
    assert "|safe" not in source.replace(" ", "") and "autoescape" not in source
    jinja2.Environment().parse(source)
