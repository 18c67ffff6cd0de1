"""What the original got wrong and our readers do right; each test names the defect and works the right value out."""

import ast
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recordings import DATA, ENTRIES, EXPECTED, MDETR, boxes_of, rounds_of

import gpt4roi
from gpt4roi.data.readers import vcr
from gpt4roi.data.readers.detections import read_detections
from gpt4roi.data.registry import build_mixture, open_reader
from gpt4roi.data.tables import coco_names, lvis_names, lvis_names_as_released
from gpt4roi.errors import InputError


def changed(name, folder, change):
    """Opens a recorded set whose annotation file was changed."""
    content = json.loads(Path(ENTRIES[name]["ann_file"]).read_text())
    change(content)
    path = folder / "changed.json"
    path.write_text(json.dumps(content))
    return open_reader(ENTRIES[name] | {"ann_file": path})


def draws(reader, index, count=40):
    return [reader.sample(index, np.random.default_rng(seed)) for seed in range(count)]


def test_b5_an_object_is_called_by_its_own_name_and_the_last_one_can_be_meant():
    reader = open_reader(ENTRIES["vcr"])
    assert len(reader) == 13 and EXPECTED["vcr"]["len"] == 9
    # objects: person, person, dog, chair; "Is 4 empty ?" means the chair, which is the last.
    asked, answer, _, reason = rounds_of(reader.sample(2, np.random.default_rng(0)))
    assert asked["mentions"][-1] == "region4"
    assert (answer["value"], reason["value"]) == (
        "Yes , chair at region4 is empty .",
        "Nobody sits on chair at region4 .",
    )


def test_b5_as_released_gives_the_next_objects_name():
    released = open_reader(ENTRIES["vcr"] | {"as_released": True})
    answer = rounds_of(released.sample(1, np.random.default_rng(0)))[1]
    assert answer["value"] == "chair at region3 is sitting on the floor ."  # region 3 is the dog


def test_b6_every_sample_has_one_pair_of_presence_rounds_and_none_piles_up():
    reader = open_reader(ENTRIES["det_llava"])
    assert {len(sample.turns) for sample in draws(reader, 0)} == {4 + 4}
    for sample in draws(reader, 0):
        absent, present = sample.turns[5].text, sample.turns[7].text
        assert not any(name in absent for name in ("car_(automobile)", "motor_scooter"))
        assert any(name in present for name in ("car_(automobile)", "motor_scooter"))


def test_b7_an_image_without_detections_has_a_dialogue_without_regions():
    reader = open_reader(ENTRIES["det_llava"])
    assert len(reader) == 4
    for sample in draws(reader, 3):
        assert [turn.text for turn in sample.turns[1:2]] == ["No."]
        assert len(sample.turns) == 4 and len(sample.boxes_px) == 0


def test_b8_half_of_a_set_can_be_taken():
    assert len(build_mixture([ENTRIES["vg"] | {"ratio": 0.5}])) == 2  # of 3 images with boxes, rounded
    assert EXPECTED["ratio_0.5"].startswith("AttributeError")


def test_b9_labels_are_called_by_lvis_own_names_to_the_last():
    names = lvis_names()
    assert len(names) == 1203
    # LVIS v1: 939 shaver_(electric), 940 shaving_cream, 941 shawl, 1203 zucchini; the label is the id less 1.
    assert [names[label] for label in (0, 938, 939, 940, 1202)] == [
        "aerosol_can", "shaver_(electric)", "shaving_cream", "shawl", "zucchini"
    ]  # fmt: skip


def test_b9_the_names_as_released_are_those_that_were_recorded():
    recorded = EXPECTED["det_llava"]["class_names_used"]
    names = lvis_names_as_released()
    assert len(names) == EXPECTED["det_llava"]["classes_len"]
    assert {number: names[int(number)] for number in recorded} == recorded


