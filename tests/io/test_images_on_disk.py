"""Images are found by the names that annotation files give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt4roi.io.images_on_disk import find_image, find_image_by_stem, index_images


@pytest.fixture
def folder(tmp_path):
    for name in ("a/000000000007.JPG", "b/7.png", "here.jpg", "000000581857.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("b/7.png", "b/7.png"),
        ("/b/7.png", "b/7.png"),
        ("train2017/here.jpg", "here.jpg"),
        ("COCO_train2014_000000581857.jpg", "000000581857.jpg"),
        ("other_000000581857.jpg", "other_000000581857.jpg"),
        ("train2017/none.jpg", "none.jpg"),
    ],
)
def test_an_image_is_found_by_its_path_its_bare_name_or_its_name_of_2017(folder, name, found):
    assert find_image(folder, name) == folder / found
    assert find_image([folder, folder / "a"], name) == folder / found


def test_the_first_folder_that_has_an_image_is_taken(folder):
    assert find_image([folder / "a", folder], "x/here.jpg") == folder / "here.jpg"


def test_images_are_indexed_by_number_and_by_every_name(folder):
    known = index_images(folder)
    assert known[7] == Path("a/000000000007.JPG")
    assert known["7"] == known["7.png"] == known["b/7.png"] == Path("b/7.png")
    assert "notes" not in known


def test_an_image_is_found_by_its_stem_whatever_the_case_of_its_ending(folder):
    assert find_image_by_stem(folder / "a", "000000000007") == folder / "a" / "000000000007.JPG"
    assert find_image_by_stem(folder, "notes") is None
