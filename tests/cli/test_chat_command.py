"""`gpt4roi chat`, fed through a pipe and driven as a person would."""

from __future__ import annotations

import io
import json

import pytest

from gpt4roi import RegionChat
from gpt4roi.cli import load_subcommand, main

pytestmark = pytest.mark.heavy


@pytest.fixture
def talk(model_folder, image, monkeypatch, capsys):
    """Runs the command with lines on stdin; returns its exit code, stdout and stderr."""

    def run(lines: list[str], *words: str):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        common = ["--model", str(model_folder), "--device", "cpu", "--dtype", "float32", "--max-new-tokens", "8"]
        code = main(["chat", str(image), *common, *words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def chat(model_folder, image):
    chat = RegionChat.from_pretrained(model_folder, "cpu", "float32")
    chat.set_image(image)
    return chat


def answers(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_every_line_is_a_question_of_one_conversation(talk, chat):
    lines = ["What is <1>?", "/box 50,2,70,62", "And <region2>?", "", "Go on"]

    code, out, _ = talk(lines, "--box", "5,5,40,30", "--json")

    expected = [
        chat.ask("What is <region1>?", [[5, 5, 40, 30]], max_new_tokens=8),
        chat.ask("And <region2>?", [[50, 2, 70, 62]], max_new_tokens=8),
        chat.ask("Go on", max_new_tokens=8),
    ]
    assert code == 0
    assert [answer["answer"] for answer in answers(out)] == expected
    assert [answer["question"] for answer in answers(out)] == ["What is <1>?", "And <region2>?", "Go on"]
    assert answers(out)[-1]["regions"][1] == {"region": 2, "box": [50, 2, 70, 62]}


def test_text_comes_as_a_line_an_answer(talk, chat):
    code, out, _ = talk(["What is <1>?"], "--box", "5,5,40,30")

    assert code == 0
    assert out == chat.ask("What is <region1>?", [[5, 5, 40, 30]], max_new_tokens=8) + "\n"


def test_a_wrong_line_costs_nothing_but_itself_and_the_exit_code(talk, chat):
    lines = ["What is <4>?", "/box 1,2,3", "/bix", "/draw out.doc", "/save /no/where.json", "/image no.png"]

    code, out, err = talk([*lines, "What is <1>?"], "--box", "5,5,40,30", "--json")

    assert code == 2
    (answer,) = answers(out)
    assert answer["answer"] == chat.ask("What is <region1>?", [[5, 5, 40, 30]], max_new_tokens=8)
    told = [line for line in err.splitlines() if "error" in line]
    expected = ["<region4> but 1 box", "box 2: expected four numbers", "unknown command /bix"]
    expected += ["/draw out.doc: expected a file name", "/save /no/where.json: cannot be written", "'no.png' not found"]
    assert len(told) == 6 and all(message in line for message, line in zip(expected, told, strict=True))


def test_commands_keep_boxes_and_files_in_step(talk, tmp_path, image):
    saved = tmp_path / "talk.json"
    lines = [
        "/box 1,2,30,40",
        "/box 9,9,20,20",
        "/undo",
        "What is <1>?",
        f"/save {saved}",
        "/boxes",
        "/reset",
        "/boxes",
    ]
    lines += [f"/draw {tmp_path / 'drawn.png'}", f"/image {image}", "Hello", "/help", "/quit", "/bix"]

    code, out, err = talk(lines, "--json", "--draw", str(tmp_path / "now.png"))

    assert code == 0 and len(answers(out)) == 2
    written = json.loads(saved.read_text())
    assert written["boxes"] == [[1, 2, 30, 40]] and written["turns"][0]["text"] == "What is <region1>?"
    assert err.count("region 1: 1,2,30,40") == 2  # when it was given, and when asked for
    assert (tmp_path / "drawn.png").is_file() and (tmp_path / "now.png").is_file()
    assert "/box X1,Y1,X2,Y2" in err


def test_an_interrupted_answer_is_no_part_of_the_conversation(chat, capsys, monkeypatch):
    module = load_subcommand("chat")
    talk = module.Conversation(
        chat, "p.png", chat._dialogue.image, [[5, 5, 40, 30]], {"max_new_tokens": 8}, False, None
    )
    steps = []

    def interrupt(*_):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt

    hook = chat.model.language_model.register_forward_hook(interrupt)
    assert talk.run(iter(["What is <1>?"]), talking=True) == 0
    hook.remove()

    assert "stopped" in capsys.readouterr().err
    assert chat.turns == () and talk.boxes == [[5, 5, 40, 30]]
    assert talk.run(iter(["What is <1>?"]), talking=True) == 0
    assert len(chat.turns) == 2
