"""Example images of the page, from a file and from scikit-image."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from gpt4roi import InputError
from gpt4roi.demo.examples import SHIPPED, open_example, read_examples, shipped_examples


@pytest.fixture
def folder(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (60, 40), "red").save(tmp_path / "photos" / "cup.jpg", exif=exif)
    Image.new("RGB", (30, 20), "blue").save(tmp_path / "cup.png")
    return tmp_path


def write(folder, entries) -> None:
    (folder / "examples.json").write_text(json.dumps(entries))


def test_examples_of_a_file_have_their_boxes_on_the_upright_image(folder):
    boxes = [[1, 2, 39, 59.123]]
    write(folder, [{"image": "photos/cup.jpg", "title": "a cup", "boxes": boxes, "more": 1}, {"image": "cup.png"}])
    examples = read_examples(folder)
    assert list(examples) == ["cup", "cup-1"] and [one.title for one in examples.values()] == ["a cup", "cup"]
    assert examples == read_examples(folder / "examples.json")
    upload, drawn = open_example(examples, "cup")
    assert (upload.own_size, upload.file_name, drawn) == ((40, 60), "cup", [[1, 2, 39, 59.12]])
    assert open_example(examples, "cup-1")[1] == []
    with pytest.raises(InputError, match="no such example; there are cup, cup-1"):
        open_example(examples, "../cup")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "expected a list of 1 to 40 examples, got an object"),
        ([], "expected a list of 1 to 40 examples, got 0"),
        ([{"image": "cup.png"}, {"title": "a cup"}], "examples.json#1: expected an object with the path"),
        ([{"image": "no.png"}], "examples.json#0: .*no.png"),
        ([{"image": "cup.png", "boxes": [[0, 0, 90, 10]]}], "examples.json#0: box 1 .* reaches outside"),
        ([{"image": "cup.png", "boxes": 3}], "examples.json#0: title is a text"),
    ],
)
def test_an_example_that_cannot_be_shown_is_named_before_the_page_is_served(folder, entries, message):
    write(folder, entries)
    with pytest.raises(InputError, match=message):
        read_examples(folder)


def test_scikit_image_ships_the_others():
    pytest.importorskip("skimage")
    examples = shipped_examples()
    assert list(examples) == list(SHIPPED)
    upload, boxes = open_example(examples, "cat")
    assert (upload.own_size, upload.file_name, boxes) == ((451, 300), "chelsea", [])
