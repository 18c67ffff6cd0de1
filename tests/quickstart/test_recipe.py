"""The recipes of the quickstart: what they ask of the training, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpt4roi.errors import InputError
from gpt4roi.train.command_line import parse_arguments
from gpt4roi.train.work_dir import parse_flags
from quickstart import recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "quickstart").glob("recipe*.json"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train.jsonl", "train_photographs.jsonl"):
        (tmp_path / "data" / name).write_text("{}\n")
    return tmp_path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_every_setting_of_a_recipe_is_an_argument_of_the_training(path, stage, folder):
    written = recipe.arguments(stage, json.loads(path.read_text()), folder)
    flags = parse_flags(["--stage", stage[-1], "--output_dir", str(folder / stage), *written])
    arguments = parse_arguments(flags)
    assert arguments.training.max_steps > 0
    assert arguments.data.feature_cache == str(folder / "features")
    for entry in json.loads((folder / f"{stage}.json").read_text()):
        assert Path(entry["ann_file"]).is_file()
        assert all(count > 0 for count in entry["pairs_per_epoch"].values())


def test_the_recipe_of_one_token_is_that_of_version_0_1(folder):
    values = json.loads((ROOT / "quickstart/recipe_one_token.json").read_text())
    flags = parse_flags(["--stage", "2", "--output_dir", "x", *recipe.arguments("stage2", values, folder)])
    arguments = parse_arguments(flags)
    assert (arguments.model.tokens_per_region, arguments.model.classifier_head) == (1, None)
    assert (arguments.training.max_steps, arguments.training.global_batch_size) == (220, 4)
    drawn = {"caption": 3, "larger": 3, "left": 2, "above": 2, "count": 1}
    assert [entry["pairs_per_epoch"] for entry in json.loads((folder / "stage2.json").read_text())] == [drawn]


def test_a_file_that_the_data_lack_is_left_out_with_a_word(folder, capsys):
    (folder / "data/train_photographs.jsonl").unlink()
    sets = recipe.data_sets({"train.jsonl": {"caption": 4}, "train_photographs.jsonl": {"caption": 6}}, folder / "data")
    assert [(Path(entry["ann_file"]).name, entry["pairs_per_epoch"]) for entry in sets] == [
        ("train.jsonl", {"caption": 4})
    ]
    assert "train_photographs.jsonl is not there: trained without it" in capsys.readouterr().err


def test_a_folder_without_any_of_the_files_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none of train.jsonl is in .*; make the data first: python -m quickstart"):
        recipe.data_sets({"train.jsonl": {"caption": 4}}, tmp_path)


def test_another_file_is_no_recipe(tmp_path):
    (tmp_path / "other.json").write_text('{"stage1": {}}')
    with pytest.raises(InputError, match="expected a recipe with model, both_stages, stage2"):
        recipe.main("stage1", str(tmp_path / "other.json"), str(tmp_path))
