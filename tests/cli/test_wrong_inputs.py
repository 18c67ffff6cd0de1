"""Wrong inputs of the commands that answer: each is one readable line on stderr, nothing on stdout, exit code 2."""

from __future__ import annotations

import json

import pytest

from gpt4roi.cli import main

BOX = ("--box", "5,5,40,30")
OUT = ("--images", "FOLDER", "--out", "o.json")
COMMANDS = ("chat", "caption", "completion")
"""Named where a case is not of `describe`."""

WRONG = {
    "no such image": (["nowhere.jpg", *BOX], "image 'nowhere.jpg' not found"),
    "a folder": (["FOLDER", *BOX], "is a folder; give one image inside it"),
    "a text file named .jpg": (["TEXT.jpg", *BOX], "is not an image file that can be read"),
    "an image cut off": (["CUT.png", *BOX], "cannot be decoded"),
    "no image": ([*BOX], "the following arguments are required: IMAGE"),
    "an empty path": (["", *BOX], "the image's path is empty"),
    "an address": (["https://example.org/p.png", *BOX], "addresses are not fetched; download the image"),
    "nothing to answer about": (["IMAGE"], "nothing to answer about: give --box X1,Y1,X2,Y2, --regions FILE, or"),
    "a region where there is no box": (["IMAGE", "--question", "What is <region1>?"], "<region1> but 0 boxes"),
    "10,000 boxes": (["IMAGE", "--regions", "MANY.json"], "10000 boxes for one image, expected 1000 at most"),
    "no such regions": (["IMAGE", "--regions", "nowhere.json"], "nowhere.json: no such file"),
    "regions that are no JSON": (["IMAGE", "--regions", "TEXT.jpg"], "TEXT.jpg: not valid JSON"),
    "regions of another form": (
        ["IMAGE", "--regions", "FORM.json"],
        "FORM.json#1: expected bbox as x, y, width, height",
    ),
    "a mask of another image": (["IMAGE", "--regions", "MASK.json"], "MASK.json: the file says 4 x 4, image"),
    "three numbers": (["IMAGE", "--box", "1,2,3"], "box 1: expected four numbers x1,y1,x2,y2 in pixels, got '1,2,3'"),
    "words": (["IMAGE", *BOX, "--box", "a,b,c,d"], "box 2: expected four numbers"),
    "not finite": (["IMAGE", "--box", "nan,1,20,20"], "box 1: expected finite numbers"),
    "inverted": (["IMAGE", "--box", "40,5,5,30"], "box 1 (40,5,5,30): corners are exchanged"),
    "no area": (["IMAGE", "--box", "5,5,5,30"], "box 1 (5,5,5,30): has no area"),
    "outside": (["IMAGE", "--box", "200,5,240,30"], "reaches outside the image, which is 96x64 pixels"),
    "outside on the left": (["IMAGE", "--box", "-5,5,40,30"], "box 1 (-5,5,40,30): reaches outside the image"),
    "fractions": (["IMAGE", "--box", "0.1,0.1,0.5,0.9"], "looks like fractions; give pixels"),
    "a region without a box": (
        ["IMAGE", *BOX, "--question", "Is <region1> left of <region5>?"],
        "<region5> but 1 box",
    ),
    "only a region without a box": (["IMAGE", *BOX, "--question", "What is <region3>?"], "<region3> but 1 box"),
    "an empty question": (["IMAGE", *BOX, "--question", " "], "the question is empty"),
    "a question about no region": (["IMAGE", *BOX, "--question", "What?"], "mentions no region: 'What?'"),
    "no model": (["IMAGE", *BOX, "--model", "nowhere"], "no model in nowhere: no such folder; give --model DIR"),
    "a folder without a model": (["IMAGE", *BOX, "--model", "FOLDER"], "the folder has no config.json"),
    "a drawing of no known kind": (["IMAGE", *BOX, "--draw", "out.doc"], "--draw out.doc: expected a file name that"),
    "a drawing in no folder": (["IMAGE", *BOX, "--draw", "no/where/out.png"], "the folder no/where does not exist"),
    "an unknown flag": (["IMAGE", *BOX, "--boxes", "1"], "unrecognized arguments: --boxes 1"),
    "no tokens": (["IMAGE", *BOX, "--max-new-tokens", "0"], "--max-new-tokens must be at least 1, got 0"),
    "an unknown device": (["IMAGE", *BOX, "--device", "abacus"], "device 'abacus' cannot be used here"),
    "a device without numbers": (["IMAGE", *BOX, "--device", "meta"], "device 'meta' cannot be used here: it holds"),
    "an unknown dtype": (["IMAGE", *BOX, "--dtype", "int3"], "dtype 'int3' is not known; expected one of"),
    "a negative temperature": (["IMAGE", *BOX, "--temperature", "-1"], "temperature must be 0 (greedy) or more"),
    "a top-p above one": (["IMAGE", *BOX, "--top-p", "2"], "top_p must be above 0 and at most 1, got 2.0"),
    "a seed below zero": (["IMAGE", *BOX, "--seed", "-1"], "seed must be a whole number from 0"),
    "an empty stop text": (["IMAGE", *BOX, "--stop", ""], "stop must be texts that are not empty"),
    "a batch of nothing": (["IMAGE", *BOX, "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    "bits that are none": (["IMAGE", *BOX, "--quantize", "3bit"], "invalid choice: '3bit'"),
    "a number that is none": (["IMAGE", *BOX, "--max-new-tokens", "x"], "invalid int value: 'x'"),
    "chat: no such image": (["chat", "nowhere.jpg"], "image 'nowhere.jpg' not found"),
    "chat: an inverted box": (["chat", "IMAGE", "--box", "40,5,5,30"], "box 1 (40,5,5,30): corners are exchanged"),
    "chat: an unknown flag": (["chat", "IMAGE", "--boxes", "1"], "unrecognized arguments: --boxes 1"),
    "caption: no such file": (["caption", "nowhere.json", *OUT], "nowhere.json: no such file; give a file of boxes"),
    "caption: no file of boxes": (["caption", "FORM.json", *OUT], "FORM.json: expected COCO or LVIS annotations"),
    "caption: no JSON": (["caption", "TEXT.jpg", *OUT], "TEXT.jpg: not valid JSON"),
    "caption: no box": (["caption", "EMPTY.json", *OUT], "EMPTY.json: holds no box"),
    "caption: no images": (
        ["caption", "MANY.json", "--images", "nowhere", "--out", "o.json"],
        "--images nowhere: no such folder",
    ),
    "caption: out in no folder": (["caption", "MANY.json", *OUT[:3], "no/where.json"], "the folder no does not exist"),
    "caption: out is a folder": (["caption", "MANY.json", *OUT[:3], "FOLDER"], "is a folder; give a file name"),
    "caption: a question about two": (
        ["caption", "MANY.json", *OUT, "--question", "Is <region1> left of <region2>?"],
        "mentions <region1>, <region2>, expected one region",
    ),
    "caption: draws without a seed": (
        ["caption", "MANY.json", *OUT, "--temperature", "1"],
        "--temperature needs --seed",
    ),
    "completion: no such shell": (["completion", "tcsh"], "invalid choice: 'tcsh'"),
}


@pytest.fixture
def places(tmp_path, image, model_folder):
    """What the words in capitals stand for."""
    (tmp_path / "TEXT.jpg").write_text("this is no image")
    (tmp_path / "CUT.png").write_bytes(image.read_bytes()[:120])
    (tmp_path / "folder").mkdir()
    contents = {
        "MANY.json": [[1, 2, 30, 40]] * 10_000,
        "FORM.json": [{"box": [1, 2, 30, 40]}, {"bbox": [1, 2, 30]}],
        "MASK.json": [{"size": [4, 4], "counts": [0, 16]}],
        "EMPTY.json": {"images": [], "annotations": []},
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(json.dumps(content))
    named = {"IMAGE": image, "FOLDER": tmp_path / "folder"}
    return named | {name: tmp_path / name for name in ("TEXT.jpg", "CUT.png", *contents)}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_input_is_one_readable_line_and_exit_code_2(case, places, model_folder, capsys):
    words, message = WRONG[case]
    command, words = (words[0], words[1:]) if words[0] in COMMANDS else ("describe", words)
    words = [str(places.get(word, word)) for word in words]
    if "--model" not in words and command != "completion":
        words += ["--model", str(model_folder)]

    assert main([command, *words]) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith(f"gpt4roi {command}: error: ") and err.count("\n") == 1 and len(err) < 400
    assert not places["FOLDER"].joinpath("o.json").exists()


def test_there_are_more_than_forty():
    assert len(WRONG) > 50
