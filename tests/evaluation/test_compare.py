"""Two runs beside each other, the page of a run, and the command's own errors."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from official import WRITERS

from gpt4roi.cli import main
from gpt4roi.evaluation import captions
from gpt4roi.evaluation.evaluate import evaluate
from gpt4roi.evaluation.html_report import BEST, BETWEEN, WORST, pick
from gpt4roi.evaluation.items import Source
from gpt4roi.evaluation.metrics import Measure


@pytest.fixture(autouse=True)
def without_java(monkeypatch):
    """Its start would take longer than everything else here."""
    monkeypatch.setattr(captions, "has_java", lambda: False)


@pytest.fixture(scope="module")
def telling(tmp_path_factory):
    """Visual7W telling with one question on each of its images, so that images can be resampled."""
    folder = WRITERS["v7w-telling"](tmp_path_factory.mktemp("v7w"))
    path = folder / "dataset_v7w_telling.json"
    content = json.loads(path.read_text())
    image = content["images"][0]
    content["images"] = [
        {**image, "qa_pairs": [pair], "filename": f"v7w_{n}.jpg"} for n, pair in enumerate(image["qa_pairs"])
    ]
    encoded = (folder / "visual7w_images" / "v7w_5.jpg").read_bytes()
    for n in range(len(content["images"])):
        (folder / "visual7w_images" / f"v7w_{n}.jpg").write_bytes(encoded)
    path.write_text(json.dumps(content))
    return folder


def right_of(share: float, items):
    """An predictor that is right in the first so many of a hundred questions."""
    truth = {item.id: item.query.choices[item.label] for item in items}
    wrong = {item.id: item.query.choices[item.label - 1] for item in items}
    good = set(list(truth)[: round(share * len(truth))])
    return lambda queries: [truth[query.id] if query.id in good else wrong[query.id] for query in queries]


@pytest.fixture(scope="module")
def runs(telling, tmp_path_factory):
    """A run that is right in 60 % and one in 75 % of the questions, compared."""
    from gpt4roi.evaluation.benchmarks import open_benchmark

    out, items = tmp_path_factory.mktemp("runs"), open_benchmark("v7w-telling").load(Source(telling))
    source = Source(telling)
    evaluate("v7w-telling", right_of(0.6, items), source, out / "a", metadata={"model": "A"}, settings={"model": "A"})
    settings = {"metadata": {"model": "B"}, "settings": {"model": "B"}, "compare": out / "a"}
    return out, evaluate("v7w-telling", right_of(0.75, items), source, out / "b", **settings)


def test_a_paired_difference_is_the_difference_with_an_interval_that_pairing_narrows(runs):
    out, metrics = runs
    difference = metrics["compared"]["differences"]["accuracy (parsed)"]
    before = json.loads((out / "a" / "metrics.json").read_text())["estimates"]["accuracy (parsed)"]

    assert difference["before"] == before["value"] == 0.6
    assert difference["value"] == pytest.approx(0.15)
    assert 0.08 < difference["low"] < 0.15 < difference["high"] < 0.22
    assert difference["high"] - difference["low"] < before["high"] - before["low"]
    assert metrics["compared"]["items"] == 120 and metrics["compared"]["model"] == "A"


def test_a_run_against_itself_differs_by_nothing(runs, telling):
    from gpt4roi.evaluation.benchmarks import open_benchmark

    out, _ = runs
    answer = right_of(0.6, open_benchmark("v7w-telling").load(Source(telling)))
    metrics = evaluate("v7w-telling", answer, Source(telling), out / "c", compare=out / "a" / "metrics.json")

    one = metrics["compared"]["differences"]["accuracy (parsed)"]
    assert (one["value"], one["low"], one["high"]) == (0, 0, 0)


def test_the_page_shows_both_runs_histograms_crops_and_how_it_was_measured(runs):
    out, _ = runs
    html = (out / "b" / "report.html").read_text()

    assert html.count('class="item"') == 120 and 'data-verdict="changed"' in html
    assert html.count(' changed"') == 18  # 15 % of 120 questions
    assert "Against the other run" in html
    for chart in ("side of the box", "regions in the question", "length of the answer"):
        assert chart in html
    assert re.findall(r'(?:src|href)="(?!data:)', html) == []
    assert "How it was measured" in html and "&#39;draws&#39;: 2000" in html


def test_captions_are_compared_by_corpus_measures_too(tmp_path):
    data, source = WRITERS["vg"](tmp_path / "data"), Source(tmp_path / "data")
    assert data.is_dir()
    evaluate("vg", lambda queries: ["a tall man"] * len(queries), source, tmp_path / "a", settings={"model": "A"})
    metrics = evaluate(
        "vg",
        lambda queries: ["a red coat waits"] * len(queries),
        source,
        tmp_path / "b",
        settings={"model": "B"},
        compare=tmp_path / "a",
    )

    differences = metrics["compared"]["differences"]
    before, now = (json.loads((tmp_path / run / "metrics.json").read_text())["summary"] for run in "ab")
    for name in ("CIDEr", "BLEU-4", "ROUGE-L", "word overlap"):
        assert differences[name]["value"] == pytest.approx(now[name] - before[name], abs=2e-6)
        assert differences[name]["low"] <= differences[name]["value"] <= differences[name]["high"]
    page = (tmp_path / "b" / "report.html").read_text()
    assert page.count('class="crop"') == 4 and '<ul class="refs"' in page and 'data-name="CIDEr"' in page
    assert "before: <s>a tall man</s>" in page


def test_the_gallery_of_a_large_set_holds_the_worst_the_best_and_some_between():
    kept = pick(list(range(1000)))

    assert len(kept) == WORST + BEST + BETWEEN
    assert kept[:WORST] == list(range(WORST)) and kept[-BEST:] == list(range(1000 - BEST, 1000))
    assert kept == sorted(kept) and pick(list(range(20))) == list(range(20))


def test_figures_that_are_formulas_of_sums_are_resampled_as_such():
    statistics = np.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    measure = Measure(statistics, lambda sums: sums[:, 0] / sums[:, 1], np.zeros(3), ["a", "a", "b"])

    figures = measure.resampled(50)

    assert measure.value == pytest.approx(9 / 12)
    assert set(np.round(figures, 6)) == {round(4 / 6, 6), round(9 / 12, 6), round(5 / 6, 6)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--compare", "nowhere.json"], "--compare nowhere.json: no such file; give the metrics.json of another run"),
        (["--split", "dev"], "--split dev: v7w-telling has test, val, train"),
        (["--shuffle", "1"], "--shuffle draws the images of --limit; give --limit N too"),
        (["--images", "nowhere"], "--images nowhere: no such folder"),
        (["--sentence-model", "nowhere"], "--sentence-model nowhere: no config.json there"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1, got 0"),
        (["--model", "nowhere.py"], "--model nowhere.py: no such file"),
        (["--limit", "5", "--shuffle", "-1"], "--shuffle must be a seed of 0 or more, got -1"),
    ],
)
def test_wrong_arguments_are_one_line(words, message, telling, tmp_path, capsys):
    model = tmp_path / "model.py"
    model.write_text("def answer(queries):\n    return ['(A)'] * len(queries)\n")
    given = {
        "--benchmark": "v7w-telling",
        "--data": str(telling),
        "--out": str(tmp_path / "out"),
        "--model": str(model),
    }
    for name, value in given.items():
        words = words if name in words else [*words, name, value]

    assert main(["evaluate", *words]) == 2

    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "message"),
    [("x = 1", "defines no function answer(queries)"), ("def answer(", "'(' was never closed")],
)
def test_a_file_that_wraps_no_model_is_refused(code, message, telling, tmp_path, capsys):
    model = tmp_path / "model.py"
    model.write_text(code)
    words = [
        "--benchmark",
        "v7w-telling",
        "--data",
        str(telling),
        "--out",
        str(tmp_path / "out"),
        "--model",
        str(model),
    ]

    assert main(["evaluate", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_run_of_another_benchmark_is_no_comparison(runs, tmp_path, capsys):
    out, _ = runs
    data = WRITERS["vg"](tmp_path / "data")
    model = tmp_path / "model.py"
    model.write_text("def answer(queries):\n    return ['x'] * len(queries)\n")
    words = ["--benchmark", "vg", "--data", str(data), "--out", str(tmp_path / "out"), "--model", str(model)]

    assert main(["evaluate", *words, "--compare", str(out / "a")]) == 2
    assert "is of the benchmark 'v7w-telling', not 'vg'" in capsys.readouterr().err


def test_data_that_cannot_be_read_are_told_before_the_model_is_opened(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gpt4roi.cli.evaluate.open_predictor", lambda *given: pytest.fail("the model was opened"))
    (tmp_path / "data.json").write_text("no JSON")
    model = tmp_path / "model.py"
    model.write_text("def answer(queries):\n    return ['x'] * len(queries)\n")
    words = ["--benchmark", "vg", "--data", str(tmp_path / "data.json"), "--out", str(tmp_path / "out")]

    assert main(["evaluate", *words, "--model", str(model)]) == 2
    assert "data.json: not valid JSON" in capsys.readouterr().err


def test_images_that_are_not_there_are_said_before_anything_is_asked(telling, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    model = tmp_path / "model.py"
    model.write_text("def answer(queries):\n    raise AssertionError('asked')\n")
    words = [
        "--benchmark",
        "v7w-telling",
        "--data",
        str(telling),
        "--out",
        str(tmp_path / "out"),
        "--model",
        str(model),
    ]

    assert main(["evaluate", *words, "--images", str(tmp_path / "empty")]) == 2
    assert "120 of 120 images are not there" in capsys.readouterr().err
