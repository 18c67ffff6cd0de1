"""Files of regions of one image."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from gpt4roi import InputError
from gpt4roi.processing.region_files import read_regions

BOX = [1, 2, 31, 42]
RUNS = {"size": [4, 4], "counts": [0, 16]}
COCO = {
    "images": [{"id": 1, "file_name": "a/p.png"}, {"id": 2, "file_name": "q.png"}],
    "annotations": [{"image_id": 1, "bbox": [1, 2, 30, 40]}, {"image_id": 2, "bbox": [5, 5, 6, 6]}],
}


def read(tmp_path, content, image="p.png"):
    path = tmp_path / "regions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_regions(path, image)


@pytest.mark.parametrize(
    "content",
    [
        [BOX],
        {"boxes": [BOX]},
        {"regions": [{"region": 1, "box": BOX, "answer": "a koala"}], "question": "What is <region1>?"},
        [{"bbox": [1, 2, 30, 40]}],
        [{"x1": 1, "y1": 2, "x2": 31, "y2": 42}],
        {"boxes": [{"xmin": 1, "ymin": 2, "xmax": 31, "ymax": 42, "label": "1"}]},
        {"annotations": [{"class_name": "s", "bbox": BOX}], "box_format": "xyxy", "img_width": 96, "img_height": 64},
        {"boxes": [[1, 2, 30, 40]], "box_format": "XYWH"},
        [{"bbox": [16, 22, 30, 40], "box_format": "cxcywh"}],
        [{"name": "s", "class": 0, "confidence": 0.8, "box": {"x1": 1, "y1": 2, "x2": 31, "y2": 42}}],
        [{"bbox": {"xmin": 1, "ymin": 2, "xmax": 31, "ymax": 42}}],
        [{"left": 1, "top": 2, "width": 30, "height": 40}],
        [{"bbox_2d": BOX, "label": "a"}],
        {"bboxes": [BOX], "labels": ["a"], "scores": [0.9]},
        [{"bboxes": [BOX], "label": "a"}],
        {"image": {"image_id": 7, "file_name": "p.png"}, "annotations": [{"bbox": [1, 2, 30, 40]}]},
        COCO,
        {**COCO, "images": [{"id": 1, "coco_url": "http://x/val2017/other.png"}]},
    ],
    ids=str,
)
def test_boxes_in_every_form(tmp_path, content):
    assert read(tmp_path, content) == [BOX]


def test_masks_stay_masks(tmp_path):
    polygons = [[1, 2, 3, 4, 5, 6]]

    regions = read(tmp_path, [RUNS, {"segmentation": RUNS}, {"mask": polygons}, {"rle": RUNS}, polygons])

    assert regions == [RUNS, RUNS, polygons, RUNS, polygons]
    assert read(tmp_path, [{"bbox": None, "segmentation": RUNS}, {"bbox": [], "mask": RUNS}]) == [RUNS, RUNS]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "got an object with nothing"),
        ({"box": BOX}, "got an object with box"),
        ([], "holds no region"),
        ("7", "expected a list of"),
        ([{"label": "a"}], "#0: expected an object with box, bbox or segmentation; got label"),
        ([{"bbox": [1, 2, 3]}], "#0: expected bbox as x, y, width, height"),
        ([{"bbox": "1234"}], "#0: expected bbox"),
        ([{"bbox": {"x": 1, "y": 2, "width": 3, "height": 4}}], "#0: bbox has x, y, width, height; expected x1, y1"),
        ({"boxes": [BOX], "box_format": "zzz"}, "box_format is 'zzz'; expected one of xyxy"),
        ({**COCO, "images": COCO["images"][1:] * 2}, "0 of its 2 images are called 'p.png', expected one"),
    ],
    ids=str,
)
def test_other_content_is_told_with_its_place(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, content)


def test_boxes_of_crowds_are_left_out_by_name(tmp_path, caplog):
    rows = [{"image_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": crowd} for crowd in (0, 1)]
    content = {"images": [{"id": 1, "file_name": "p.png"}], "annotations": rows}
    assert read(tmp_path, content) == [[1, 2, 4, 6]]
    assert "#1 is left out: box of a crowd" in caplog.text


def test_regions_of_several_images_are_not_taken_for_those_of_one(tmp_path):
    path = tmp_path / "detections.json"
    detections = [{"image_id": image, "bbox": [1, 2, 3, 4], "score": 0.9} for image in (7, 7, 8)]
    path.write_text(json.dumps(detections[:2]))
    assert len(read_regions(path)) == 2
    path.write_text(json.dumps(detections))
    with pytest.raises(InputError, match="are on 2 images, by image_id; expected those of one"):
        read_regions(path)


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "latin.json").write_bytes(b'"\xe9"')
    for name, message in (("nowhere.json", "no such file"), ("", "is a folder"), ("latin.json", "not UTF-8 text")):
        with pytest.raises(InputError, match=message):
            read_regions(tmp_path / name)


def test_entries_without_a_region_are_left_out_and_named(tmp_path, caplog):
    entries = [{"label": "background"}, {"bbox": [1, 2, 30, 40]}, {"bbox": [], "segmentation": None}]
    assert read(tmp_path, entries) == [BOX]
    assert caplog.messages == [f"{tmp_path}/regions.json: 2 entries have no region and are left out: #0, #2"]


def test_a_mask_beside_a_box_without_area_is_taken_and_a_flat_one_stays_a_polygon(tmp_path):
    triangle = [180, 200, 230, 200, 230, 290]
    assert read(tmp_path, [{"bbox": [0, 0, 0, 0], "segmentation": triangle}]) == [[triangle]]
    assert read(tmp_path, [{"polygon": [triangle]}]) == [[triangle]]


@pytest.mark.parametrize("key", ["img", "image"])
def test_a_file_for_an_image_of_another_size_is_refused_with_both(key, tmp_path):
    Image.new("RGB", (96, 64)).save(tmp_path / "p.png")
    content = {"annotations": [{"bbox": BOX}], f"{key}_width": 96, f"{key}_height": 64}
    assert len(read(tmp_path, content, tmp_path / "p.png")) == 1
    with pytest.raises(InputError, match=r"the file says 192 x 128, image .*p\.png' is 96 x 64 \(width x height\)"):
        read(tmp_path, content | {f"{key}_width": 192, f"{key}_height": 128}, tmp_path / "p.png")
