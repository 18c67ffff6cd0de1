"""Situations from public bug reports, rebuilt small, by the commands as typed: each ends with what is right."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
from phone import HEIGHT, STORED, WIDTH, coco, save_photo, seen, xywh
from PIL import Image, PngImagePlugin
from pycocotools.coco import COCO

from gpt4roi.cli import main
from gpt4roi.data.unified import UnifiedDataset

pytestmark = pytest.mark.heavy

SIDEWAYS, UPSIDE = seen(6), seen(3)
DOUBLE = coco("x.jpg", (2 * HEIGHT, 2 * WIDTH), [2 * value for value in STORED])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a photograph stored sideways, one upside down and a plain one."""
    monkeypatch.chdir(tmp_path)
    for name, orientation in (("phone.jpg", 6), ("upside.jpg", 3), ("x.jpg", 1)):
        save_photo(tmp_path / name, orientation)
    return tmp_path


@pytest.fixture
def run(folder, model_folder, capsys):
    """A function that types a command; returns exit code, stdout and stderr."""

    def typed(*words):
        words = [str(word) for word in words]
        if words[0] in ("describe", "caption"):
            words += ["--model", str(model_folder), "--device", "cpu", "--dtype", "float32", "--max-new-tokens", "4"]
        capsys.readouterr()
        code = main(words)
        return (code, *capsys.readouterr())

    return typed


def write(name, content):
    """Writes JSON, or lines of it, into the working folder."""
    with open(name, "w", encoding="utf-8") as file:
        file.write("".join(json.dumps(one) + "\n" for one in content) if name.endswith("l") else json.dumps(content))
    return name


def read(name, **options):
    """Reads JSON of the working folder."""
    with open(name, encoding="utf-8") as file:
        return json.load(file, **options)


def line(image, box, **more):
    """Returns an object of the unified format with one box."""
    asked = [{"from": "human", "value": "What is <region1>?"}, {"from": "gpt", "value": "red square"}]
    return {"image": image, "boxes": [list(box)], "conversations": asked, **more}


def described(out):
    """Returns the boxes that `describe --json` asked about."""
    return [region["box"] for region in json.loads(out)["regions"]]


def test_convert_writes_the_frame_and_size_that_fit_the_entry(run):
    write("upright.json", coco("phone.jpg", *SIDEWAYS))
    code, out, _ = run("data", "convert", "upright.json", "u.jsonl", "--from", "coco")
    assert (code, out) == (0, "u.jsonl: 1 object; images: 1 turned upright by their EXIF data (such as phone.jpg)\n")
    made = read("u.jsonl")
    assert (made["height"], made["width"]) == SIDEWAYS[0] and made["image_pipeline"] == "detection"
    assert made["boxes"] == [SIDEWAYS[1]]


def test_boxes_for_another_size_are_named_with_both_sizes_in_every_command(run):
    write("double.json", DOUBLE)
    both = "the file says 400 x 300, image 'x.jpg' is 200 x 150 (width x height)"
    code, _, err = run("data", "convert", "double.json", "d.jsonl", "--from", "coco")
    assert code == 2 and both in err and "--scale-boxes" in err
    code, _, err = run("describe", "x.jpg", "--regions", "double.json")
    assert code == 2 and both in err
    code, _, err = run("caption", "double.json", "--images", ".", "--out", "c.json")
    assert code == 1 and both in err
    write("d.jsonl", [line("x.jpg", [20, 20, 120, 100], height=2 * HEIGHT, width=2 * WIDTH)])
    code, out, _ = run("data", "check", "d.jsonl", "--workers", "1")
    assert "the file says 400 x 300" in out and "is 200 x 150" in out
    assert run("data", "check", "d.jsonl", "--workers", "1", "--strict")[0] == 1

    code, out, _ = run("describe", "x.jpg", "--regions", "double.json", "--scale-boxes", "--json")
    assert code == 0 and described(out) == [list(STORED)]
    code, out, _ = run("data", "convert", "double.json", "scaled.jsonl", "--from", "coco", "--scale-boxes")
    assert code == 0 and "1 with scaled boxes" in out and read("scaled.jsonl")["boxes"] == [list(STORED)]


def test_caption_knows_label_studio_and_says_what_it_took_as_stored(run):
    stored = coco("phone.jpg", (HEIGHT, WIDTH), STORED)
    write("ls.json", coco("phone.jpg", (HEIGHT, WIDTH), SIDEWAYS[1], info={"contributor": "Label Studio"}))
    write("stored.json", stored)
    code, out, _ = run("caption", "ls.json", "--images", ".", "--out", "c.json")
    assert code == 0 and "1 of 1 boxes have a text; images: 1 turned upright by their EXIF data (such as" in out
    code, out, _ = run("caption", "stored.json", "--images", ".", "--out", "s.json")
    assert code == 0 and "images: 1 taken as stored (such as phone.jpg)" in out
    code, out, _ = run("caption", "stored.json", "--images", ".", "--out", "f.json", "--frame", "upright", "--json")
    assert json.loads(out)["frames"] == {"upright": 1, "stored": 0, "scaled": 0, "assumed": 0}


