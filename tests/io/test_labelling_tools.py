"""Files of labelme and VIA: every shape with an area has the box around it, and its label."""

import json
from math import pi

import pytest

from gpt4roi.captioning.source import read_source
from gpt4roi.io.coco import InvalidAnnotationError, annotation_box, read_tables, stated_category
from gpt4roi.io.labelling_tools import as_coco
from gpt4roi.processing.region_files import read_framed_regions


def boxes(content):
    """Returns the name and the box xyxy of every annotation, None where it has no area."""
    found = []
    for row in read_tables(content, "x.json").annotations:
        try:
            box = [round(value, 6) for value in annotation_box(row)]
        except InvalidAnnotationError:
            box = None
        found.append((stated_category(row), box))
    return found


def labelme(*shapes, name="a.jpg"):
    return {"version": "5.4.1", "shapes": list(shapes), "imagePath": name, "imageHeight": 150, "imageWidth": 200}


def shape(kind, points, label="cup"):
    return {"label": label, "points": points, "shape_type": kind}


def test_shapes_of_labelme_become_the_boxes_around_them():
    content = labelme(
        shape("rectangle", [[60, 50], [10, 20]]),
        shape("polygon", [[5, 5], [40, 8], [20, 30.5]], "dog"),
        shape("circle", [[50, 40], [53, 44]]),
        shape("mask", [[1, 2], [9, 8]]),
        shape("point", [[3, 3]]),
        shape("linestrip", [[3, 3], [9, 9]]),
        shape("circle", [[50, 40]]),
        shape("polygon", None),
        "damaged",
    )
    assert boxes(content) == [
        ("cup", [10, 20, 60, 50]),
        ("dog", [5, 5, 40, 30.5]),
        ("cup", [45, 35, 55, 45]),
        ("cup", [1, 2, 9, 8]),
        *[("cup", None)] * 4,
    ]


def test_shapes_of_via_become_the_boxes_around_them():
    def region(kind, label, **numbers):
        return {"shape_attributes": {"name": kind, **numbers}, "region_attributes": label}

    regions = [
        region("rect", {"name": "cup"}, x=10, y=20, width=50, height=30),
        region("polygon", {"kind": {"dog": True}}, all_points_x=[5, 40, 20], all_points_y=[5, 8, 30]),
        region("circle", {"name": ""}, cx=50, cy=40, r=5),
        region("ellipse", {}, cx=50, cy=40, rx=20, ry=10, theta=pi / 2),
        region("ellipse", {}, cx=50, cy=40, rx=20, ry=10),
        region("point", {"name": "cup"}, cx=3, cy=3),
        region("rect", None, x=10),
        "damaged",
    ]
    expected = [
        ("cup", [10, 20, 60, 50]),
        ("dog", [5, 5, 40, 30]),
        ("", [45, 35, 55, 45]),
        ("", [40, 20, 60, 60]),
        ("", [30, 30, 70, 50]),
        ("cup", None),
        ("", None),
        ("", None),
    ]
    entry = {"filename": "a.jpg", "size": 99, "file_attributes": {}}
    assert boxes({"_via_img_metadata": {"a.jpg99": {**entry, "regions": regions}}}) == expected
    numbered = {str(number): one for number, one in enumerate(regions)}
    assert boxes({"a.jpg99": {**entry, "regions": numbered}}) == expected  # VIA 1


@pytest.mark.parametrize(
    "content", [[], {}, {"shapes": []}, {"a": {"filename": "x"}}, {"images": [], "annotations": []}]
)
def test_other_files_stay_as_they_are(content):
    assert as_coco(content) is content


def test_a_folder_of_labelme_files_is_one_source_of_boxes(tmp_path):
    for number in (1, 2):
        content = labelme(shape("rectangle", [[10, 20], [60, 50]]), name=f"{number}.jpg")
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
    source = read_source(tmp_path, tmp_path)
    assert [(image.path.name, image.size, image.regions) for image in source.images] == [
        ("1.jpg", (150, 200), (0,)),
        ("2.jpg", (150, 200), (1,)),
    ]


def test_regions_of_one_image_of_a_via_project_are_read(tmp_path):
    rect = {"name": "rect", "x": 10, "y": 20, "width": 50, "height": 30}
    entries = {
        name: {
            "filename": name,
            "size": 9,
            "regions": [{"shape_attributes": {**rect, "x": x}, "region_attributes": {}}],
        }
        for name, x in (("a.jpg", 1), ("b.jpg", 2))
    }
    (tmp_path / "via.json").write_text(json.dumps({"_via_img_metadata": entries}))
    regions, clues = read_framed_regions(tmp_path / "via.json", "photos/b.jpg")
    assert regions == [[2, 20, 52, 50]] and clues.size is None
