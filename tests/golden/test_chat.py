"""The recorded model, in the original's folder, answers through RegionChat and the command line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpt4roi import InputError, RegionChat
from gpt4roi.cli import main

FOLDER = Path(__file__).parent / "original_format_folder"


@pytest.fixture
def towerless(tmp_path):
    """The folder without its tower, and the tower elsewhere."""
    shutil.copytree(FOLDER, tmp_path / "model", ignore=shutil.ignore_patterns("clip"))
    shutil.copytree(FOLDER / "clip", tmp_path / "elsewhere" / "tower")
    return tmp_path / "model", tmp_path / "elsewhere" / "tower"


@pytest.fixture
def image(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    return tmp_path / "p.png"


@pytest.mark.heavy
def test_a_folder_in_the_original_format_answers_about_boxes(image):
    chat = RegionChat.from_pretrained(FOLDER, dtype="float32")
    answers = chat.describe(image, [[5, 5, 60, 60], [40, 20, 110, 80]], max_new_tokens=8)
    chat.set_image(image)
    assert answers[0] == chat.ask(chat.default_question, [[5, 5, 60, 60]], max_new_tokens=8)


@pytest.mark.heavy
def test_a_tower_that_lies_elsewhere_can_be_named(towerless, image):
    model, tower = towerless
    with pytest.raises(InputError, match="vision_tower"):
        RegionChat.from_pretrained(model, dtype="float32")
    boxes = [[5, 5, 60, 60]]
    named = RegionChat.from_pretrained(model, dtype="float32", vision_tower=tower)
    whole = RegionChat.from_pretrained(FOLDER, dtype="float32")
    assert named.describe(image, boxes, max_new_tokens=8) == whole.describe(image, boxes, max_new_tokens=8)


@pytest.mark.heavy
def test_the_command_line_names_the_flag_for_a_missing_tower(towerless, image, capsys):
    model, tower = towerless
    words = ["describe", str(image), "--box", "5,5,60,60", "--max-new-tokens", "2", "--model", str(model)]
    assert main(words) == 2
    assert "vision_tower" in capsys.readouterr().err
    assert main([*words, "--vision-tower", str(tower)]) == 0
    assert capsys.readouterr().out.startswith("1\t5,5,60,60\t")