def test_describe_turns_boxes_of_the_stored_image_as_caption_does(run):
    write("stored.json", coco("phone.jpg", (HEIGHT, WIDTH), STORED))
    code, out, err = run("describe", "phone.jpg", "--regions", "stored.json", "--json")
    assert code == 0 and described(out) == [SIDEWAYS[1]] and "images: 1 taken as stored" in err


def test_the_check_warns_of_every_orientation_that_is_read_as_stored(run):
    write("check.jsonl", [line("upside.jpg", UPSIDE[1]), line("phone.jpg", SIDEWAYS[1])])
    code, out, _ = run("data", "check", "check.jsonl", "--workers", "1")
    assert code == 0 and "(orientation 3), but is read as it is stored" in out
    assert run("data", "check", "check.jsonl", "--workers", "1", "--strict")[0] == 1
    write("check.jsonl", [line(name, box, image_pipeline="detection") for name, (_, box) in
                          (("upside.jpg", UPSIDE), ("phone.jpg", SIDEWAYS))])  # fmt: skip
    assert run("data", "check", "check.jsonl", "--workers", "1", "--strict")[0] == 0


def test_caption_reads_lines_without_sizes_as_training_does(run):
    write("u.jsonl", [line("phone.jpg", STORED)])
    code, out, _ = run("caption", "u.jsonl", "--images", ".", "--out", "c.json", "--json")
    assert code == 0 and json.loads(out)["frames"] == {"upright": 0, "stored": 1, "scaled": 0, "assumed": 1}
    assert UnifiedDataset("u.jsonl").sample(0, np.random.default_rng(0)).image_pipeline == "dialogue"
    write("d.jsonl", [line("phone.jpg", SIDEWAYS[1], image_pipeline="detection")])
    code, out, _ = run("caption", "d.jsonl", "--images", ".", "--out", "d.json", "--json")
    assert code == 0 and json.loads(out)["frames"]["upright"] == 1


@pytest.mark.parametrize("name", ["images\\x.jpg", "C:\\set\\x.jpg", "v2/patch0/x.jpg", "https://h/a/x.jpg?w=1"])
def test_convert_and_caption_find_images_by_the_names_of_other_machines(run, folder, name):
    (folder / "pics" / "sub").mkdir(parents=True)
    (folder / "x.jpg").rename(folder / "pics" / "sub" / "x.jpg")
    write("named.json", coco(name, (HEIGHT, WIDTH), STORED))
    code, out, _ = run("data", "convert", "named.json", "w.jsonl", "--from", "coco", "--img-prefix", "pics")
    assert (code, out) == (0, "w.jsonl: 1 object\n")
    assert read("w.jsonl")["image"] == "pics/sub/x.jpg"
    code, out, _ = run("caption", "named.json", "--images", "pics", "--out", "c.json")
    assert code == 0 and "1 of 1 boxes have a text" in out


def test_images_that_are_not_there_are_counted_and_the_job_may_be_run_again(run, folder):
    (folder / "pics").mkdir()
    write("gone.json", coco("gone.jpg", (HEIGHT, WIDTH), STORED))
    code, out, err = run("data", "convert", "gone.json", "g.jsonl", "--from", "coco", "--img-prefix", "pics")
    assert code == 1 and "image that is not there: 1" in out and "1 of 1 images are not there" in err
    caption = ("caption", "gone.json", "--images", "pics", "--out", "c.json")
    code, out, _ = run(*caption)
    assert code == 1 and "0 of 1 boxes have a text" in out
    save_photo(folder / "pics" / "gone.jpg")
    code, out, _ = run(*caption)
    assert code == 0 and "1 of 1 boxes have a text" in out


BOX = [20, 20, 120, 100]


@pytest.mark.parametrize(
    "content",
    [
        {"image_path": "x.jpg", "annotations": [{"class_name": "s", "bbox": BOX, "score": 0.9}],
         "box_format": "xyxy", "img_width": WIDTH, "img_height": HEIGHT},
        [{"name": "s", "class": 0, "confidence": 0.8, "box": dict(zip(("x1", "y1", "x2", "y2"), BOX, strict=True))}],
        [{"name": "s", "xmin": 20, "ymin": 20, "xmax": 120, "ymax": 100}],
        [{"label": "s", "bbox_2d": BOX}],
        {"bboxes": [BOX]},
        {"annotations": [{"caption": "background"}, {"bbox": xywh(BOX)}]},
    ],
)  # fmt: skip
def test_boxes_are_read_in_the_form_that_the_file_states(run, content):
    code, out, err = run("describe", "x.jpg", "--regions", write("boxes.json", content), "--json")
    assert (code, described(out)) == (0, [BOX])
    assert ("1 entries have no region and are left out: #0" in err) == ("annotations" in content and len(content) == 1)


