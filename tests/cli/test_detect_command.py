"""`gpt4roi detect` on a tiny model: lines, counts, COCO's results, a drawing."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from gpt4roi import RegionChat
from gpt4roi.cli import main

BOXES = [[5, 5, 40, 30], [50, 2, 70, 62]]


@pytest.fixture
def detect(model_folder, image, tmp_path, capsys):
    """Runs the command on the image and returns its exit code, stdout and stderr."""
    proposals = tmp_path / "boxes.json"
    proposals.write_text(json.dumps(BOXES))

    def run(*words: str):
        common = ["--model", str(model_folder), "--device", "cpu", "--dtype", "float32", "--nms", "1"]
        code = main(["detect", str(image), "--proposals", str(proposals), *common, *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.heavy
def test_what_is_found_is_written_counted_drawn_and_saved_as_coco_has_it(detect, model_folder, image, tmp_path):
    files = ["--draw", str(tmp_path / "found.png"), "--out", str(tmp_path / "results.json"), "--image-id", "7"]

    code, out, err = detect("--query", "q", "--query", "a cup", "--threshold", "0", *files)

    assert code == 0
    found = RegionChat.from_pretrained(model_folder, "cpu", "float32").detect(
        BOXES, ["q", "a cup"], image=image, threshold=0, nms_iou=1
    )
    assert out.splitlines() == [
        f"{one.query}\t{one.region}\t{','.join(f'{value:g}' for value in one.box)}\t{one.score:.3f}" for one in found
    ]
    assert "of 2 proposals: q: 2, a cup: 2\n" in err
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(one["image_id"], one["category_id"]) for one in results] == [(7, 1), (7, 1), (7, 2), (7, 2)]
    assert results[0]["bbox"] in ([5, 5, 35, 25], [50, 2, 20, 60])
    assert Image.open(tmp_path / "found.png").size == (96, 64)


def test_nothing_found_is_a_count_of_0_and_stderr_has_the_highest_score_and_what_to_do(detect, model_folder, image):
    code, out, err = detect("--query", "a cup", "--threshold", "1", "--json")

    assert code == 0
    assert json.loads(out)["counts"] == {"a cup": 0}
    chat = RegionChat.from_pretrained(model_folder, "cpu", "float32")
    best = chat.detect(BOXES, ["a cup"], image=image, threshold=0)[0].score
    assert f"nothing reaches 1 for 'a cup'; the highest is {best:.2g}: word it as the model answers" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--threshold", "-1"], "threshold and nms_iou are from 0 to 1, got -1.0 and 1.0"),
        (["--out", "."], "--out .: is a folder; give a file name such as results.json"),
        (["--out", "/dev/null"], "--out /dev/null is no file; give a file name such as results.json"),
        (
            ["--question", "Is there {}?"],
            "the question mentions no region: 'Is there {}?'; write <region1> where the region is meant",
        ),
    ],
)
def test_wrong_arguments_are_refused_before_the_model_is_opened(detect, monkeypatch, words, message):
    monkeypatch.setattr("gpt4roi.cli.detect.open_chat", lambda args: pytest.fail("the model was opened"))

    code, _, err = detect("--query", "a cup", *words)

    assert code == 2
    assert err == f"gpt4roi detect: error: {message}\n"
