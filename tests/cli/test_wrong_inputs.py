"""Wrong inputs of `gpt4roi describe`: each is one readable line on stderr, nothing on stdout, exit code 2."""

from __future__ import annotations

import pytest

from gpt4roi.cli import main

BOX = ("--box", "5,5,40,30")

WRONG = {
    "no such picture": (["nowhere.jpg", *BOX], "picture 'nowhere.jpg' not found"),
    "a folder": (["FOLDER", *BOX], "is a folder; give one picture inside it"),
    "a text file named .jpg": (["TEXT.jpg", *BOX], "is not a picture file that can be read"),
    "a picture cut off": (["CUT.png", *BOX], "cannot be decoded"),
    "no box": (["PICTURE"], "the following arguments are required: --box"),
    "three numbers": (["PICTURE", "--box", "1,2,3"], "box 1: expected four numbers x1,y1,x2,y2 in pixels, got '1,2,3'"),
    "words": (["PICTURE", *BOX, "--box", "a,b,c,d"], "box 2: expected four numbers"),
    "not finite": (["PICTURE", "--box", "nan,1,20,20"], "box 1: expected finite numbers"),
    "inverted": (["PICTURE", "--box", "40,5,5,30"], "box 1 (40,5,5,30): corners are exchanged"),
    "no area": (["PICTURE", "--box", "5,5,5,30"], "box 1 (5,5,5,30): has no area"),
    "outside": (["PICTURE", "--box", "200,5,240,30"], "reaches outside the picture, which is 96x64 pixels"),
    "fractions": (["PICTURE", "--box", "0.1,0.1,0.5,0.9"], "looks like fractions; give pixels"),
    "a region without a box": (
        ["PICTURE", *BOX, "--question", "Is <region1> left of <region5>?"],
        "<region5> but 1 box",
    ),
    "only a region without a box": (["PICTURE", *BOX, "--question", "What is <region3>?"], "<region3> but 1 box"),
    "an empty question": (["PICTURE", *BOX, "--question", " "], "the question is empty"),
    "a question about no region": (["PICTURE", *BOX, "--question", "What?"], "mentions no region: 'What?'"),
    "no model": (["PICTURE", *BOX, "--model", "nowhere"], "no model in nowhere: no such folder; give --model DIR"),
    "a folder without a model": (["PICTURE", *BOX, "--model", "FOLDER"], "the folder has no config.json"),
    "a drawing of no known kind": (["PICTURE", *BOX, "--draw", "out.doc"], "--draw out.doc: expected a file name that"),
    "a drawing in no folder": (["PICTURE", *BOX, "--draw", "no/where/out.png"], "the folder no/where does not exist"),
    "an unknown flag": (["PICTURE", *BOX, "--boxes", "1"], "unrecognized arguments: --boxes 1"),
    "no tokens": (["PICTURE", *BOX, "--max-new-tokens", "0"], "--max-new-tokens must be at least 1, got 0"),
    "an unknown device": (["PICTURE", *BOX, "--device", "abacus"], "device 'abacus' cannot be used here"),
    "an unknown dtype": (["PICTURE", *BOX, "--dtype", "int3"], "dtype 'int3' is not known; expected one of"),
}


@pytest.fixture
def places(tmp_path, picture, model_folder):
    """What the words in capitals stand for."""
    (tmp_path / "TEXT.jpg").write_text("this is no picture")
    (tmp_path / "CUT.png").write_bytes(picture.read_bytes()[:120])
    (tmp_path / "folder").mkdir()
    named = {"PICTURE": picture, "FOLDER": tmp_path / "folder"}
    return named | {name: tmp_path / name for name in ("TEXT.jpg", "CUT.png")}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_input_is_one_readable_line_and_exit_code_2(case, places, model_folder, capsys):
    words, message = WRONG[case]
    words = [str(places.get(word, word)) for word in words]
    if "--model" not in words:
        words += ["--model", str(model_folder)]

    assert main(["describe", *words]) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("gpt4roi describe: error: ") and err.count("\n") == 1 and len(err) < 400
