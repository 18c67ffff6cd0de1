"""transformers' Auto classes open a folder of ours in a process without gpt4roi imported, or say what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_processor

from gpt4roi.checkpoint.convert import plan_convert
from gpt4roi.models import GPT4RoIConfig, GPT4RoIForConditionalGeneration
from gpt4roi.processing.processor import GPT4RoIProcessor

RECORDED = Path(__file__).parents[1] / "golden/original_format_folder"
OPEN = """
import sys
{before}
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
assert "gpt4roi" not in sys.modules
trust = {{"trust_remote_code": {trust}}}
processor = AutoProcessor.from_pretrained("model", **trust)
config = AutoConfig.from_pretrained("model", **trust)
model = AutoModelForImageTextToText.from_pretrained("model", **trust)
print(*[type(one).__module__ + "." + type(one).__name__ for one in (config, model, processor)])
model.save_pretrained("again")
processor.save_pretrained("again")
"""
WITHOUT_THE_PACKAGE = """
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "gpt4roi":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.fixture
def folder(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    tiny_processor(model.config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(folder, trust, before=""):
    environment = os.environ | {"HF_MODULES_CACHE": str(folder.parent / "modules")}
    code = OPEN.format(trust=trust, before=before)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder.parent, env=environment, capture_output=True, text=True, input="n\n"
    )


@pytest.mark.heavy
def test_the_real_classes_are_opened_and_what_they_save_is_the_same_folder(folder):
    done = run(folder, True)
    assert done.returncode == 0, done.stderr
    classes = (GPT4RoIConfig, GPT4RoIForConditionalGeneration, GPT4RoIProcessor)
    assert done.stdout.split() == [f"{one.__module__}.{one.__name__}" for one in classes]
    again = folder.parent / "again"
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in folder.iterdir())
    for name in ("processor_config.json", "gpt4roi_auto.py"):
        assert (again / name).read_text() == (folder / name).read_text()
    assert json.loads((again / "config.json").read_text())["auto_map"]["AutoConfig"] == "gpt4roi_auto.GPT4RoIConfig"
    before, after = (load_file(place / "model.safetensors") for place in (folder, again))
    assert all(torch.equal(before[name], after[name]) for name in before | after)


@pytest.mark.heavy
def test_without_the_package_or_without_trust_the_error_says_so(folder):
    missing = run(folder, True, WITHOUT_THE_PACKAGE)
    assert missing.returncode == 1 and "pip install gpt4roi" in missing.stderr.splitlines()[-1]
    asked = run(folder, None)
    assert asked.returncode == 1 and "trust_remote_code=True" in asked.stderr


def test_every_folder_that_is_written_has_the_file_that_its_configurations_name(folder):
    plan_convert(RECORDED, folder.parent / "ours", "hf").write()
    for place in (folder, folder.parent / "ours"):
        named = {**json.loads((place / "config.json").read_text())["auto_map"]}
        named |= json.loads((place / "processor_config.json").read_text())["auto_map"]
        assert set(named) == {"AutoConfig", "AutoModelForImageTextToText", "AutoProcessor"}
        assert {name.split(".")[0] for name in named.values()} == {"gpt4roi_auto"}
        assert (place / "gpt4roi_auto.py").is_file()
        assert 'from_pretrained("FOLDER", trust_remote_code=True)' in (place / "README.md").read_text()
