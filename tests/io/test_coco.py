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
        ({"bbox": [0, 0, 0, 0], "segmentation": [[1, 1, 5, 1, 5, 3]]}, [1, 1, 5, 3]),
        ({"bbox": [2, 2, 0, 1], "segmentation": [[1, 1, 5, 1, 5, 3]]}, [1, 1, 5, 3]),
        ({"bbox": [None] * 4, "segmentation": RUNS}, [0, 0, 6, 4]),
        ({"bbox": [float("nan")] * 4, "segmentation": RUNS}, [0, 0, 6, 4]),
        ({"bbox": ["1", "2", "3.0", " 4 "]}, [1, 2, 4, 6]),
        ({"bbox": "[1, 2, 3, 4]"}, [1, 2, 4, 6]),
    ],
)
def test_a_box_comes_from_bbox_or_else_from_the_segmentation(annotation, box):
    assert annotation_box(annotation) == annotation_box(annotation, (4, 6)) == box


@pytest.mark.parametrize(
    "bbox", [None, [1, 2, 3], "1234", [1, 2, 3, True], [*"123x"], [1, 2, 3, float("nan")], [1, 2, 3, 1e8]]
)
def test_a_box_that_is_not_four_numbers_is_refused(bbox):
    with pytest.raises(InvalidAnnotationError, match="box "):
        annotation_box({"bbox": bbox})


@pytest.mark.parametrize(
    ("bbox", "stated"),
    [
        ([1, 2, 4, 6], {"box_format": "xyxy"}),
        ([1, 2, 3, 4], {"box_format": "xywh"}),
        ([2.5, 4, 3, 4], {"bbox_format": "CXCYWH"}),
        ("1, 2, 4, 6", {"bbox_mode": 0}),
        (["1", "2", "3", "4"], {"bbox_mode": "BoxMode.XYWH_ABS"}),
        ({"x1": 1, "y1": 2, "x2": "4", "y2": 6}, {}),
        ({"left": "1", "top": 2, "width": 3, "height": 4}, {"box_format": "xyxy"}),
    ],
)
def test_a_box_is_read_in_the_format_that_the_file_or_the_annotation_states(bbox, stated):
    image, plain = {"id": 1, "file_name": "a.jpg"}, {"image_id": 1, "bbox": bbox}
    of_file = {"images": [image], "annotations": [dict(plain)], **stated}
    of_row = {"images": [image], "annotations": [{**plain, **stated}], "box_format": "xyxy" if stated else None}
    for content in (of_file, of_row):
        assert annotation_box(coco.read_tables(content, "a.json").annotations[0]) == [1, 2, 4, 6]


def test_a_format_of_boxes_that_is_not_known_is_refused_with_its_place():
    rows = [{"image_id": 1, "bbox": [1, 2, 3, 4]}, {"image_id": 1, "bbox": [1, 2, 3, 4], "bbox_mode": 3}]
    with pytest.raises(InputError, match=r"a\.json#annotations\[1\]: box_format is 3; expected one of xyxy"):
        coco.read_tables({"images": [{"id": 1}], "annotations": rows}, "a.json")


def test_a_file_of_one_image_has_tables_too():
    content = {"annotations": [{"class_name": "cup", "bbox": [1, 2, 4, 6]}], "image_path": "a.jpg"}
    tables = coco.read_tables({**content, "box_format": "xyxy", "img_width": 8, "img_height": 9}, "a.json")
    assert (tables.images[0]["file_name"], coco.image_size(tables.images[0])) == ("a.jpg", (9, 8))
    assert annotation_box(tables.annotations[0]) == [1, 2, 4, 6]
    assert coco.stated_category(tables.annotations[0]) == "cup"


def test_boxes_in_fractions_are_refused_by_their_own_reason():
    for box in ([0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]):
        with pytest.raises(InvalidAnnotationError, match=r"looks like fractions; give pixels .* 40x30") as caught:
            coco.cut_box(box, (30, 40))
        assert caught.value.reason == "box in fractions instead of pixels"
    assert coco.cut_box([0.1, 0.2, 0.5, 0.6], None)[0] == [0.1, 0.2, 0.5, 0.6]
    assert coco.cut_box([0, 0, 1, 2], (30, 40)) == ([0, 0, 1, 2], False)


def test_a_mask_of_another_image_size_is_refused():
    with pytest.raises(InputError, match="the mask is 6x4 but the image is 4x6 pixels"):
        annotation_box({"segmentation": RUNS}, (6, 4))


def test_ids_are_numbers_or_texts():
    assert [coco.is_id(value) for value in (1, 1.0, "a", True, None, [1], float("nan"))] == [True] * 3 + [False] * 4


@pytest.mark.parametrize("value", [7, 7.0, "7", "7.0", "007", " 7 "])
def test_ids_are_compared_as_numbers_however_they_are_written(value):
    content = {
        "images": [{"id": value, "file_name": "a.jpg"}],
        "annotations": [{"id": value, "image_id": 7, "category_id": value}, {"image_id": value, "category_id": "cup"}],
        "categories": [{"id": value, "name": "cup"}],
    }
    tables = coco.read_tables(content, "a.json")
    assert tables.image_id(0) == tables.annotation_image(tables.annotations[1]) == 7
    assert [one["category_id"] for one in tables.annotations] == [7, 7] and tables.categories == {7: "cup"}


def test_an_id_that_two_images_have_is_of_neither_and_an_image_listed_twice_is_one():
    images = [{"id": 1, "file_name": "a"}, {"id": "1", "file_name": "b"}]
    images += [{"id": 2, "file_name": "c"}, {"id": 2.0, "file_name": "c"}, 7, {"file_name": "d"}]
    tables = coco.read_tables({"images": images, "annotations": []}, "a.json")
    found = []
    for position in range(len(images)):
        try:
            found.append(tables.image_id(position))
        except InvalidAnnotationError as error:
            found.append(error.reason)
    assert found == [
        *["image whose id another one has"] * 2,
        2,
        "image that is listed twice",
        "image that is not an object",
        "image without an id",
    ]


@pytest.mark.parametrize(
    ("value", "crowd"),
    [(0, False), (1, True), ("0", False), ("1", True), (None, False), ("False", False), (0.0, False), (True, True)],
)
def test_a_crowd_may_be_marked_in_text(value, crowd):
    assert coco.is_crowd({"iscrowd": value}) is crowd


def test_a_box_is_cut_at_the_border_or_refused():
    assert coco.cut_box([-5, 2, 8, 99], (4, 6)) == ([0, 2, 6, 4], True)
    assert coco.cut_box([0, 0, 6.5, 4], (4, 6)) == ([0, 0, 6, 4], False)
    assert coco.cut_box([-5, 2, 8, 99], None) == ([-5, 2, 8, 99], False)
    for box, reason in (([7, 1, 9, 3], coco.OUTSIDE), ([1, 1, 1, 3], coco.NO_AREA), ([3, 1, 1, 3], coco.NO_AREA)):
        with pytest.raises(InvalidAnnotationError, match="no area inside the image, which is 6x4") as caught:
            coco.cut_box(box, (4, 6))
        assert caught.value.reason == reason


def test_an_image_turned_by_its_exif_data_has_its_sides_exchanged():
    assert oriented_size((3, 4), True) == (4, 3)
    assert oriented_size((3, 4), False) == (3, 4)