def test_b10_an_image_with_crowds_alone_is_left_out_and_counted():
    reader = open_reader(ENTRIES["coco_det_train"])
    places = [drop.where.rpartition("#")[2] for drop in reader.drops() if drop.reason.startswith("image without a box")]
    assert places == ["images[3]", "images[6]"]  # image 4 has no annotation, image 7 one crowd
    assert reader.dropped["box of a crowd"] == 2


def test_b24_a_box_of_several_phrases_is_called_by_all_and_regions_are_mentioned_alike():
    reader = open_reader(ENTRIES["flickr30k"])
    caption = reader.item(0).caption
    assert (caption[0:7], caption[11:23]) == ("Two men", "green shirts")  # tokens_positive of the first box
    assert reader.item(0).region_texts == ("Two men, green shirts", "green shirts", "a brown dog")
    for sample in draws(reader, 0):
        questions = [turn["mentions"] for turn in rounds_of(sample)[::2]]
        assert questions[1:] == [["region1"], ["region2"], ["region3"]]
        assert "<region1>,<region2>,<region3>" in sample.turns[0].text
        assert "<region3>,," not in sample.turns[0].text


def test_b25_a_double_blank_is_no_word():
    assert "two  words" not in [
        text for index in range(5) for text in open_reader(ENTRIES["refcoco"]).item(index).region_texts
    ]
    released = open_reader(ENTRIES["refcoco"] | {"as_released": True})
    assert len(released) == len(open_reader(ENTRIES["refcoco"])) + 1


def test_b26_an_object_that_the_question_means_twice_is_introduced_once():
    sample = open_reader(ENTRIES["vcr_multi"]).sample(1, np.random.default_rng(0))
    assert rounds_of(sample)[0]["mentions"] == ["<image>", "region1 <bbox>", "region1"]
    assert sample.boxes_px.tolist() == [[5, 4, 25, 30]]


@pytest.mark.parametrize(("name", "index"), [("vcr", 4), ("vcr_single", 2)])
def test_b27_boxes_end_at_the_border(name, index):
    sample = open_reader(ENTRIES[name]).sample(index, np.random.default_rng(0))
    assert boxes_of(sample).max() <= 1
    if name == "vcr":  # 60, 80 to 70, 100 in an image of 64 x 96
        np.testing.assert_allclose(boxes_of(sample)[1], [60 / 64, 80 / 96, 1, 1], rtol=0, atol=1e-6)


def test_b30_nothing_that_is_not_used_is_imported():
    folder = Path(gpt4roi.__file__).parent / "data"
    modules = [
        name
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name]
    ]
    assert "json" in modules and not [name for name in modules if name.startswith("tkinter")]


def test_b33_a_list_of_data_sets_can_be_opened_twice():
    entries = [dict(ENTRIES["vg"]), dict(ENTRIES["refcocog"])]
    assert len(build_mixture(entries)) == len(build_mixture(entries)) == 6


def test_n1_classes_are_found_by_id_whatever_their_order(tmp_path):
    reader = changed("coco_det_test", tmp_path, lambda content: content["categories"].reverse())
    assert reader.item(0).region_texts == ("person", "car", "dog")  # category_id 1, 3, 18
    listed = reader.sample(0, np.random.default_rng(0)).turns[0].text
    assert listed.index("person, bicycle, car") > 0 and list(coco_names().values())[-1] in listed


def test_n2_detection_boxes_are_measured_on_the_turned_image_and_dialogue_boxes_on_the_stored_one(tmp_path):
    from PIL import Image

    for folder in ("flat", "movie"):
        (tmp_path / folder).mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 96 x 64, shown 64 x 96
    for place in ("flat/1.jpg", "movie/1.jpg"):
        Image.new("RGB", (96, 64)).save(tmp_path / place, exif=exif)
    (tmp_path / "movie/1.json").write_text((DATA / "vcr/vcr1images/movie/1.json").read_text())
    turned = open_reader(ENTRIES["vg"] | {"img_prefix": tmp_path / "flat"}).item(0)
    sample = open_reader(ENTRIES["vg"] | {"img_prefix": tmp_path / "flat"}).sample(0, np.random.default_rng(1))
    red_car = [
        list(box) for box, text in zip(boxes_of(sample), sample.region_texts, strict=True) if text == "a red car"
    ]
    assert turned.boxes_px[0].tolist() == [10, 8, 40, 48]
    np.testing.assert_allclose(red_car, [[10 / 64, 8 / 96, 40 / 64, 48 / 96]], rtol=0, atol=1e-6)
    stored = open_reader(ENTRIES["vcr_single"] | {"img_prefix": tmp_path}).sample(0, np.random.default_rng(0))
    np.testing.assert_allclose(boxes_of(stored), [[11 / 96, 8 / 64, 37 / 96, 36 / 64]], rtol=0, atol=1e-6)


