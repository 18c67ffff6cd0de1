"""Contract: what the README and the pages beside it show is there, and works as it stands."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_model, tiny_processor

from gpt4roi.cli import build_parser, subcommand_names
from gpt4roi.data.registry import READERS, SUBSET_KEYS, read_config
from gpt4roi.data.unified import UnifiedDataset
from gpt4roi.train.defaults import STAGE_DEFAULTS
from gpt4roi.train.training import parse

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "data/*.md", "benchmarks/*.md", "examples/*.md", "docs/**/*.md")
    for path in ROOT.glob(pattern)
)
README = (ROOT / "README.md").read_text(encoding="utf-8")
STAGE = re.compile(r"train_stage([12])\.sh")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language; of none where it is empty."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def command_lines() -> list[list[str]]:
    """The words of every command in the README's shell blocks."""
    lines = "\n".join(blocks(README, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_links_to_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    missing = [link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()]
    assert not missing


def test_every_subcommand_that_a_page_shows_is_one():
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    shown = re.findall(r"`(?:\.venv/bin/)?gpt4roi ([a-z-]+)", text)
    shown += [words[1] for words in command_lines() if words[0] == "gpt4roi"]
    assert {"describe", "apply-delta"} <= set(shown) <= set(subcommand_names())


def test_every_command_line_of_the_readme_is_understood(tmp_path):
    understood = 0
    for words in command_lines():
        if words[0] == "gpt4roi":
            build_parser(words[1]).parse_args(words[2:])
        elif words[:2] == ["python3", "-m"]:
            build_parser(words[2].removeprefix("scripts.").replace("_", "-")).parse_args(words[3:])
        elif words[0] == "bash" and (stage := STAGE.match(words[1])):
            flags = words[next(place for place, word in enumerate(words) if word.startswith("--")) :]
            parse(["--stage", stage[1], "--output_dir", str(tmp_path), *flags])
        elif words[0] == "bash":
            assert (ROOT / words[1]).is_file()
        else:
            continue
        understood += 1
    assert understood >= 6


def test_the_python_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    (code,) = blocks(README, "python")
    (image,) = re.findall(r'"(exp/\S+\.png)"', code)
    (model_folder,) = re.findall(r'from_pretrained\("(\S+)"\)', code)
    monkeypatch.chdir(tmp_path)
    Path(image).parent.mkdir(parents=True)
    Image.fromarray(np.full((256, 256, 3), 90, dtype=np.uint8)).save(image)
    model = tiny_model("pyramid")
    model.save_pretrained(model_folder)
    tiny_processor(model.config).save_pretrained(model_folder)

    exec(compile(code, "README.md", "exec"), {})

    assert "[" in capsys.readouterr().out


def test_the_example_of_the_unified_format_is_read(tmp_path, pyramid_processor):
    page = (ROOT / "docs" / "unified_format.md").read_text(encoding="utf-8")
    example, shown_list = blocks(page, "json")
    (tmp_path / "train.jsonl").write_text(example, encoding="utf-8")

    data = UnifiedDataset(tmp_path / "train.jsonl")
    encoded = [
        pyramid_processor.encode_text(data.sample(index, np.random.default_rng(0)), image_size=(300, 400))
        for index in range(len(data))
    ]

    assert [len(one.get("boxes", ())) for one in encoded] == [2, 3, 0, 0]
    assert {entry["type"] for entry in json.loads(shown_list)} == {"unified"}


def test_the_line_of_json_in_the_readme_is_read(tmp_path):
    (line,) = blocks(README, "json")
    (tmp_path / "train.jsonl").write_text(line, encoding="utf-8")
    sample = UnifiedDataset(tmp_path / "train.jsonl").sample(0, np.random.default_rng(0))
    assert sample.image == str(tmp_path / "photos/1.jpg")
    assert sample.boxes_px.tolist() == [[40, 30, 210, 190]]


def test_the_list_on_the_page_of_data_sets_has_only_keys_that_are_accepted():
    (shown,) = blocks((ROOT / "docs" / "data_sets.md").read_text(encoding="utf-8"), "json")
    for entry in json.loads(shown):
        accepted = {"type", *inspect.signature(READERS[entry["type"]]).parameters, *SUBSET_KEYS}
        assert set(entry) <= accepted


def test_every_data_set_has_a_row_on_its_page():
    page = (ROOT / "docs" / "data_sets.md").read_text(encoding="utf-8")
    assert [name for name in READERS if name != "unified" and f"`{name}`" not in page] == []


@pytest.mark.parametrize("stage", STAGE_DEFAULTS)
def test_the_list_that_a_stage_reads_by_itself_is_there(stage):
    entries = read_config(ROOT / STAGE_DEFAULTS[stage]["dataset_config"])
    assert {entry["type"] for entry in entries} <= set(READERS)
