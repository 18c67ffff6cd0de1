"""COCO's and LVIS's tables have one reading."""

from __future__ import annotations

import pytest

from gpt4roi.errors import InputError
from gpt4roi.geometry.frames import oriented_size
from gpt4roi.io import coco
from gpt4roi.io.coco import InvalidAnnotationError, annotation_box

RUNS = {"size": [4, 6], "counts": [0, 24]}


def test_tables_and_the_names_of_categories_are_read():
    content = {"images": [1], "annotations": [], "categories": [{"id": 2, "name": "a_b"}, {"id": True, "name": "x"}, 7]}
    tables = coco.read_tables(content, "a.json")
    assert (tables.images, tables.annotations, tables.categories) == ([1], [], {2: "a_b"})
    assert coco.read_tables({"images": [], "annotations": []}, "a.json").categories is None
    with pytest.raises(InputError, match=r"a\.json: expected a list under 'annotations' \(a file in COCO's form\)"):
        coco.read_tables({"images": []}, "a.json")


def test_an_image_is_named_by_its_file_or_by_the_end_of_its_address():
    url = "http://images.cocodataset.org/train2017/000000391895.jpg"
    assert coco.image_file_name({"file_name": "a/b.jpg", "coco_url": url}) == "a/b.jpg"
    assert coco.image_file_name({"file_name": "", "coco_url": url}) == "train2017/000000391895.jpg"
    assert coco.image_file_name({"coco_url": None}) == ""


@pytest.mark.parametrize(
    ("annotation", "box"),
    [
        ({"bbox": [1, 2, 3, 4], "segmentation": RUNS}, [1, 2, 4, 6]),
        ({"bbox": None, "segmentation": RUNS}, [0, 0, 6, 4]),
        ({"bbox": [], "segmentation": [[1, 1, 5, 1, 5, 3]]}, [1, 1, 5, 3]),
    ],
)
def test_a_box_comes_from_bbox_or_else_from_the_segmentation(annotation, box):
    assert annotation_box(annotation) == annotation_box(annotation, (4, 6)) == box


@pytest.mark.parametrize("bbox", [None, [1, 2, 3], "1234", [1, 2, 3, True], [1, 2, 3, float("nan")], [1, 2, 3, 1e8]])
def test_a_box_that_is_not_four_numbers_is_refused(bbox):
    with pytest.raises(InvalidAnnotationError, match="box "):
        annotation_box({"bbox": bbox})


def test_a_mask_of_another_image_size_is_refused():
    with pytest.raises(InputError, match="the mask is 6x4 but the image is 4x6 pixels"):
        annotation_box({"segmentation": RUNS}, (6, 4))


def test_ids_are_numbers_or_texts():
    assert [coco.is_id(value) for value in (1, 1.0, "a", True, None, [1], float("nan"))] == [True] * 3 + [False] * 4


def test_an_image_turned_by_its_exif_data_has_its_sides_exchanged():
    assert oriented_size((3, 4), True) == (4, 3)
    assert oriented_size((3, 4), False) == (3, 4)
