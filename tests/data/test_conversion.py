"""Other formats become the unified one, and that becomes COCO's."""

import json
import re

import numpy as np
import pytest
from fuzz import mutated
from PIL import Image
from pycocotools.coco import COCO
from recordings import ENTRIES

from gpt4roi.cli import main
from gpt4roi.cli._data_convert import SETS
from gpt4roi.data.convert.coco import objects_of_coco
from gpt4roi.data.convert.objects import Conversion, objects_of, usable
from gpt4roi.data.convert.osprey import objects_of_osprey
from gpt4roi.data.convert.page import objects_of_page
from gpt4roi.data.readers.coco_det import CocoDetection
from gpt4roi.data.readers.detections import Detections, read_detections
from gpt4roi.data.registry import READERS, build_mixture
from gpt4roi.data.unified import UnifiedDataset
from gpt4roi.errors import InputError
from gpt4roi.io.atomic import only_writer
from gpt4roi.processing.images import load_image

TEN = ("coco_det_train", "refcoco", "refcocop", "refcocog", "flickr30k", "vg", "vcr", "vcr_single", "vcr_multi")
RUNS = {"size": [60, 80], "counts": [605, 20, 40, 20, 4115]}
"""Columns 10 and 11, rows 5 to 24."""


def convert(source, out, *arguments):
    """Converts, and returns the objects."""
    bound = ["--max-bad-fraction", "1"]  # the files of these tests are faulty on purpose
    assert main(["data", "convert", str(source), str(out), *map(str, arguments), *bound]) == 0
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def convert_entry(name, out):
    """Converts one of the ten sets."""
    entry = dict(ENTRIES[name])
    kind, source, prefix = entry.pop("type"), entry.pop("ann_file"), entry.pop("img_prefix")
    options = [part for key, value in entry.items() for part in ("--option", f"{key}={value}")]
    return convert(source, out, "--from", kind, "--img-prefix", prefix, *options)


