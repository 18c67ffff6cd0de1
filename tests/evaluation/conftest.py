"""Recordings of the field's metric tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics" / "metrics_shared.json"


@pytest.fixture(scope="session")
def golden():
    """Predictions with the scores that the field's tools gave them."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))