def test_n3_a_plain_number_is_no_object_where_the_words_say_so_and_where_a_unit_follows():
    words = ["Where", "will", [0], "be", "in", "2", "rooms", "?"]
    assert vcr.tags(vcr.mark("Where will 1 be in 2 rooms ?", words, 22)) == [1]
    assert vcr.tags(vcr.mark("Where will 1 be in 2 rooms ?", None, 22)) == [1, 2]
    assert vcr.tags(vcr.mark("What will 1 do in 20 minutes ?", None, 22)) == [1]
    assert vcr.tags(vcr.mark("Is person1 the 2nd guest of 3's , 0 or 23 ?", None, 22)) == [3]
    # Words that do not say the same as the text are not believed.
    assert vcr.tags(vcr.mark("Is 1 here ?", ["Is", [4], "here", "?"], 22)) == [1]


@pytest.mark.parametrize("token", ["<bbox>", "<image>", "<im_patch>", "<region1>"])
def test_n4_a_box_whose_caption_holds_a_token_of_ours_is_left_out_and_told(tmp_path, token):
    def change(content):
        content["annotations"][0]["caption"] = f"a {token} sign"

    reader = changed("vg", tmp_path, change)
    assert reader.item(0).region_texts == ("the dog is brown",)
    (drop,) = [drop for drop in reader.drops() if "reserved token" in drop.reason]
    assert drop.where == f"{tmp_path / 'changed.json'}#annotations[0]" and drop.detail.startswith(drop.where)


@pytest.mark.parametrize("spans", [[], None, [[200, 210]], [[0]], [["a", "b"]]])
def test_n5_a_box_without_a_phrase_is_left_out_and_told(tmp_path, spans):
    reader = changed("flickr30k", tmp_path, lambda content: content["annotations"][1].update(tokens_positive=spans))
    assert reader.item(0).region_texts == ("Two men, green shirts", "a brown dog")
    assert [drop.where.rpartition("#")[2] for drop in reader.drops() if drop.detail] == ["annotations[1]"]


def test_a_shift_that_would_leave_no_box_of_two_pixels_is_not_made(tmp_path):
    def change(content):
        content["images"] = content["images"][:1]  # 96 x 64
        content["annotations"] = [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [94, 0, 2, 64], "area": 128, "iscrowd": 0}
        ]

    path = tmp_path / "changed.json"
    content = json.loads(Path(ENTRIES["coco_det_train"]["ann_file"]).read_text())
    change(content)
    path.write_text(json.dumps(content))
    reader = open_reader(ENTRIES["coco_det_train"] | {"ann_file": path})
    samples = draws(reader, 0, 200)
    assert {len(sample.boxes_px) for sample in samples} == {1}
    # The box is 4.67 px wide at the right border of the frame: shifted right by 3 px or more it would fall away.
    assert max(sample.augmentation.shift[0] for sample in samples) <= 2
    assert min(sample.augmentation.shift[0] for sample in samples) < -20


