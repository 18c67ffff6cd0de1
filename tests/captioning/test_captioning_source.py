"""Files of boxes in their forms."""

from __future__ import annotations

import json

import pytest
from coco_tables import tables

from gpt4roi import InputError
from gpt4roi.captioning.source import read_source
from gpt4roi.io.coco import annotation_box_inside


def read(tmp_path, content, folder, name="boxes.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_source(path, folder)


def test_coco_tables_stay_and_images_without_boxes_are_left_out(ann_file, images):
    source = read_source(ann_file, images)

    assert source.content == tables()
    assert [image.path.name for image in source.images] == [f"{n}.png" for n in range(1, 6)]
    assert [len(image.regions) for image in source.images] == [1, 2, 3, 4, 5]
    assert source.num_regions == 15 and source.images[0].size == (64, 96)


def test_lvis_names_its_images_by_address_and_annotations_may_be_shuffled(tmp_path, images):
    content = tables((2, 1))
    content["annotations"] = content["annotations"][::-1]
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
    (images / "val2017").mkdir()
    (images / "0.png").rename(images / "val2017" / "0.png")

    source = read(tmp_path, content, images)

    assert [image.path for image in source.images] == [images / "val2017" / "0.png", images / "1.png"]
    assert [image.regions for image in source.images] == [(1, 2), (0,)]


def test_numbers_of_images_may_be_written_as_floats(tmp_path, images):
    content = tables((0, 2))
    content["images"][1]["id"] = 11.0
    content["annotations"][1]["image_id"] = 11.0

    (image,) = read(tmp_path, content, images).images

    assert image.path == images / "1.png" and image.regions == (0, 1)


@pytest.mark.parametrize("identity", ["2.png", "2", 2], ids=["name", "without ending", "number"])
def test_a_detectors_results_find_the_images_of_a_folder(tmp_path, images, identity):
    results = [{"image_id": identity, "bbox": [1, 2, 30, 40], "score": 0.5, "category_id": 7}]

    source = read(tmp_path, results, images)

    (image,) = source.images
    assert image.path == images / "2.png" and image.regions == (0,)
    assert source.content["annotations"][0]["score"] == 0.5
    assert source.content["images"][0]["id"] == (2 if identity == 2 else 1)


def test_the_unified_format_becomes_tables(tmp_path, images):
    lines = [
        {"image": "1.png", "boxes": [[1, 2, 31, 42], [5, 5, 20, 20]]},
        {"image": "2.png", "masks": [[[10, 20, 30, 20, 30, 40]]]},
    ]

    source = read(tmp_path, "\n".join(map(json.dumps, lines)), images, "boxes.jsonl")

    annotations = source.content["annotations"]
    assert [annotation.get("bbox") for annotation in annotations] == [[1, 2, 30, 40], [5, 5, 15, 15], None]
    assert [annotation["region"] for annotation in annotations] == [1, 2, 1]
    assert annotation_box_inside(annotations[2], (64, 96)) == ([10, 20, 30, 40], False)
    assert read(tmp_path, lines, images).content == source.content


def test_lines_about_one_image_share_its_row_and_its_size_is_kept(tmp_path, images):
    lines = [
        {"image": "1.png", "boxes": [[1, 2, 31, 42]], "height": 96, "width": 64},
        {"image": "2.png", "boxes": [[1, 2, 31, 42]]},
        {"image": "1.png", "boxes": [[5, 5, 20, 20]], "height": 96, "width": 64},
    ]

    source = read(tmp_path, lines, images)

    first = {"id": 1, "file_name": "1.png", "height": 96, "width": 64}
    assert source.content["images"] == [first, {"id": 2, "file_name": "2.png"}]
    assert [annotation["image_id"] for annotation in source.content["annotations"]] == [1, 2, 1]
    assert [image.size for image in source.images] == [(96, 64), None]


def test_lines_of_text_alone_and_line_separators_inside_a_text_cost_no_box(tmp_path, images):
    dialogue = [{"from": "human", "value": "Two\u2028lines\x85 or three?"}, {"from": "gpt", "value": "three"}]
    lines = [
        {"conversations": dialogue},
        {"image": "1.png", "boxes": [[1, 2, 31, 42]], "conversations": dialogue},
        {"image": None, "conversations": dialogue},
    ]

    for content in ("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), lines):
        source = read(tmp_path, content, images, "boxes.jsonl" if isinstance(content, str) else "boxes.json")
        assert [image.path for image in source.images] == [images / "1.png"]
        assert source.num_regions == 1


def test_boxes_are_cut_at_the_border():
    assert annotation_box_inside({"bbox": [-5, 10, 200, 20]}, (64, 96)) == ([0, 10, 96, 30], True)
    assert annotation_box_inside({"bbox": [-0.5, 10, 20, 20]}, (64, 96)) == ([0, 10, 19.5, 30], False)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"bbox": [5, 5, 0, 10]}, "the box 5,5,5,15 has no area inside the image, which is 96x64"),
        ({"bbox": [100, 5, 20, 10]}, "has no area inside"),
        ({"bbox": [float("nan"), 5, 20, 10]}, "a value that is not a number of an image's size"),
        ({"bbox": [1, 2, 3]}, "box that is not 4 numbers"),
        ({"bbox": "1234"}, "box that is not 4 numbers"),
        ({"segmentation": []}, "neither bbox nor segmentation"),
        ({"segmentation": {"size": [64, 96], "counts": [64 * 96]}}, "the mask is empty"),
        ({"segmentation": {"size": [96, 64], "counts": [0, 96 * 64]}}, "the mask is 64x96 but the image is 96x64"),
    ],
    ids=str,
)
def test_a_box_that_cannot_be_used_is_told(annotation, message):
    with pytest.raises(InputError, match=message):
        annotation_box_inside(annotation, (64, 96))


