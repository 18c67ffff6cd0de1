"""A language model, a tower and data in folders, as a training finds them; all tiny."""

from __future__ import annotations

import pytest
from squares import write_parts


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """Folders `language_model`, `clip` and `pyramid`, and `train.jsonl` with eight images of coloured squares."""
    return write_parts(tmp_path_factory.mktemp("parts"))
