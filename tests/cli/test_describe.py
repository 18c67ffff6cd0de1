"""`gpt4roi describe` on a tiny model: text, JSON, a drawing."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from gpt4roi import InputError, RegionChat
from gpt4roi.cli import main
from gpt4roi.cli._regions import save_drawing
from gpt4roi.report.drawing import region_color

BOXES = ["5,5,40,30", "50, 2, 70, 62"]


@pytest.fixture
def describe(model_folder, image, capsys):
    """Runs the command on the image and returns what it wrote to stdout."""

    def run(*words: str, boxes=BOXES) -> str:
        arguments = [part for box in boxes for part in ("--box", box)]
        common = ["--model", str(model_folder), "--device", "cpu", "--dtype", "float32", "--max-new-tokens", "8"]
        assert main(["describe", str(image), *arguments, *common, *words]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def chat(model_folder):
    return RegionChat.from_pretrained(model_folder, "cpu", "float32")


def pixels(boxes=BOXES) -> list[list[float]]:
    return [[float(number) for number in box.split(",")] for box in boxes]


@pytest.mark.heavy
def test_every_box_gets_a_line_with_its_number_its_corners_and_its_answer(describe, chat, image):
    answers = chat.describe(image, pixels(), max_new_tokens=8)

    lines = describe().split("\n")

    assert lines[-1] == ""
    assert [line.split("\t")[:2] for line in lines[:-1]] == [["1", "5,5,40,30"], ["2", "50,2,70,62"]]
    assert [line.split("\t")[2] for line in lines[:-1]] == [" ".join(answer.split()) for answer in answers]


def test_a_box_may_reach_a_little_over_the_left_border(describe):
    assert describe(boxes=["-0.5,5,40,30"]).startswith("1\t-0.5,5,40,30\t")
    assert describe(boxes=["-.5,5,40,30"]).startswith("1\t-0.5,5,40,30\t")


def test_exchanged_boxes_exchange_the_answers(describe):
    there, back = (json.loads(describe("--json", boxes=boxes))["regions"] for boxes in (BOXES, BOXES[::-1]))

    assert [region["answer"] for region in there] == [region["answer"] for region in back[::-1]]
    assert there[0]["answer"] != there[1]["answer"]


def test_json_is_one_object_and_nothing_else_is_on_stdout(describe, model_folder, image):
    written = json.loads(describe("--json"))

    assert written["picture"] == str(image) and written["model"] == str(model_folder)
    assert written["question"] == "What is <region1>?"
    assert [region["box"] for region in written["regions"]] == pixels()
    assert [region["region"] for region in written["regions"]] == [1, 2]


@pytest.mark.heavy
def test_another_question_about_one_region_is_asked_about_each_box(describe, chat, image):
    question = "Name <1>!"

    regions = json.loads(describe("--question", question, "--json"))["regions"]

    assert [region["answer"] for region in regions] == chat.describe(image, pixels(), question, max_new_tokens=8)


@pytest.mark.heavy
def test_a_question_about_several_regions_is_asked_once_about_all_boxes(describe, chat, image):
    question = "Which is larger, <region1> or <region2>?"
    chat.set_image(image)
    answer = chat.ask(question, pixels(), max_new_tokens=8)

    written = json.loads(describe("--question", question, "--json"))

    assert written["answer"] == answer
    assert "answer" not in written["regions"][0]
    assert describe("--question", question) == " ".join(answer.split()) + "\n"


@pytest.mark.heavy
def test_several_questions_have_a_column_each_and_json_is_one_line(describe, chat, image):
    questions = ["What is <region1>?", "Which colour is <region1>?"]
    words = [word for one in questions for word in ("--question", one)]
    expected = chat.describe(image, pixels(), questions, max_new_tokens=8)

    lines = [line.split("\t") for line in describe(*words).splitlines()]
    written = describe(*words, "--json")

    assert [line[2:] for line in lines] == [[" ".join(text.split()) for text in row] for row in expected]
    assert written.count("\n") == 1 and json.loads(written)["questions"] == questions
    assert [region["answers"] for region in json.loads(written)["regions"]] == expected


@pytest.mark.heavy
def test_pairs_are_asked_about_by_their_numbers(describe, chat, image):
    question, pairs = "Is <region1> left of <region2>?", [[1, 2], [2, 1]]
    words = ["--question", question, "--pair", "1,2", "--pair", "2,1"]
    expected = chat.describe(image, pixels(), question, pairs=pairs, max_new_tokens=8)

    lines = [line.split("\t") for line in describe(*words).splitlines()]
    written = json.loads(describe(*words, "--json"))["pairs"]

    assert [line[:3] for line in lines] == [["1,2", "5,5,40,30", "50,2,70,62"], ["2,1", "50,2,70,62", "5,5,40,30"]]
    assert [line[3] for line in lines] == [" ".join(text.split()) for text in expected]
    assert written[0] == {"pair": [1, 2], "boxes": pixels(), "answer": expected[0]}
    shares = chat.classify(pixels(), ["yes", "no"], question, image, pairs=pairs)
    chosen = json.loads(describe(*words, "--json", "--choices", "yes,no"))["pairs"]
    assert [one["choices"] for one in chosen] == [pytest.approx(one) for one in shares]


def test_the_drawing_shows_the_numbered_boxes(describe, tmp_path):
    describe("--draw", str(tmp_path / "out.png"))

    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.size == (96, 64)
        color = tuple(int(region_color(0)[i : i + 2], 16) for i in (1, 3, 5))
        assert drawn.getpixel((40, 25)) == color


def test_a_drawing_too_large_for_its_format_is_told(tmp_path):
    with pytest.raises(InputError, match=r"--draw .*out.webp: cannot be written: .*16383 pixels"):
        save_drawing(Image.new("RGB", (16400, 100)), [], tmp_path / "out.webp")


def test_choices_are_answered_by_the_likeliest_with_its_probability(describe, chat, image):
    shares = chat.classify(pixels(), ["a cat", "a dog"], image=image)
    best = [max(one, key=one.get) for one in shares]

    lines = describe("--choices", "a cat,a dog").splitlines()
    regions = json.loads(describe("--choices", "a cat, a dog", "--json"))["regions"]

    assert [line.split("\t")[2] for line in lines] == best == [region["answer"] for region in regions]
    assert [float(line.split("\t")[3]) for line in lines] == pytest.approx([max(s.values()) for s in shares], abs=1e-3)
    assert regions[1]["choices"] == pytest.approx(shares[1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--choices", "cat"], "expected at least two labels"),
        (
            ["--choices", "cat,dog", "--question", "Is <region1> left of <region2>?"],
            "--choices are labels of one region",
        ),
        (["--choices", "a,b", "--question", "<region1>?", "--question", "<region1>!"], "for one question, got 2"),
        (["--pair", "1,2"], "--pair needs a --question about <region1> and <region2>"),
        (["--pair", "1,x", "--question", "<region1> <region2>"], "pair 1: expected the numbers of two different"),
        (["--pair", "1,3", "--question", "<region1> <region2>"], "from 1 to 2, got [1, 3]"),
    ],
)
def test_what_cannot_be_asked_about_is_refused_in_one_line(model_folder, image, capsys, words, message):
    boxes = [part for box in BOXES for part in ("--box", box)]
    assert main(["describe", str(image), *boxes, "--model", str(model_folder), *words]) == 2
    assert message in capsys.readouterr().err