def test_a_row_of_six_numbers_is_refused(run):
    code, _, err = run("describe", "x.jpg", "--regions", write("rows.json", [[20.1, 20.2, 120.3, 100.4, 0.91, 0.0]]))
    assert code == 2 and "box 1: expected four numbers x1, y1, x2, y2, got 6" in err and "[[x1, y1, x2" in err


@pytest.mark.parametrize(
    ("changes", "box"),
    [
        ({"category_id": "1", "bbox": [], "segmentation": [[90, 100, 115, 100, 115, 145]]}, [90, 100, 115, 145]),
        ({"category_id": 1.0, "image_id": 1.0}, BOX),
        ({"iscrowd": "0"}, BOX),
        ({"bbox": ["20", "20", "100", "80"]}, BOX),
        ({"image_id": "1"}, BOX),
    ],
)
def test_an_annotation_is_read_the_same_in_every_command(run, changes, box):
    content = coco("x.jpg", (HEIGHT, WIDTH), BOX)
    content["annotations"][0].update(changes)
    write("ann.json", content)
    code, out, _ = run("describe", "x.jpg", "--regions", "ann.json", "--json")
    assert (code, described(out)) == (0, [box])
    assert run("data", "convert", "ann.json", "a.jsonl", "--from", "coco")[0] == 0
    assert read("a.jsonl")["boxes"] == [box]
    assert run("caption", "ann.json", "--images", ".", "--out", "c.json")[0] == 0
    (captioned,) = read("c.json")["annotations"]
    assert captioned["bbox"] == xywh(box) and "caption" in captioned


def test_two_images_of_one_id_are_neither_mixed_nor_taken(run):
    content = coco("x.jpg", (HEIGHT, WIDTH), BOX)
    content["images"] += [{"id": 1, "file_name": "phone.jpg"}, {"id": 2, "file_name": "upside.jpg"}]
    content["annotations"].append({**content["annotations"][0], "id": 2, "image_id": 2})
    write("two.json", content)
    code, out, err = run("data", "convert", "two.json", "t.jsonl", "--from", "coco")
    assert code == 1 and "image whose id another one has: 2" in out and read("t.jsonl")["image"] == "upside.jpg"
    code, out, err = run("caption", "two.json", "--images", ".", "--out", "c.json")
    assert "1 of 2 boxes have a text" in out and "images of several names have the id 1" in err


def damaged_exif():
    """Returns a photograph whose EXIF data have an orientation of 6 and a rational number over zero."""
    with open("x.jpg", "rb") as file:
        data = file.read()
    ifd = b"II*\0" + struct.pack("<IH", 8, 2) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    ifd += struct.pack("<HHII", 0x9204, 10, 1, 38) + struct.pack("<I", 0) + struct.pack("<ii", -1, 0)
    payload = b"Exif\0\0" + ifd
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + data[2:]


def test_photographs_with_damaged_exif_or_long_texts_open_in_every_command(run, folder):
    (folder / "rational.jpg").write_bytes(damaged_exif())
    texts, png = PngImagePlugin.PngInfo(), io.BytesIO()
    texts.add_text("Comment", "x" * 2**21, zip=True)
    Image.open("x.jpg").save(png, "PNG", pnginfo=texts)
    (folder / "text.png").write_bytes(png.getvalue())
    for name in ("rational.jpg", "text.png"):
        assert run("describe", name, "--box", "10,10,60,50")[0] == 0
    write("c.jsonl", [line("rational.jpg", SIDEWAYS[1], image_pipeline="detection"), line("text.png", STORED)])
    code, out, _ = run("data", "check", "c.jsonl", "--workers", "1", "--strict")
    assert code == 0 and "cannot be" not in out


def test_captions_are_strict_json_and_ids_that_occur_twice_are_told_apart(run, capsys):
    content = coco("x.jpg", (HEIGHT, WIDTH), BOX)
    content["annotations"][0]["score"] = float("nan")
    content["annotations"].append({**content["annotations"][0], "bbox": [1, 1, 50, 50]})
    write("nan.json", content)
    code, _, err = run("caption", "nan.json", "--images", ".", "--out", "c.json")
    assert code == 0 and "1 annotations have the id of an earlier one; they get a free number" in err

    def refused(constant):
        raise AssertionError(constant)

    made = read("c.json", parse_constant=refused)
    assert [row["id"] for row in made["annotations"]] == [1, 2]
    assert len(COCO("c.json").getAnnIds()) == 2


def test_numbers_typed_into_a_question_without_a_region_get_a_hint(run):
    code, _, err = run("describe", "x.jpg", "--question", "What is at [20, 20, 120, 100]?")
    assert code == 0 and "--box 20,20,120,100" in err
