"""Several runs in one table: their figures, and each against the first with paired intervals."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
from official import visual_genome
from stub_judge import StubJudge, text_of

from gpt4roi.cli import main
from gpt4roi.evaluation import captions
from gpt4roi.evaluation.evaluate import evaluate
from gpt4roi.evaluation.items import Source
from gpt4roi.evaluation.judge import Judge


@pytest.fixture(autouse=True)
def without_java(monkeypatch):
    monkeypatch.setattr(captions, "has_java", lambda: False)


def answers(text: str):
    return lambda queries: [text if number else "a tall man in a red coat waits" for number, _ in enumerate(queries)]


@pytest.fixture
def runs(tmp_path):
    """Three runs of vg: the first and the last say the same; the last over one image of two."""
    data = visual_genome(tmp_path / "data")
    for name, text, limit in (("a", "a dog", None), ("b", "two small dogs sleep", None), ("c", "a dog", 1)):
        settings = {"settings": {"model": name}, "metadata": {"model": name}}
        evaluate("vg", answers(text), Source(data, limit=limit), tmp_path / name, **settings)
    return [str(tmp_path / name) for name in "abc"]


def test_a_table_has_the_figures_of_every_run_and_the_differences_to_the_first(runs, capsys, tmp_path):
    assert main(["compare", *runs[:2], "--html", str(tmp_path / "page.html")]) == 0

    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "## Visual Genome region captions, test"
    assert (
        lines[2] == f"|  | {runs[0]} | {runs[1]} | {runs[1]} − {runs[0]} |" and lines[3] == "| --- | --- | --- | --- |"
    )
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text())["summary"] for name in "ab"]
    row = next(line for line in lines if line.startswith("| word overlap |"))
    before, now, difference = row.strip("| ").split(" | ")[1:]
    assert (before, now) == tuple(f"{100 * one['word overlap']:.1f}" for one in metrics)
    value, low, high = map(float, re.findall(r"[+-]?\d+\.\d", difference))
    assert value == pytest.approx(100 * (metrics[1]["word overlap"] - metrics[0]["word overlap"]), abs=0.06)
    assert low <= value <= high
    assert "4 questions about 2 images that all runs answered" in lines[-1] and "2000 paired resamplings" in lines[-1]
    page = (tmp_path / "page.html").read_text()
    assert "before: <s>a dog</s>" in page and f"{runs[1]} − {runs[0]}" in page and "page.html" in err


def test_differences_are_those_of_evaluate_compare(runs, capsys, tmp_path):
    data = Source(tmp_path / "data")
    settings = {"settings": {"model": "b"}, "metadata": {"model": "b"}, "compare": runs[0]}
    expected = evaluate("vg", answers("two small dogs sleep"), data, tmp_path / "b", **settings)["compared"]

    assert main(["compare", *runs[:2], "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["runs"][1]["differences"] == expected["differences"] and found["items"] == expected["items"]
    assert "differences" not in found["runs"][0] and found["runs"][1]["model"] == "b"


def test_only_questions_that_all_runs_have_count(runs, capsys):
    assert main(["compare", *runs, "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["items"] == 2
    assert {one["value"] for one in found["runs"][2]["differences"].values()} == {0.0}


def test_judged_runs_take_the_verdicts_that_they_have_and_ask_nothing(tmp_path, capsys):
    pytest.importorskip("openai")
    data, asked = visual_genome(tmp_path / "data"), Counter()

    def reply(body):
        asked[text_of(body)] += 1
        return '{"score": 90, "reason": "same"}' if "- two small" in text_of(body) else '{"score": 20, "reason": ""}'

    stub = StubJudge(reply)
    try:
        for name, text in (("a", "a dog"), ("b", "two small dogs sleep")):
            source = Source(data, judge=Judge(stub.url, "stub", tmp_path / name / "judge"))
            evaluate("vg", answers(text), source, tmp_path / name, settings={"model": name})
        before = sum(asked.values())
        source = Source(data, judge=Judge(stub.url, "stub", tmp_path / "b" / "judge"))
        settings = {"settings": {"model": "b"}, "compare": tmp_path / "a"}
        compared = evaluate("vg", answers("two small dogs sleep"), source, tmp_path / "b", **settings)["compared"]
    finally:
        stub.close()

    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)["runs"][1]
    (name,) = (name for name in found["figures"] if name.startswith("CLAIR"))
    assert re.fullmatch(r"CLAIR \(judge stub, prompt [0-9a-f]{8}\)", name)
    assert found["differences"][name] == compared["differences"][name]
    assert found["differences"][name]["value"] > 0 and sum(asked.values()) == before
    (tmp_path / "a" / "judge" / "0.jsonl").unlink()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "verdicts are not in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        ({}, [], "give two runs or more"),
        ({}, ["nowhere"], "nowhere: no such file; give the metrics.json of another run"),
        ({"benchmark": "vcr"}, ["b"], "is of the benchmark 'vcr', not 'vg'"),
        ({"judge": {"url": "http://x/v1", "model": "m", "prompt": "1"}}, ["b"], "verdicts of two judges are never"),
        ({}, ["b", "--data", "elsewhere"], "its data were elsewhere, which is not there; give --data PATH"),
    ],
)
def test_runs_that_cannot_be_compared_are_one_line(runs, tmp_path, capsys, monkeypatch, change, words, message):
    monkeypatch.chdir(tmp_path)
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text())
    (tmp_path / "b" / "metrics.json").write_text(json.dumps(metrics | change))

    assert main(["compare", "a", *words]) == 2

    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