@pytest.fixture
def photos(tmp_path):
    """Two images of 80 x 60 pixels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("1.jpg", "2.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(folder / name)
    return folder


def coco_file(path, **changes):
    """Writes a COCO file with a caption for one box, a category for another, and what cannot be used."""
    content = {
        "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}, {"id": 3}],
        "annotations": [
            {"image_id": 1, "bbox": [10, 5, 20, 30], "category_id": 7, "caption": "a red cup"},
            {"image_id": 1, "segmentation": RUNS, "category_id": 7},
            {"image_id": 2, "bbox": [1, 2, 3.5, 4], "category_id": 8, "iscrowd": 0},
            {"image_id": 2, "bbox": [1, 2, 3, 4], "category_id": 8, "iscrowd": 1},
            {"image_id": 2, "bbox": [1, 2, 0, 4], "category_id": 8},
            {"image_id": 2, "bbox": [1, 2, 3, 4], "category_id": 99},
            {"image_id": 9, "bbox": [1, 2, 3, 4], "category_id": 8},
        ],
        "categories": [{"id": 7, "name": "cup"}, {"id": 8, "name": "traffic_light"}],
    }
    path.write_text(json.dumps(content | changes))
    return path


@pytest.mark.heavy
@pytest.mark.parametrize("name", [*TEN, "det_llava"])
def test_each_of_the_ten_sets_reads_as_the_same_samples_after_conversion(name, tmp_path, pyramid_processor):
    objects = convert_entry(name, tmp_path / "out" / "train.jsonl")
    original = build_mixture([ENTRIES[name]]).parts[0].unaugmented()
    converted = UnifiedDataset(tmp_path / "out" / "train.jsonl")
    assert len(objects) == len(converted) == len(original) > 0
    for index in range(len(original)):
        before = original.sample(index, np.random.default_rng([0, 0, index]))
        after = converted.sample(index, np.random.default_rng(5))
        assert after.turns == before.turns
        assert after.region_texts == before.region_texts
        assert after.image_pipeline == before.image_pipeline
        boxes = before.boxes_px
        if before.box_frame == "unit":
            image = load_image(before.image)
            boxes = boxes * [image.width, image.height, image.width, image.height]
        np.testing.assert_allclose(after.boxes_px, boxes, atol=0.006)
        pyramid_processor.encode(after)  # the image is found from the new file's folder


def test_boxes_are_converted_and_trained_on_in_the_format_that_the_file_states(tmp_path, photos):
    images = [{"id": 1, "file_name": "1.jpg", "width": 80, "height": 60}]
    boxes = [{"image_id": 1, "bbox": [10, 5, 30, 35], "category_id": 1}]
    changes = {"images": images, "annotations": boxes, "box_format": "xyxy", "categories": [{"id": 1, "name": "cup"}]}
    source = coco_file(tmp_path / "c.json", **changes)
    objects = convert(source, tmp_path / "t.jsonl", "--from", "coco", "--img-prefix", photos)
    reader = CocoDetection(source, photos, own_categories=True)
    assert objects[0]["boxes"] == reader.item(0).boxes_px.tolist() == [[10, 5, 30, 35]]

    single = {"image_path": "1.jpg", "box_format": "xyxy", "img_width": 80, "img_height": 60}
    source.write_text(json.dumps({**single, "annotations": [{"class_name": "cup", "bbox": [10, 5, 30, 35]}]}))
    alike = convert(source, tmp_path / "g.jsonl", "--from", "coco", "--img-prefix", photos)
    assert (alike[0]["boxes"], alike[0]["region_texts"]) == ([[10, 5, 30, 35]], ["cup"])


def test_several_epochs_draw_anew(tmp_path):
    entry = ENTRIES["vg"]
    more = ["--from", "VGDATA", "--img-prefix", entry["img_prefix"]]
    once = convert(entry["ann_file"], tmp_path / "once.jsonl", *more)
    thrice = convert(entry["ann_file"], tmp_path / "thrice.jsonl", *more, "--epochs", "3")
    assert len(thrice) == 3 * len(once)
    assert thrice[: len(once)] == once
    assert thrice[len(once) : 2 * len(once)] != once


def test_a_list_of_sets_is_joined(tmp_path):
    entries = [{key: str(value) for key, value in ENTRIES[name].items()} for name in ("refcoco", "vg")]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    objects = convert(tmp_path / "list.json", tmp_path / "all.jsonl")
    assert len(objects) == sum(len(part) for part in build_mixture(entries).parts)


def test_two_conversions_to_one_output_exclude_each_other(tmp_path, photos, capsys):
    source, out = coco_file(tmp_path / "c.json"), tmp_path / "t.jsonl"
    command = ["data", "convert", str(source), str(out), "--from", "coco", "--img-prefix", str(photos)]
    command += ["--max-bad-fraction", "1"]
    with only_writer(out):
        assert main(command) == 2
    assert f"another run is writing {out}" in capsys.readouterr().err and not out.exists()
    assert main(command) == 0
    assert not list(tmp_path.glob(".*"))


def test_coco_asks_about_each_box_and_answers_with_caption_or_category(tmp_path, photos, capsys):
    objects = convert(coco_file(tmp_path / "c.json"), tmp_path / "t.jsonl", "--from", "coco", "--img-prefix", photos)
    assert [entry["image"] for entry in objects] == ["photos/1.jpg", "photos/2.jpg"]
    assert objects[0]["boxes"] == [[10, 5, 30, 35], [10, 5, 12, 25]]
    assert [turn["value"] for turn in objects[0]["conversations"]] == [
        "What is <region1>?", "a red cup", "What is <region2>?", "cup"]  # fmt: skip
    assert objects[1]["region_texts"] == ["traffic light"]
    written = capsys.readouterr()
    assert "2 objects; left out 5" in written.out
    assert "box of a crowd: 1" in written.out and "box in an image that the file does not list: 1" in written.out
    assert f"{tmp_path}/c.json#annotations[4]: the box 1,2,1,6 has no area" in written.err
    assert len(UnifiedDataset(tmp_path / "t.jsonl")) == 2
    more = ("--from", "coco", "--img-prefix", photos, "--crowds")
    assert len(convert(tmp_path / "c.json", tmp_path / "crowds.jsonl", *more)[1]["boxes"]) == 2
    assert "box of a crowd" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "annotations", "code", "said"),
    [
        (["photos\\1.jpg", "C:/x/2.jpg"], [], 0, ""),
        (["1.jpg", "no.jpg"], [], 0, "image that is not there: 1"),
        (["no.jpg"], [], 1, "image that is not there: 1"),
        (["no.jpg", "none.jpg", "1.jpg"], [], 1, "image that is not there: 2"),
        (["1.jpg"], [{"image_id": 0, "bbox": [1, 2, 0, 0]}], 0, "left out 1 (box without area: 1)"),
        (["1.jpg"], [{"image_id": 0, "bbox": [1, 2, 0, 0]}, {"image_id": 0}], 1, "left out 2"),
        (["1.jpg"], [{"image_id": 0, "bbox": [-9, 2, 20, 9], "caption": "a"}], 0, "box cut at the image's border: 1"),
    ],
)
def test_the_exit_code_tells_what_was_lost(tmp_path, photos, capsys, names, annotations, code, said):
    images = [{"id": n, "file_name": name, "width": 80, "height": 60} for n, name in enumerate(names)]
    boxes = [{"image_id": n, "bbox": [1, 2, 30, 40], "caption": "a cup"} for n in range(len(names))]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": boxes + annotations}))
    words = ["data", "convert", str(tmp_path / "c.json"), str(tmp_path / "o.jsonl"), "--from", "coco"]
    assert main([*words, "--img-prefix", str(photos)]) == code
    written = capsys.readouterr()
    assert said in written.out and ("exit code 1" in written.err) == bool(code)
    assert main([*words, "--img-prefix", str(photos), "--overwrite", "--max-bad-fraction", "1"]) == 0


def test_lvis_names_its_images_by_url(tmp_path, photos):
    (photos / "train2017").mkdir()
    images = [{"id": 1, "coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg"}]
    source = coco_file(tmp_path / "lvis.json", images=images)
    (entry,) = convert(source, tmp_path / "t.jsonl", "--from", "lvis", "--question", "Name {region}.")
    assert entry["image"] == "train2017/000000391895.jpg"
    assert entry["conversations"][2]["value"] == "Name <region2>."


def osprey(**changes):
    regions = [{"segmentation": RUNS}, {"segmentation": [[1, 2, 9.5, 2, 9.5, 7]]}]
    return {"file_name": "COCO_train2014_1.jpg", "height": 60, "width": 80, "annotation": regions} | changes


def dialogue(*texts):
    return [{"from": ("human", "gpt")[step % 2], "value": text} for step, text in enumerate(texts)]


def test_osprey_descriptions_become_independent_questions(tmp_path):
    described = osprey(description=["<region1>: A cup.", "<region2>: A big, red one: round."])
    (tmp_path / "o.json").write_text(json.dumps([described]))
    (entry,) = convert(
        tmp_path / "o.json", tmp_path / "t.jsonl", "--from", "osprey", "--img-prefix", tmp_path / "photos"
    )
    assert entry["image"] == "photos/1.jpg"
    assert entry["boxes"] == [[10, 5, 12, 25], [1, 2, 9.5, 7]]
    assert entry["region_texts"] == ["A cup.", "A big, red one: round."]
    assert UnifiedDataset(tmp_path / "t.jsonl").sample(0, np.random.default_rng(0)).independent_turns


def test_osprey_dialogues_introduce_every_region_once_in_the_first_question(tmp_path):
    entries = [
        osprey(conversations=dialogue("<image>\nIs <region1> red?", "Yes, <region1> is.", "And <region1>?", "No")),
        osprey(conversations=dialogue("What is <region2> for?", "For <region1>.")),
        osprey(conversations=dialogue("What is it?", "A <region5>.")),
        osprey(conversations=dialogue("What?", "That."), annotation=[{"segmentation": [[1, 2]]}]),
    ]
    (tmp_path / "o.json").write_text(json.dumps(entries))
    first, second = convert(tmp_path / "o.json", tmp_path / "t.jsonl", "--from", "osprey")
    assert [turn["value"] for turn in first["conversations"]] == [
        "Is <region1> red?", "Yes, region1 is.", "And region1?", "No"]  # fmt: skip
    assert [turn["value"] for turn in second["conversations"]] == [
        "The image has these regions: <region1>, <region2>.\nWhat is region2 for?", "For region1."]  # fmt: skip


def test_llava_is_checked_and_kept_as_it_is(tmp_path, capsys):
    turns = dialogue("<image>\nWhat is this?", "A dog.")
    good, bad = {"id": "7", "image": "1.jpg", "conversations": turns}, {"id": "8", "conversations": turns}
    (tmp_path / "l.json").write_text(json.dumps([good, bad]))
    (entry,) = convert(tmp_path / "l.json", tmp_path / "out" / "t.jsonl", "--from", "llava")
    assert entry == {"id": "l.json#0", "image": "../1.jpg", "conversations": turns}
    assert "mention that fits no box: 1" in capsys.readouterr().out


def page_record(rounds, width=80, height=60):
    """A conversation as the page saves it."""
    regions = [{"region": 1, "box": [10, 5, 30, 35]}, {"region": 2, "box": [1, 2, 9.5, 7]}]
    return {"model": "m", "picture": {"width": width, "height": height}, "regions": regions, "rounds": rounds}


def test_conversations_of_the_page_find_their_image_by_name(tmp_path, photos, capsys):
    said = [{"question": "What is <region1> beside <region2>?", "answer": "a cup", "new_regions": [1, 2]}]
    records = {"1": page_record(said), "2": page_record([]), "3": page_record(said)}
    (tmp_path / "saved").mkdir()
    for name, record in records.items():
        (tmp_path / "saved" / f"{name}.json").write_text(json.dumps(record))
    (first,) = convert(tmp_path / "saved", tmp_path / "t.jsonl", "--from", "page", "--img-prefix", photos)
    assert (first["image"], first["boxes"]) == ("photos/1.jpg", [[10, 5, 30, 35], [1, 2, 9.5, 7]])
    assert [turn["value"] for turn in first["conversations"]] == ["What is <region1> beside <region2>?", "a cup"]
    printed = capsys.readouterr().out
    assert "no image of the file's name in" in printed and "nothing was asked yet: 1" in printed
    assert len(UnifiedDataset(tmp_path / "t.jsonl")) == 1


def test_names_of_boxes_on_the_page_become_questions_by_themselves_and_a_corrected_one_is_the_answer(
    tmp_path, photos, capsys
):
    record = page_record([{"question": "What is <region1>?", "answer": "a cup"}]) | {
        "name_question": "What is <region1>?"
    }
    first, second = record["regions"]
    first["name"] = "a gnu"  # the box was asked about too
    second |= {"name": "a spoon", "corrected": True}
    record["regions"].append({"region": 3, "box": [5, 5, 20, 20], "name": "a saucer"})
    record["regions"].append({"region": 4, "box": [6, 6, 20, 20]})
    (tmp_path / "1.json").write_text(json.dumps(record))
    conversation, names = convert(tmp_path / "1.json", tmp_path / "t.jsonl", "--from", "page", "--img-prefix", photos)
    assert conversation["conversations"][1]["value"] == "a cup" and len(conversation["boxes"]) == 4
    assert names["independent"] and names["boxes"] == [[1, 2, 9.5, 7], [5, 5, 20, 20]]
    said = [turn["value"] for turn in names["conversations"]]
    assert said == ["What is <region1>?", "a spoon", "What is <region2>?", "a saucer"]
    assert "; names as the model gave them: 1" in capsys.readouterr().out
    dataset = UnifiedDataset(tmp_path / "t.jsonl")
    assert dataset.sample(1, np.random.default_rng(0)).region_texts == ("a spoon", "a saucer")


@pytest.mark.parametrize(("name", "question"), [("a cup", "What?"), ("a cup", None), (["a cup"], "What is <region1>?")])
def test_a_name_without_its_question_or_text_is_left_out_with_its_file(tmp_path, photos, capsys, name, question):
    record = page_record([]) | {"name_question": question}
    record["regions"][0]["name"] = name
    (tmp_path / "1.json").write_text(json.dumps(record))
    arguments = [tmp_path / "1.json", tmp_path / "t.jsonl", "--from", "page", "--img-prefix", photos]
    assert main(["data", "convert", *map(str, arguments)]) == 2
    assert "1.json: name" in capsys.readouterr().err


@pytest.fixture
def drawn(tmp_path, photos):
    """Two saved conversations in a folder, and how they are converted."""
    (tmp_path / "saved").mkdir()
    for name in "12":
        said = [{"question": "What is <region1> beside <region2>?", "answer": f"cup {name}"}]
        (tmp_path / "saved" / f"{name}.json").write_text(json.dumps(page_record(said)))
    return tmp_path / "saved", tmp_path / "t.jsonl", "--from", "page", "--img-prefix", photos, "--append"


def test_conversations_of_the_page_are_added_to_what_is_there(tmp_path, drawn, capsys):
    by_hand = '{"image": "photos/2.jpg",  "conversations": [{"from": "human", "value": "A cup?"}, '
    by_hand += '{"from": "gpt", "value": "Yes."}]}\n{broken'
    (tmp_path / "t.jsonl").write_text(by_hand)
    assert main(["data", "convert", *map(str, drawn)]) == 0
    written = (tmp_path / "t.jsonl").read_text()
    assert written.startswith(by_hand + "\n{") and written.count("\n") == 4
    assert capsys.readouterr().out == f"{tmp_path}/t.jsonl: 2 objects added, 0 there already\n"


def test_what_was_added_once_is_not_added_again_though_its_answer_was_corrected(tmp_path, drawn, capsys):
    convert(*drawn)
    corrected = (tmp_path / "t.jsonl").read_text().replace("cup 1", "a blue cup")
    (tmp_path / "t.jsonl").write_text(corrected)
    (tmp_path / "saved" / "2.json").unlink()
    convert(*drawn)
    assert (tmp_path / "t.jsonl").read_text() == corrected
    assert capsys.readouterr().out.endswith("t.jsonl: 0 objects added, 1 there already\n")
    said = [{"question": "Where is <region1>?", "answer": "left"}]
    (tmp_path / "saved" / "1.json").write_text(json.dumps(page_record(said)))
    assert len(convert(*drawn)) == 3
    assert capsys.readouterr().out.endswith("t.jsonl: 1 object added, 0 there already\n")


@pytest.mark.parametrize("content", ["[1]", '{"images": [], "annotations": []}', '[\n {"conversations": []}\n]'])
def test_a_file_that_has_no_lines_of_the_format_is_not_added_to(tmp_path, drawn, capsys, content):
    (tmp_path / "t.jsonl").write_text(content)
    assert main(["data", "convert", *map(str, drawn)]) == 2
    assert "t.jsonl: expected one object of the unified format a line" in capsys.readouterr().err
    assert (tmp_path / "t.jsonl").read_text() == content


def test_two_conversions_to_one_file_exclude_each_other(tmp_path, drawn, capsys):
    with only_writer(tmp_path / "t.jsonl"):
        assert main(["data", "convert", *map(str, drawn)]) == 2
    assert re.search(r"another run is writing \S+t\.jsonl \(process \d+\); wait for it", capsys.readouterr().err)
    assert len(convert(*drawn)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "saved", "t.jsonl"]


def test_boxes_drawn_on_an_upright_image_stay_where_they_were_drawn(tmp_path, photos):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photos / "1.jpg") as image:
        image.save(photos / "3.jpg", exif=exif)
    said = [{"question": "What is <region1>?", "answer": "a cup"}]
    (tmp_path / "3.json").write_text(json.dumps(page_record(said, width=60, height=80)))
    (entry,) = convert(tmp_path / "3.json", tmp_path / "t.jsonl", "--from", "page", "--img-prefix", photos)
    assert (entry["width"], entry["height"], entry["image_pipeline"]) == (60, 80, "detection")
    (tmp_path / "3.json").write_text(json.dumps(page_record(said, width=80, height=60)))
    assert main(["data", "convert", f"{tmp_path}/3.json", f"{tmp_path}/u.jsonl", "--from", "page"]) == 2


def damaged(kind, tmp_path):
    """What a converter reads, to be damaged, and the converter."""
    if kind == "coco":
        coco_file(tmp_path / "c.json")
        return json.loads((tmp_path / "c.json").read_text()), objects_of_coco
    if kind == "osprey":
        described = osprey(description=["<region1>: A cup.", "<region2>: Big."])
        return [
            described,
            osprey(conversations=dialogue("Is <region1> red?", "Yes, <region2> too.")),
        ], objects_of_osprey
    return page_record([{"question": "What is <region1>?", "answer": "a cup"}]), objects_of_page


@pytest.mark.parametrize("kind", ["coco", "osprey", "page"])
def test_damaged_files_are_converted_as_far_as_they_go_or_refused_with_their_place(kind, tmp_path, photos):
    content, read = damaged(kind, tmp_path)
    made = refused = left_out = 0
    for what, data in mutated(content, 120):
        path = photos / "1.json"
        path.write_bytes(data)
        target = Conversion(tmp_path)
        try:
            for entry in usable(read(path, photos, target), target):
                json.dumps(entry, allow_nan=False).encode()
                made += 1
        except InputError as error:
            assert str(path) in str(error), what
            refused += 1
        left_out += target.left_out.total()
        assert all(re.search(r"1\.json", message) for message in target.examples), what
    assert made >= 10 and refused + left_out > 40


def test_help_names_every_reader():
    assert ", ".join(sorted(READERS)) == SETS


def test_from_coco_and_back_gives_the_same_boxes_and_captions(tmp_path, photos):
    convert(coco_file(tmp_path / "c.json"), tmp_path / "t.jsonl", "--from", "coco", "--img-prefix", photos)
    out = tmp_path / "back.json"
    assert main(["data", "convert", str(tmp_path / "t.jsonl"), str(out), "--to", "coco", "--labels"]) == 0
    coco = COCO(str(out))
    assert [(image["file_name"], image["width"], image["height"]) for image in coco.imgs.values()] == [
        ("photos/1.jpg", 80, 60), ("photos/2.jpg", 80, 60)]  # fmt: skip
    assert [(one["bbox"], one["caption"]) for one in coco.anns.values()] == [
        ([10, 5, 20, 30], "a red cup"), ([10, 5, 2, 20], "cup"), ([1, 2, 3.5, 4], "traffic light")]  # fmt: skip
    assert [category["name"] for category in coco.cats.values()] == ["a red cup", "cup", "traffic light"]


def test_boxes_that_a_shift_would_cost_are_converted_too(tmp_path):
    boxes = [[0, 0, 12, 12], [88, 88, 12, 12], [0, 88, 12, 12], [88, 0, 12, 12]]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)],
        "categories": [{"id": 1, "name": "person"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    dataset = build_mixture([{"type": "coco_det", "ann_file": str(tmp_path / "c.json")}]).parts[0]
    drawn = [len(dataset.sample(0, np.random.default_rng([0, epoch, 0])).boxes_px) for epoch in range(12)]
    assert min(drawn) < 4
    assert [len(one["boxes"]) for one in objects_of(dataset, Conversion(tmp_path), epochs=12)] == [4] * 12
    assert not dataset.test_mode


def test_detections_of_eva_become_a_file_that_opens_without_pickle(tmp_path):
    entry = ENTRIES["det_llava"]
    out = tmp_path / "found.npz"
    assert main(["data", "convert", str(entry["det_pkl_path"]), str(out), "--from", "eva"]) == 0
    with np.load(out, allow_pickle=False) as arrays:
        assert set(arrays) == {"names", "first", "boxes", "labels"}
    original = build_mixture([entry]).parts[0]
    converted = build_mixture([entry | {"det_pkl_path": out}]).parts[0]
    for index in range(len(original)):
        np.testing.assert_array_equal(converted.item(index).boxes_px, original.item(index).boxes_px)
        assert converted.item(index).region_texts == original.item(index).region_texts


@pytest.mark.parametrize(
    ("label", "side", "message"), [(1203, 0.5, "labels that are not in 0 to 1202"), (3, np.nan, "numbers are no boxes")]
)
def test_converted_detections_with_labels_or_boxes_that_cannot_be_are_refused(tmp_path, label, side, message):
    box = np.asarray([[0, 0, side, 0.5, 0.9]], dtype=np.float32)
    out = tmp_path / "d.npz"
    Detections(["a.jpg"], np.asarray([0, 1]), box, np.asarray([label])).save(out)
    with pytest.raises(InputError, match=message):
        read_detections(out, out.read_bytes())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{tmp}/no.json {tmp}/o.jsonl --from coco", "no such file; give the file to convert"),
        ("{tmp}/c.json {tmp}/o.jsonl --from yolo", "unknown format 'yolo'; known are list, llava, coco, lvis"),
        ("{tmp}/c.json {tmp}/c.json --from coco --overwrite", "exists already; it is the source"),
        ("{tmp}/c.json {tmp}/there.jsonl --from coco", "exists already; give --overwrite"),
        ("{tmp}/c.json {tmp}/new.json --from coco --to coco --append", "--append adds lines of the unified format"),
        ("{tmp}/c.json {tmp} --from coco", "is a folder; give the file to write"),
        ("{tmp}/c.json {tmp}/o.jsonl --from coco --question What?", "the question must hold {{region}}"),
        ("{tmp}/c.json {tmp}/o.jsonl --from coco --epochs 0", "--epochs must be at least 1"),
        ("{tmp}/c.json {tmp}/o.jsonl --from vcr --option x", "--option takes KEY=VALUE, got 'x'"),
        ("{tmp}/c.json {tmp}/o.jsonl --from osprey", "expected a list (Osprey's form), got an object"),
        ("{tmp}/there.jsonl {tmp}/o.jsonl --from coco", "not valid JSON"),
        ("{tmp}/empty.json {tmp}/o.jsonl --from coco", "not written, because nothing could be converted"),
        ("{tmp}/empty.json {tmp}/o.json --from coco --to coco", "not written, because there is no box"),
    ],
)
def test_a_wrong_argument_or_file_is_one_line_and_leaves_nothing_behind(tmp_path, capsys, arguments, message):
    coco_file(tmp_path / "c.json")
    coco_file(tmp_path / "empty.json", annotations=[])
    (tmp_path / "there.jsonl").write_text("kept")
    files = sorted(tmp_path.iterdir())
    assert main(["data", "convert", *arguments.format(tmp=tmp_path).split()]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("gpt4roi data: error: ") and message.format() in error
    assert sorted(tmp_path.iterdir()) == files
    assert (tmp_path / "there.jsonl").read_text() == "kept"
