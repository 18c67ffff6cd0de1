"""Images are found by the names that annotation files give them."""

from __future__ import annotations

import pytest

from gpt4roi.io.images_on_disk import ImageFinder, find_image_by_stem


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
    assert ImageFinder(folder)(name) == folder / found
    assert ImageFinder([folder, folder / "a"])(name) == folder / found


def test_the_first_folder_that_has_an_image_is_taken(folder):
    assert ImageFinder([folder / "a", folder])("x/here.jpg") == folder / "here.jpg"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("b\\7.png", "b/7.png"),
        ("C:\\Users\\me\\b\\7.png", "b/7.png"),
        ("https://host.org/v1/b/7.png?token=3", "b/7.png"),
        ("/data/local-files/?d=b/7.png", "b/7.png"),
        ("https://host/x/b/7.png?sig=1&d=2", "b/7.png"),
        (" b/7.png\n", "b/7.png"),
        ("file:///home/me/b/7.png", "b/7.png"),
        ("b%2F7.png", "b/7.png"),
        ("two%20words.png", "a/two words.png"),
        ("v2/patch0/7.png", "b/7.png"),
        ("7", "b/7.png"),
        ("7.jpg", "a/000000000007.JPG"),
        ("COCO_val2014_000000000007.jpg", "a/000000000007.JPG"),
        ("HERE.JPG", "here.jpg"),
        ("42", "val/COCO_val2014_000000000042.jpg"),
        ("000000000042.jpg", "val/COCO_val2014_000000000042.jpg"),
        ("x/b/same.png", "b/same.png"),
        ("same.png", None),
        ("x/c/same.png", None),
        ("notes", None),
        ("", None),
        ("..", None),
        ("a\0b", None),
        ("x" * 300, None),
    ],
)
def test_names_of_other_machines_programs_and_years_are_found(folder, name, found):
    for one in ("a/two words.png", "val/COCO_val2014_000000000042.jpg", "a/same.png", "b/same.png"):
        (folder / one).parent.mkdir(exist_ok=True)
        (folder / one).touch()
    assert ImageFinder(folder).find(name) == (None if found is None else folder / found)


def test_an_absolute_path_is_taken_where_the_folder_has_none(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("other") / "x.jpg"
    elsewhere.touch()
    assert ImageFinder(folder).find(str(elsewhere)) == elsewhere


def test_an_image_is_found_by_its_stem_whatever_the_case_of_its_ending(folder):
    assert find_image_by_stem(folder / "a", "000000000007") == folder / "a" / "000000000007.JPG"
    assert find_image_by_stem(folder, "notes") is None