def with_(name, value, index=0, table="annotations"):
    content = tables((1, 1))
    content[table][index][name] = value
    return content


@pytest.mark.parametrize(
    ("content", "failed", "left"),
    [
        (with_("image_id", 99), ["annotations[0]: box on image 99, which is not among the file's images"], ["1.png"]),
        (with_("image_id", [1]), ["annotations[0]: box without an image_id"], ["1.png"]),
        (with_("file_name", "", 0, "images"), ["images[0]: no file_name; 1 boxes on it"], ["1.png"]),
        (with_("file_name", "1.png", 0, "images"), [], ["1.png", "1.png"]),
    ],
    ids=str,
)
def test_an_entry_that_cannot_be_used_is_left_out_and_named(tmp_path, images, content, failed, left):
    source = read(tmp_path, content, images)
    assert source.failed == [f"{tmp_path}/boxes.json: {what}" for what in failed]
    assert [image.path.name for image in source.images] == left


def test_boxes_of_an_id_that_two_images_have_are_left_out(tmp_path, images):
    content = tables((1, 1, 1))
    content["images"][1]["id"] = "10"
    content["images"].append({**content["images"][2], "id": 12.0})
    source = read(tmp_path, content, images)
    assert [image.path.name for image in source.images] == ["2.png"]
    assert "which one its boxes are on cannot be told" in source.failed[1] and len(source.failed) == 3


def test_the_second_of_two_annotations_of_one_id_gets_a_free_one(tmp_path, images, caplog):
    content = tables((2,))
    content["annotations"][1]["id"] = "100"
    source = read(tmp_path, content, images)
    assert [annotation["id"] for annotation in source.content["annotations"]] == [100, 1]
    assert "1 annotations have the id of an earlier one" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ({"images": []}, "no list of objects as 'annotations', it has images"),
        ([], "got an empty list"),
        ([1], "got other JSON"),
        ("7", "got other JSON"),
        ([{"a": 1}], "an entry has a"),
        ([{"image_id": "nowhere", "bbox": [1, 2, 3, 4]}], "none of its 1 image_id fits an image in"),
        (tables((0, 0)), "holds no box"),
        ([{"image": None, "boxes": [[1, 2, 3, 4]]}], "#1: has boxes or masks but no image"),
        ([{"image": "1.png", "boxes": [[1, 2, 3]]}], "#1: box 1: expected four numbers"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_file_that_is_none_is_told(tmp_path, images, content, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, content, images)


def test_a_folder_that_is_none_is_told(ann_file, tmp_path):
    with pytest.raises(InputError, match=r"--images .*nowhere: no such folder"):
        read_source(ann_file, tmp_path / "nowhere")


def of_one_image(number):
    """A file of SA-1B."""
    image = {"image_id": number + 7, "width": 96, "height": 64, "file_name": f"{number}.png"}
    return {"image": image, "annotations": [{"id": number, "bbox": [1, 2, 30, 40], "area": 1200}]}


def test_a_file_of_one_image_and_a_folder_of_them_are_read(tmp_path, images):
    (tmp_path / "sa").mkdir()
    for number in (1, 2):
        (tmp_path / "sa" / f"sa_{number}.json").write_text(json.dumps(of_one_image(number)))

    one, both = read_source(tmp_path / "sa" / "sa_1.json", images), read_source(tmp_path / "sa", images)

    assert [image.path for image in one.images] == [images / "1.png"]
    assert [(image.path.name, image.regions, image.size) for image in both.images] == [
        ("1.png", (0,), (64, 96)),
        ("2.png", (1,), (64, 96)),
    ]
    assert [row["image_id"] for row in both.content["annotations"]] == [8, 9]
    (tmp_path / "sa" / "coco.json").write_text(json.dumps(tables()))
    with pytest.raises(InputError, match=r"coco\.json: expected one `image` with its annotations"):
        read_source(tmp_path / "sa", images)


@pytest.mark.parametrize("of_one", [True, False], ids=["Grounded-SAM-2", "tables"])
def test_a_stated_format_of_boxes_is_read(of_one, tmp_path, images):
    content = {"annotations": [{"class_name": "s", "bbox": [1, 2, 31, 42], "image_id": 1}], "box_format": "xyxy"}
    named = {"image_path": "pictures/1.png", "img_width": 96, "img_height": 64}
    content |= named if of_one else {"images": [{"id": 1, "file_name": "1.png"}]}

    source = read(tmp_path, content, images)

    assert source.content["annotations"][0]["bbox"] == [1, 2, 30, 40] and "box_format" not in source.content
    assert source.images[0].path == images / "1.png"
