"""Recordings of the original at small size, and the model they were made with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from gpt4roi.models import GPT4RoIForConditionalGeneration

GOLDEN = Path(__file__).parent


@pytest.fixture(scope="session")
def original_folder() -> Path:
    """A checkpoint folder as the original saves it."""
    return GOLDEN / "original_format_folder"


@pytest.fixture(scope="session")
def narrow(original_folder):
    """The narrow model, opened from the original-format folder; tests leave its weights as they are."""
    return GPT4RoIForConditionalGeneration.from_pretrained(original_folder).eval()


@pytest.fixture(scope="session")
def recorded():
    """Inputs and intermediate results of one training step of the original, by name."""
    return load_file(GOLDEN / "model" / "narrow_io.safetensors")


@pytest.fixture(scope="session")
def recorded_cases():
    """Edge cases and a generation of the original, by name."""
    return load_file(GOLDEN / "model" / "narrow_cases.safetensors")


@pytest.fixture(scope="session")
def facts():
    """Numbers recorded beside the tensors."""
    return json.loads((GOLDEN / "model" / "narrow_facts.json").read_text())


@pytest.fixture(scope="session")
def boxes(recorded):
    """The boxes of the three recorded samples; the last has none."""
    return [recorded[f"boxes_{sample}"] for sample in range(3)]
