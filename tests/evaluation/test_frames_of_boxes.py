"""Benchmarks on photographs that their EXIF data turn or mirror: each question is about what its box was drawn on."""

from __future__ import annotations

import json

import pyarrow
import pytest
from phone import HEIGHT, ORIENTATIONS, STORED, WIDTH, coco, colour, is_red, save_photo, seen, xywh
from pyarrow import parquet

from gpt4roi.cli import main
from gpt4roi.errors import InputError
from gpt4roi.evaluation.evaluate import read_items
from gpt4roi.evaluation.items import Source
from gpt4roi.geometry.frames import FrameRule

SQUARE = (0, 0, 90, 80)


def asked(folder, name, content, rule=None):
    """Reads a benchmark of one file and returns its only item's mean colour, and the source."""
    (folder / "data.json").write_text(json.dumps(content))
    source = Source(folder / "data.json", images=folder, rule=rule or FrameRule())
    (item,) = read_items(name, source)
    return colour(item.query.image, item.query.boxes_px[0]), source


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_boxes_of_either_frame_are_asked_about_where_they_were_drawn(tmp_path, orientation):
    save_photo(tmp_path / "a.jpg", orientation)
    size, box = seen(orientation)
    turned = int(orientation != 1)
    cases = {
        "upright": coco("a.jpg", size, box),
        "label studio": coco("a.jpg", (HEIGHT, WIDTH), box, info={"contributor": "Label Studio"}),
    }
    for content in cases.values():
        found, source = asked(tmp_path, "coco", content)
        assert is_red(found), (orientation, found)
        assert (source.frames.counts["upright"], source.frames.counts["stored"]) == (turned, 0)
    rule = FrameRule("auto" if orientation >= 5 else "stored")  # a half turn leaves the size as it is
    found, source = asked(tmp_path, "coco", coco("a.jpg", (HEIGHT, WIDTH), STORED), rule)
    assert is_red(found) and source.frames.counts["stored"] == turned


@pytest.mark.parametrize("name", ["vg", "refcocog", "flickr30k", "coco", "coco-two-way", "lvis", "ref-l4", "vcr"])
def test_every_benchmark_that_knows_sizes_follows_the_rule(tmp_path, name):
    save_photo(tmp_path / "a.jpg", 6)
    table = coco("a.jpg", (HEIGHT, WIDTH), STORED)
    table["categories"].append({"id": 2, "name": "blue disc"})
    table["images"][0]["caption"] = table["annotations"][0]["caption"] = "a red square"
    table["annotations"][0]["tokens_positive"] = [[0, 12]]
    record = {"file_name": "a.jpg", "height": HEIGHT, "width": WIDTH, "bbox": xywh(STORED), "caption": "a red square"}
    x1, y1, x2, y2 = STORED
    data = tmp_path / ("data.parquet" if name == "ref-l4" else "data.json")
    if name == "ref-l4":
        parquet.write_table(pyarrow.Table.from_pylist([record]), data)
    elif name == "lvis":
        polygon = {"segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
        data.write_text(json.dumps([{**record, "categories": ["square"], "annotations": [polygon]}]))
    elif name == "vcr":
        (tmp_path / "a.json").write_text(json.dumps({"boxes": [[*STORED, 1.0]], "width": WIDTH, "height": HEIGHT}))
        options = {f"{one}_choices": [["a"]] * 4 for one in ("answer", "rationale")}
        labels = {f"{one}_label": 0 for one in ("answer", "rationale")}
        names = {"annot_id": "v", "img_fn": "a.jpg", "metadata_fn": "a.json", "objects": ["person"], "question": ["?"]}
        data.write_text(json.dumps({**names, **options, **labels}) + "\n")
    else:
        data.write_text(json.dumps(table))
    source = Source(data, images=tmp_path)
    for item in read_items(name, source):
        assert is_red(colour(item.query.image, item.query.boxes_px[0]))
    assert source.frames.as_dict() == {"upright": 0, "stored": 1, "scaled": 0, "assumed": 0}


def test_boxes_for_another_size_are_refused_with_both_sizes_or_scaled(tmp_path):
    save_photo(tmp_path / "a.jpg")
    content = coco("a.jpg", (2 * HEIGHT, 2 * WIDTH), [2 * value for value in STORED])
    with pytest.raises(InputError, match=r"the file says 400 x 300, image 'a.jpg' is 200 x 150 .* --scale-boxes"):
        asked(tmp_path, "coco", content)
    found, source = asked(tmp_path, "coco", content, FrameRule(scale_boxes=True))
    assert is_red(found) and source.frames.counts["scaled"] == 1


@pytest.mark.heavy
def test_the_command_says_what_it_did_to_boxes_and_repeats_its_switches(tmp_path, capsys):
    save_photo(tmp_path / "a.jpg", 3, SQUARE)
    content = coco("a.jpg", (HEIGHT, WIDTH), (-30, 0, *SQUARE[2:]))
    (tmp_path / "data.json").write_text(json.dumps(content))
    (tmp_path / "model.py").write_text("def answer(queries):\n    return [str(q.boxes_px.tolist()) for q in queries]\n")
    words = ["--benchmark", "coco", "--model", str(tmp_path / "model.py"), "--data", str(tmp_path / "data.json")]
    words += ["--images", str(tmp_path), "--out", str(tmp_path / "out"), "--frame", "stored", "--scale-boxes"]

    assert main(["evaluate", *words]) == 0

    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["cut"], metrics["frames"]["stored"], metrics["frame"]) == (1, 1, "stored")
    assert metrics["command"].endswith("--frame stored --scale-boxes")
    err = capsys.readouterr().err
    assert "images: 1 taken as stored (such as a.jpg)" in err
    assert "1 boxes reached out of their image and were cut at its border, such as 1 (" in err
    (answer,) = [json.loads(line)["answer"] for line in (tmp_path / "out" / "predictions.jsonl").open()]
    assert answer == "[[110.0, 70.0, 200.0, 150.0]]"  # a half turn of 0,0,90,80
