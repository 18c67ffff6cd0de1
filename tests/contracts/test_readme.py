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
from gpt4roi.train.arguments import STAGE_DEFAULTS
from gpt4roi.train.command_line import parse

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "data/*.md", "benchmarks/*.md", "examples/*.md", "docs/**/*.md")
    for path in ROOT.glob(pattern)
)
README = (ROOT / "README.md").read_text(encoding="utf-8")
STAGE = re.compile(r"train_stage([12])\.sh")
NOT_RUN = "<!-- not run:"
"""Excludes the block after it, with the reason: `<!-- not run: needs an account -->` on a line of its own."""


def page_text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, less those that are marked as not run."""
    found = re.findall(rf"^([^\n]*)\n```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [block for before, block in found if not before.startswith(NOT_RUN)]


def command_lines(page: str) -> list[list[str]]:
    """The words of every command in a page's shell blocks."""
    lines = "\n".join(blocks(page_text(page), "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := split_command(line))]


def split_command(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # a line of a shell function
        return []


def check_command(words: list[str], folder: Path) -> bool:
    """Parses a command of ours as the program would; False where it is another program's."""
    if "gpt4roi.cli" in words:
        words = ["gpt4roi", *words[words.index("gpt4roi.cli") + 1 :]]
    if words[0] == "gpt4roi" and words[1] == "train":
        check_training(words[2:], folder)
    elif words[0] == "gpt4roi" and not words[1].startswith("-"):
        build_parser(words[1]).parse_args(words[2:])
    elif words[:2] == ["python3", "-m"] and words[2].startswith("scripts."):
        build_parser(words[2].removeprefix("scripts.").replace("_", "-")).parse_args(words[3:])
    elif words[0] == "bash" and (stage := next(filter(None, map(STAGE.match, words)), None)):
        start = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
        check_training(["--stage", stage[1], *words[start:]], folder)
    elif words[0] in ("bash", "python") and not words[1].startswith("-"):
        assert (ROOT / words[1]).is_file()
    else:
        return False
    return True


def check_training(flags: list[str], folder: Path) -> None:
    """Parses the flags of a training. Sharding, which wants GPUs, is left out, and so is what those alone can do."""
    flags = [flag for flag in flags if flag not in ("--fsdp", "--estimate")]
    parse([*flags, "--output_dir", str(folder), "--report_to", "none", "--use_cpu"])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder in which the files lie that pages name, with a tiny model as the quickstart's."""
    folder = tmp_path_factory.mktemp("checkout")
    image = Image.fromarray(np.full((300, 420, 3), 90, dtype=np.uint8))
    for name in ("photo.jpg", "photos/photo.jpg", "exp/quickstart/data/images/test/000005.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
    boxes = [{"image_id": "photo.jpg", "bbox": [40, 30, 170, 160], "score": score} for score in (0.9, 0.1)]
    (folder / "detections.json").write_text(json.dumps(boxes))
    annotations = [{"id": id, "image_id": 1, "bbox": [40 * id, 30, 100, 90]} for id in (1, 2, 3)]
    table = {"images": [{"id": 1, "file_name": "photo.jpg", "width": 420, "height": 300}], "annotations": annotations}
    (folder / "instances.json").write_text(json.dumps(table))
    coco = {"annotations": [{"id": 1, "attributes": {"caption": "a red apple"}}]}
    (folder / "instances_default.json").write_text(json.dumps(coco))
    model = tiny_model("pyramid")
    model.save_pretrained(folder / "exp/quickstart/stage2")
    tiny_processor(model.config).save_pretrained(folder / "exp/quickstart/stage2")
    return folder


PYTHON = [
    (page, number) for page in PAGES if page != "README.md" for number in range(len(blocks(page_text(page), "python")))
]


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_heading_that_a_page_links_to_exists(page):
    missing = []
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", page_text(page)):
        target = (ROOT / page).parent / link if link else ROOT / page
        if "://" in link or link.startswith("mailto:"):
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor[1:] not in anchors(target)):
            missing.append(link + anchor)
    assert not missing


def anchors(page: Path) -> set[str]:
    """The addresses of a page's headings, as code hosts and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_subcommand_that_a_page_shows_is_one():
    text = "\n".join(map(page_text, PAGES))
    shown = re.findall(r"`(?:\.venv/bin/)?gpt4roi ([a-z-]+)", text)
    assert {"describe", "apply-delta"} <= set(shown) <= set(subcommand_names())


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)])
def test_every_command_line_of_a_page_is_understood(page, tmp_path):
    ours = [words for words in command_lines(page) if check_command(words, tmp_path)]
    assert ours or page in ("docs/http.md", "docs/sharing.md", "data/README.md", "benchmarks/README.md")


def test_the_readme_shows_commands_of_every_kind():
    shown = {word for words in command_lines("README.md") for word in words[:2]}
    assert {"describe", "demo", "evaluate", "train_stage1.sh", "train_stage2.sh", "scripts/quickstart.sh"} <= shown


@pytest.mark.heavy
@pytest.mark.parametrize(("page", "number"), PYTHON)
def test_the_python_of_a_page_runs_as_it_stands(page, number, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    exec(compile(blocks(page_text(page), "python")[number], page, "exec"), {})


@pytest.mark.heavy
def test_the_python_of_the_readme_prints_one_answer_a_box(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    (code,) = blocks(README, "python")
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


def test_the_lines_of_json_for_own_photographs_are_read(tmp_path):
    (lines,) = blocks(page_text("docs/own_photographs.md"), "json")
    (tmp_path / "train.jsonl").write_text(lines, encoding="utf-8")
    assert [
        len(UnifiedDataset(tmp_path / "train.jsonl").sample(i, np.random.default_rng(0)).boxes_px) for i in (0, 1)
    ] == [
        2,
        1,
    ]


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
