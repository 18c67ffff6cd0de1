"""Folders of ours that were written without the tower, and names of the hub."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gpt4roi.checkpoint.convert import plan_convert
from gpt4roi.checkpoint.loading import load_model, load_processor
from gpt4roi.errors import InputError
from gpt4roi.models import GPT4RoIForConditionalGeneration

RECORDED = Path(__file__).parents[1] / "golden/original_format_folder"
HUB_NAME = "someone/gpt4roi-tiny"


@pytest.fixture(scope="module")
def model():
    """The recorded folder, opened with the tower beside it."""
    return GPT4RoIForConditionalGeneration.from_pretrained(RECORDED)


@pytest.fixture
def towerless(tmp_path) -> Path:
    """The recorded folder in our format, converted where its tower could not be found."""
    shutil.copytree(RECORDED, tmp_path / "original")
    shutil.move(tmp_path / "original/clip", tmp_path / "elsewhere")
    plan = plan_convert(tmp_path / "original", tmp_path / "ours", "hf")
    assert "was not found and is not inside: name it with --vision-tower" in plan.summary
    plan.write()
    return tmp_path / "ours"


def assert_same_model(got, expected) -> None:
    ours, theirs = got.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.heavy
@pytest.mark.parametrize("place", ["named", "in the folder", "in the working directory"])
def test_a_folder_without_its_tower_opens_with_the_tower_wherever_it_lies(towerless, model, place, monkeypatch):
    named = {"vision_tower": towerless.parent / "elsewhere"} if place == "named" else {}
    if place == "in the folder":
        shutil.move(towerless.parent / "elsewhere", towerless / "clip")
    if place == "in the working directory":
        shutil.move(towerless.parent / "elsewhere", towerless.parent / "clip")
        monkeypatch.chdir(towerless.parent)
    opened = load_model(towerless, **named)
    assert_same_model(opened, model)
    assert (opened.config.image_size, opened.config.image_seq_length) == (224, 256)
    assert opened.generation_config.eos_token_id == 2
    processor = load_processor(towerless, **named)
    assert (processor.image_size, processor.image_seq_length, processor.region_token_id) == (224, 256, 602)


@pytest.mark.heavy
def test_the_tower_that_is_named_decides_the_image_s_size(towerless):
    tower = towerless.parent / "elsewhere"
    config = json.loads((tower / "config.json").read_text())
    nested = config.get("vision_config", config)
    nested |= {"image_size": 336}
    (tower / "config.json").write_text(json.dumps(config))
    tensors = torch.load(tower / "pytorch_model.bin", weights_only=True)
    for name in [name for name in tensors if "position" in name]:
        rows = torch.zeros(577, tensors[name].shape[1]) if name.endswith("weight") else torch.arange(577)[None]
        tensors[name] = rows
    torch.save(tensors, tower / "pytorch_model.bin")
    opened, processor = load_model(towerless, vision_tower=tower), load_processor(towerless, vision_tower=tower)
    assert (opened.config.image_size, opened.vision_tower.image_size, opened.config.image_seq_length) == (336, 336, 576)
    assert (processor.image_size, processor.image_seq_length) == (336, 576)


def test_without_any_tower_one_line_says_how_to_name_it(towerless):
    with pytest.raises(InputError, match=r"vision tower 'clip' not found: .*vision_tower=.*--vision-tower") as caught:
        load_model(towerless)
    assert "\n" not in str(caught.value)


def cache_as_hub(folder: Path, cache: Path) -> Path:
    """Puts a folder where the hub's library keeps what it has fetched."""
    place = cache / f"models--{HUB_NAME.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots/0123abcd")
    (place / "refs").mkdir()
    (place / "refs/main").write_text("0123abcd")
    return cache


@pytest.mark.heavy
@pytest.mark.parametrize("form", ["original", "ours"])
def test_a_hub_name_opens_from_the_cache_in_both_formats(tmp_path, model, form, caplog):
    folder = RECORDED
    if form == "ours":
        model.save_pretrained(tmp_path / "ours")
        load_processor(RECORDED).save_pretrained(tmp_path / "ours")
        folder = tmp_path / "ours"
    cache = cache_as_hub(folder, tmp_path / "cache")
    access = {"cache_dir": cache, "local_files_only": True}
    with caplog.at_level("INFO", logger="gpt4roi"):
        opened = load_model(HUB_NAME, **access)
    assert_same_model(opened, model)
    assert f"opened {HUB_NAME}, in {'our' if form == 'ours' else 'the original'}" in caplog.messages[0]
    assert load_processor(HUB_NAME, **access).region_token_id == 602


def test_a_hub_name_that_nobody_has_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"someone/gpt4roi-tiny: no such folder, not in the hub's cache") as caught:
        load_model(HUB_NAME, cache_dir=tmp_path, local_files_only=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", r"is a pointer of Git LFS .*git lfs pull"),
        (None, r"model.safetensors is cut off or damaged \(\d+ bytes"),
    ],
)
def test_damaged_weights_of_our_folder_are_one_line(tmp_path, model, content, message):
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(content or file.read_bytes()[:-100])
    with pytest.raises(InputError, match=message) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.heavy
def test_what_is_saved_names_no_folder_of_this_machine(tmp_path):
    shutil.copytree(RECORDED, tmp_path / "in")
    shutil.move(tmp_path / "in/clip", tmp_path / "tower")
    load_model(tmp_path / "in", vision_tower=tmp_path / "tower").save_pretrained(tmp_path / "out")
    load_processor(tmp_path / "in", vision_tower=tmp_path / "tower").save_pretrained(tmp_path / "out")
    load_model(tmp_path / "out").save_pretrained(tmp_path / "again")
    load_processor(tmp_path / "out").save_pretrained(tmp_path / "again")
    written = [file for name in ("out", "again") for file in (tmp_path / name).iterdir() if file.suffix != ".model"]
    assert len(written) >= 8
    assert not [file for file in written if str(tmp_path).encode() in file.read_bytes()]
    assert "vision_tower.backbone.pre_layrnorm.weight" in load_file(tmp_path / "again/model.safetensors")


def test_a_tower_that_is_not_found_names_each_place_once(towerless):
    with pytest.raises(InputError, match=r"looked for a config\.json in") as error:
        load_model(towerless)
    places = re.search(r"config.json in (.*?);", str(error.value)).group(1).split(", ")
    assert places == [str(towerless / "clip"), "clip"]