def test_detections_read_the_same_from_the_pickle_and_from_the_converted_file(tmp_path):
    path = Path(ENTRIES["det_llava"]["det_pkl_path"])
    read_detections(path, path.read_bytes()).save(tmp_path / "d.npz")
    plain, converted = (open_reader(ENTRIES["det_llava"] | more) for more in ({}, {"det_pkl_path": tmp_path / "d.npz"}))
    with path.open("rb") as file:
        stored = pickle.load(file)  # our own file
    for index in range(len(plain)):
        one, other = plain.item(index), converted.item(index)
        np.testing.assert_array_equal(one.boxes_px, other.boxes_px)
        np.testing.assert_array_equal(one.boxes_px, stored[index]["pred_bboxes"][:, :4].astype(np.float64))
        assert one.region_texts == other.region_texts


class Calls:
    def __reduce__(self):
        return print, ("called",)


@pytest.mark.parametrize("content", [Calls(), [Calls()], [{"filename": Calls()}], np.array([print], dtype=object)])
def test_a_pickle_that_would_run_something_is_refused_and_nothing_runs(tmp_path, capsys, content):
    path = tmp_path / "detections.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=r"detections\.pkl"):
        open_reader(ENTRIES["det_llava"] | {"det_pkl_path": path})
    assert capsys.readouterr().out == ""


def test_refcoco_takes_the_boxes_that_an_expression_means_even_where_they_are_marked_as_crowds():
    content = json.loads((MDETR / "finetune_refcoco_train.json").read_text())
    crowds = [entry["image_id"] for entry in content["annotations"] if entry["iscrowd"]]
    assert crowds == [6]
    captions = [open_reader(ENTRIES["refcoco"]).item(index).caption for index in range(5)]
    assert "long thin thing here" in captions


@pytest.mark.parametrize("name", ["refcoco", "flickr30k", "det_llava", "vcr", "vg", "coco_det_train"])
def test_n6_transparency_is_white_unless_the_reader_is_as_released(name):
    for as_released in (False, True):
        reader = open_reader(ENTRIES[name] | {"as_released": as_released})
        assert reader.sample(0, np.random.default_rng(0)).ignore_alpha == as_released


def vcr_lines(folder, *items):
    """Writes VCR items of a car and a person: (question, answer)."""
    lines = [
        {
            "objects": ["car", "person", "dog"],
            "img_fn": "movie/1.jpg",
            "metadata_fn": "movie/1.json",
            "question_orig": question,
            "answer_orig": answer,
            "rationale_orig": "1 has no lights on .",
        }
        for question, answer in items
    ]
    (folder / "vcr.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "movie").mkdir()
    Image.new("RGB", (64, 48)).save(folder / "movie/1.jpg")
    boxes = {"boxes": [[1, 2, 30, 40, 1.0], [5, 5, 20, 20, 1.0], [9, 9, 40, 40, 1.0]], "height": 48, "width": 64}
    (folder / "movie/1.json").write_text(json.dumps(boxes))
    return {"ann_file": folder / "vcr.jsonl", "img_prefix": folder}


def test_the_question_of_single_and_multi_vcr_calls_an_object_by_its_region_alone(tmp_path):
    entry = vcr_lines(tmp_path, ("Is 1 parked ?", "Yes , 1 is ."), ("Is 2 in 1 ?", "No , 2 is beside 1 ."))
    asked = [
        [
            turn.text.splitlines()[-1]
            for turn in open_reader({"type": kind, **entry}).sample(0, np.random.default_rng(0)).turns
        ]
        for kind in ("single_vcr", "multi_vcr")
    ]
    assert asked[0][:2] == ["Is <region1> parked ?", "Yes , car at <region1> is ."]
    assert asked[1][:2] == ["Is <region1> in <region2> ?", "No , person at <region1> is beside car at <region2> ."]


@pytest.mark.parametrize(("kind", "question"), [("single_vcr", "Is 1 parked ?"), ("multi_vcr", "Is 1 with 2 ?")])
def test_as_released_leaves_out_an_answer_about_an_object_that_was_not_asked_for(tmp_path, kind, question):
    entry = vcr_lines(tmp_path, (question, "1 is ."), (question, "1 is , with 3 ."))
    assert len(open_reader({"type": kind, **entry})) == 2
    assert len(open_reader({"type": kind, **entry, "as_released": True})) == 1
