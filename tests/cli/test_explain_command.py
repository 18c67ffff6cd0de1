"""`gpt4roi explain` on a tiny model: lines, JSON, a drawing."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from gpt4roi.cli import main


@pytest.fixture
def explain(model_folder, image, capsys):
    """Runs the command on the image and returns its exit code, stdout and stderr."""

    def run(*words: str):
        common = ["--model", str(model_folder), "--device", "cpu", "--dtype", "float32", "--cells", "2"]
        code = main(["explain", str(image), "--box", "5,5,40,30", "--answer", "a cat", *common, *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.heavy
def test_shares_inside_of_each_box_are_lines_and_all_numbers_are_json_a_drawing_and_a_page(explain, tmp_path):
    drawing, page = tmp_path / "out.png", tmp_path / "out.html"

    code, lines, _ = explain("--draw", str(drawing), "--report", str(page))
    record = json.loads(explain("--json")[1])

    assert code == 0
    first, *rest = lines.splitlines()
    assert first == record["answer"] == "a cat"
    shares = [[method, "1", f"{heat['inside'][0]:.3f}"] for method, heat in record["heatmaps"].items()]
    assert [line.split("\t") for line in rest] == shares
    assert list(record["heatmaps"]) == ["occlusion", "gradient", "attention"]
    occlusion = record["heatmaps"]["occlusion"]
    assert len(occlusion["values"]) == len(occlusion["y"]) - 1
    assert (occlusion["x"][0], occlusion["x"][-1], occlusion["y"][-1]) == (0, 96, 64)
    assert len(occlusion["token_values"]) == len(record["tokens"])
    assert Image.open(drawing).size == (3 * 96, 64)
    written = page.read_text(encoding="utf-8")
    assert written.count('class="item"') == 3 and "a cat" in written
    assert all(f"{float(share):g}" in written for _, _, share in shares)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "occlusion,shap"], "methods are some of occlusion, gradient, attention; got shap"),
        (["--cells", "0"], "cells and batch_size must be at least 1, got 0 and 16"),
        (["--report", "."], "--report .: is a folder; give a file name such as explained.html"),
        (["--draw", "nowhere/a.png"], "--draw nowhere/a.png: the folder nowhere does not exist; make it first"),
    ],
)
def test_wrong_arguments_are_refused_before_the_model_is_opened(explain, monkeypatch, words, message):
    monkeypatch.setattr("gpt4roi.cli.explain.open_chat", lambda args: pytest.fail("the model was opened"))

    code, _, error = explain(*words)

    assert code == 2
    assert error == f"gpt4roi explain: error: {message}\n"
