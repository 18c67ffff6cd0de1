"""docs/architecture.md lists every module with the first line of its docstring."""

from __future__ import annotations

import pytest

from scripts.architecture import MARKER, PAGE, whole_page


@pytest.mark.heavy
def test_the_list_of_modules_is_what_their_docstrings_say():
    page = PAGE.read_text(encoding="utf-8")
    assert MARKER in page
    assert page == whole_page(), "out of date: run `python scripts/architecture.py --write`"
