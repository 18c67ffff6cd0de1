"""Every benchmark reads its official files and runs end to end, through the command, with two wrapped models."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from official import CAPTIONS, QUESTIONS, write_image
from official import WRITERS as UNJUDGED
from official_judged import JUDGED, gar_bench, impartial
from stub_judge import StubJudge
from tiny import tiny_model, tiny_processor

from gpt4roi.cli import main
from gpt4roi.errors import InputError
from gpt4roi.evaluation import captions
from gpt4roi.evaluation.benchmarks import BENCHMARKS, open_benchmark
from gpt4roi.evaluation.captions import has_java
from gpt4roi.evaluation.evaluate import evaluate, read_items
from gpt4roi.evaluation.html_report import worst_heatmaps
from gpt4roi.evaluation.items import Source
from gpt4roi.evaluation.predictor import ModelPredictor
from gpt4roi.io.atomic import only_writer

ORACLE = """
from pathlib import Path
from gpt4roi.evaluation.benchmarks import open_benchmark
from gpt4roi.evaluation.items import Source
ITEMS = {item.id: item for item in open_benchmark(NAME).load(Source(Path(DATA)))}
def answer(queries):
    items = [ITEMS[query.id] for query in queries]
    return [item.query.choices[item.label] if item.query.choices else item.references[0] for item in items]
def likelihoods(queries):
    return [[float(place == ITEMS[query.id].label) for place in range(len(query.choices))] for query in queries]
"""
CONSTANT = """
def answer(queries):
    return [query.choices[0] if query.choices else "something" for query in queries]
def likelihoods(queries):
    return [[0.0] * len(query.choices) for query in queries]
"""
WRITERS = {**UNJUDGED, **JUDGED, "gar-vqa": gar_bench}
CHANCE = {
    "gar-vqa": 0.25,
    "vcr": 0.25,
    "v7w-pointing": 0.25,
    "v7w-telling": 0.25,
    "coco-two-way": 0.5,
    "lvis-two-way": 0.5,
}


@pytest.fixture(scope="module")
def judge():
    """An impartial judge, as arguments."""
    pytest.importorskip("openai")
    stub = StubJudge(impartial)
    yield ("--judge", stub.url, "--judge-model", "stub")
    stub.close()


@pytest.fixture
def run(tmp_path, capsys, monkeypatch, judge):
    """A function that evaluates a wrapped model by the command and returns its metrics; without Java unless asked."""

    def evaluate(name: str, code: str, *words: str, java: bool = False) -> dict:
        monkeypatch.setattr(captions, "has_java", lambda: java)
        data = WRITERS[name](tmp_path / "data")
        model = tmp_path / "model.py"
        model.write_text(code.replace("NAME", repr(name)).replace("DATA", repr(str(data))), encoding="utf-8")
        words += judge if name in JUDGED else ()
        words = ("--benchmark", name, "--data", str(data), "--model", str(model), *words)
        assert main(["evaluate", *words, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
        return json.loads((tmp_path / "out" / "metrics.json").read_text())

    return evaluate


def test_there_are_tiny_files_for_every_benchmark():
    assert set(WRITERS) == set(BENCHMARKS)


@pytest.mark.heavy
@pytest.mark.parametrize("name", WRITERS)
def test_a_model_that_returns_the_reference_gets_the_maximum(run, name):
    metrics = run(name, ORACLE)

    measured = metrics["summary"]
    best = {f"{part} ({way})" for part in ("Q→A", "QA→R", "Q→AR", "accuracy") for way in ("parsed", "likelihood")}
    best |= {"SS", "S-IoU", "exact match", "word overlap", "BLEU-4", "ROUGE-L", "top-1 (its name)"}
    best |= {
        "mAP",
        "AP50",
        "AP75",
        "similarity",
        "pointing",
        "pointing F1",
        "lexical, same name",
        "lexical, kind or part",
    }
    best |= {f"{kind} ({way})" for kind in ("yes/no", "multiple choice") for way in ("parsed", "likelihood")}
    best |= {"top-1 (nearest name)", *(f"{one} (all references of a box)" for one in ("word overlap", "exact match"))}
    measured = {key.partition(" (judge stub, ")[0]: value for key, value in measured.items()}
    best |= {"mean of the parts", "refer_reason", "all", "right", "average", "positive", "negative"}
    found = best & set(measured)
    assert found and {key: measured[key] for key in found} == pytest.approx(dict.fromkeys(found, 1.0), abs=1e-5)
    if name == "vg":
        assert measured["CIDEr"] == pytest.approx(10.0)
    assert metrics["unanswered"] == 0 and metrics["command"].startswith(f"gpt4roi evaluate --benchmark {name} ")


@pytest.mark.heavy
@pytest.mark.parametrize("name", WRITERS)
def test_a_constant_answer_is_near_chance(run, name):
    measured = run(name, CONSTANT)["summary"]

    if name in JUDGED:  # the least of a rating is 1 of 10; an unspecific description denies nothing
        measured = {key.partition(" (judge stub, ")[0]: value for key, value in measured.items()}
        least = {"mean of the parts": 0.1, "all": 0.0, "right": 0.0, "positive": 0.0, "recognition": 0.0}
        found = least.keys() & measured.keys()
        assert found and {key: measured[key] for key in found} == pytest.approx({key: least[key] for key in found})
    elif name.endswith("-detection"):  # its boxes overlap so much that most are right for both categories
        assert measured["mAP"] < 0.95
    elif name in CHANCE:
        chances = [value for key, value in measured.items() if key.startswith(("accuracy", "Q→A ", "QA→R "))]
        if "two-way" in name:  # Ferret's rule takes any name of the category in the answer
            assert chances == [pytest.approx(0.5, abs=0.1)] * 2
        assert chances and chances == [pytest.approx(CHANCE[name], abs=0.1)] * len(chances)
    else:
        named = [
            key for key in measured if key.startswith(("CIDEr", "BLEU-4", "S-IoU", "top-1 (its", "exact", "lexical"))
        ]
        assert named and [measured[key] for key in named] == [pytest.approx(0.0, abs=1e-3)] * len(named)
        assert measured.get("SS", 0.0) < 0.5


@pytest.mark.heavy
@pytest.mark.skipif(not has_java(), reason="PTB tokenizer and METEOR are Java programs")
def test_with_java_captions_get_meteor_and_the_maximum_of_every_measure(run):
    metrics = run("vg", ORACLE, java=True)

    expected = {"CIDEr": 10.0, "METEOR": 1.0, "BLEU-1": 1.0, "BLEU-4": 1.0, "ROUGE-L": 1.0}
    assert {name: metrics["summary"][name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert metrics["tokenizer"].startswith("PTB")


def test_without_java_the_rest_is_computed_and_a_word_says_what_is_missing(run, capsys):
    metrics = run("vg", ORACLE)

    assert "METEOR" not in metrics["summary"] and metrics["summary"]["CIDEr"] > 0
    assert any(note.startswith("METEOR: Java is missing") for note in metrics["notes"])
    assert "not comparable" in metrics["tokenizer"]
    assert "METEOR: Java is missing" in capsys.readouterr().err


def test_a_model_without_likelihoods_is_scored_by_parsing_alone_and_that_is_said(run):
    metrics = run("v7w-telling", CONSTANT.split("def likelihoods")[0])

    assert "accuracy (likelihood)" not in metrics["summary"] and "accuracy (parsed)" in metrics["summary"]
    assert any("no likelihoods" in note for note in metrics["notes"])


def test_metrics_hold_what_is_needed_to_judge_and_repeat_them(run, tmp_path):
    metrics = run("refcocog", ORACLE, "--limit", "1", "--shuffle", "3")

    assert metrics["items"] == 2 and metrics["pictures"] == 1
    assert metrics["protocols"]["one reference per expression"]["n"] in (2, 3)
    assert metrics["bootstrap"] == {"draws": 2000, "seed": 0, "unit": "picture", "interval": 0.95}
    assert "--limit 1 --shuffle 3" in metrics["command"] and metrics["decoding"] == "greedy"
    assert {"value", "low", "high", "n"} == set(metrics["estimates"]["CIDEr (one reference per expression)"])
    line = json.loads((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()[0])
    assert {"id", "picture", "boxes", "question", "references", "answer", "scores"} <= set(line)


def load(name, tmp_path, **changes):
    return open_benchmark(name).load(Source(WRITERS[name](tmp_path / "data"), **changes))


def test_a_box_is_asked_about_once_and_has_all_its_expressions(tmp_path):
    items = load("refcocog", tmp_path)

    assert len(items) == 4
    assert items[0].references == (CAPTIONS[0], "that same man")
    assert items[0].query.boxes_px.tolist() == [[2, 3, 32, 43]]
    assert items[0].query.image.name == "000000000000.jpg" and items[0].query.image.exists()


def test_phrases_of_all_sentences_about_a_box_of_flickr_are_its_references(tmp_path):
    assert [item.references for item in load("flickr30k", tmp_path)] == [
        ("Two men in green shirts", "A pair of men"),
        ("a brown dog",),
    ]


def test_vcr_numbers_objects_from_the_token_lists_and_leaves_plain_numbers_alone(tmp_path):
    first, second = load("vcr", tmp_path)[:2]

    assert "Question: Why is person at <region1> near dog at <region2>?" in first.query.question
    assert "(B) Because dog at <region2> is 20 years old." in first.query.question
    assert "(C) person at <region1> and dog at <region2> sit" in first.query.question
    assert first.query.boxes_px.shape == (2, 4) and first.id == "val-0:qa" and second.id == "val-0:qar"
    assert "Answer: person at <region1> smiles." in second.query.question and second.options[0] == "No."


def test_vcr_counts_both_right_by_annotation_and_not_by_order(tmp_path):
    items = load("vcr", tmp_path)
    right = [replace(item, answer=item.query.choices[item.label]) for item in items]
    wrong = [replace(item, answer="(A)" if item.label else "(B)") for item in items]
    mixed = [(right if (number % 3 == 0 or item.task == "Q→A") else wrong)[number] for number, item in enumerate(items)]
    measures = open_benchmark("vcr").score(mixed[::-1], Source(tmp_path)).measures

    both = [
        mixed[n].answer == right[n].answer and mixed[n + 1].answer == right[n + 1].answer
        for n in range(0, len(items), 2)
    ]
    assert measures["Q→A (parsed)"].value == 1.0
    assert measures["Q→AR (parsed)"].value == pytest.approx(sum(both) / len(both))


def test_the_right_option_of_visual7w_stands_anywhere_and_always_at_the_same_place(tmp_path):
    items = load("v7w-pointing", tmp_path)

    assert len(items) == QUESTIONS
    assert {item.label for item in items} == {0, 1, 2, 3}
    assert [item.label for item in items] == [item.label for item in load("v7w-pointing", tmp_path)]
    assert all(item.query.boxes_px.shape == (4, 4) for item in items)
    assert "(D) <region4>" in items[0].query.question


def test_telling_questions_get_the_boxes_they_are_about(tmp_path):
    items = load("v7w-telling", tmp_path)

    assert items[0].query.boxes_px.tolist() == [[1, 2, 31, 22]] and "about <region1>." in items[0].query.question
    assert len(items[-1].query.boxes_px) == 0 and "<region" not in items[-1].query.question


def test_masks_of_both_forms_become_boxes(tmp_path):
    boxes = [item.query.boxes_px[0].tolist() for item in load("lvis", tmp_path)]

    assert boxes[0] == [5, 5, 40, 30] and boxes[1] == [10, 5, 11, 25]


def test_the_wrong_name_of_a_two_way_question_is_not_in_the_image(tmp_path):
    for item in load("lvis-two-way", tmp_path):
        assert "dog" in item.options and item.options[item.label] in ("person", "bus")
    assert {item.label for item in load("coco-two-way", tmp_path)} == {0, 1}


def test_denials_do_not_count_as_names(tmp_path):
    from gpt4roi.evaluation.benchmarks.categories import names_right

    item = load("lvis-two-way", tmp_path)[0]
    name = item.references[0]

    def right(answer):
        return names_right(replace(item, answer=answer)) is not None

    assert right(f"It is a {name}.") and right(f"Not a dog but a {name}")
    assert not right(f"It is a dog, not a {name}.") and not right("a dog")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("vg", lambda path: path.write_text("{"), "not valid JSON"),
        ("vg", lambda path: path.write_text('{"images": []}'), "expected a list under 'annotations'"),
        ("vcr", lambda path: path.write_text('{"annot_id": 1}\n'), r"val\.jsonl#1: no 'img_fn'"),
        ("ref-l4", lambda path: path.write_text("x"), "no parquet file"),
        ("lvis", lambda path: path.write_text("{}"), "expected a list of images, got dict"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(name, damage, message, tmp_path):
    files = {
        "vg": "test.json",
        "vcr": "val.jsonl",
        "ref-l4": "ref-l4-test.parquet",
        "lvis": "lvis_val_1k_category.json",
    }
    WRITERS[name](tmp_path / "data")
    damage(tmp_path / "data" / files[name])

    with pytest.raises(InputError, match=message):
        open_benchmark(name).load(Source(tmp_path / "data"))


@pytest.mark.heavy
def test_boxes_that_cannot_be_asked_about_are_left_out_counted_and_named(tmp_path, capsys):
    data = WRITERS["vg"](tmp_path / "data")
    content = json.loads((data / "test.json").read_text())
    asked = len(content["annotations"])
    spoilt = ([5, 5, 0, 10], [200, 5, 20, 10], None, ["2", "3", "20", "30"])
    content["annotations"] += [{"id": 1, "image_id": "1", "bbox": bbox, "caption": "a man"} for bbox in spoilt]
    (data / "test.json").write_text(json.dumps(content))
    (tmp_path / "model.py").write_text(CONSTANT)
    words = ["evaluate", "--benchmark", "vg", "--data", str(data), "--model", str(tmp_path / "model.py")]

    assert main([*words, "--out", str(tmp_path / "out")]) == 1

    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["items"], metrics["left_out"]) == (asked + 1, 3)
    assert any("3 left out, such as" in note for note in metrics["notes"])
    err = capsys.readouterr().err
    assert "the box 5,5,5,15 has no area inside the image, which is 96x64" in err
    assert "the box 200,5,220,15 has no area inside the image" in err and "neither bbox nor segmentation" in err
    with only_writer(tmp_path / "out"):
        assert main([*words, "--out", str(tmp_path / "out"), "--max-bad-fraction", "0.5"]) == 2
    assert f"another run is writing {tmp_path / 'out'} (process" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "out"), "--max-bad-fraction", "0.5"]) == 0


def test_crowds_are_left_out_counted_and_no_loss(tmp_path):
    WRITERS["coco"](tmp_path / "data")
    (tmp_path / "model.py").write_text(CONSTANT)
    words = ["evaluate", "--benchmark", "coco", "--data", str(tmp_path / "data"), "--model", str(tmp_path / "model.py")]
    assert main([*words, "--out", str(tmp_path / "out"), "--max-bad-fraction", "0"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["left_out"] == 0 and "left out by the benchmark's rules: box of a crowd: 1" in metrics["notes"]


def test_cider_of_one_item_says_that_it_is_0_by_construction():
    scores = captions.score_captions(["a man"], [["a man"]], quick=True)
    assert scores.measures["CIDEr"].estimate().value == 0
    assert any("CIDEr of one item is 0 by construction" in note for note in scores.notes)


def test_a_java_that_does_not_run_costs_its_own_measures_alone(run, monkeypatch):
    monkeypatch.setattr(captions, "_ptb", lambda texts: (_ for _ in ()).throw(OSError("no such program")))

    metrics = run("vg", ORACLE, java=True)

    assert "METEOR" not in metrics["summary"] and metrics["summary"]["BLEU-4"] == pytest.approx(1.0)
    assert any(note.endswith("Java does not run: no such program") for note in metrics["notes"])


def test_what_was_not_answered_is_wrong_and_does_not_cost_the_others_their_likelihoods(tmp_path):
    items = [replace(item, likelihoods=(1.0, 0.0, 0.0, 0.0), answer="(A)") for item in load("v7w-telling", tmp_path)]
    items[0] = replace(items[0], label=0, likelihoods=None, answer="", error="no image")

    measures = open_benchmark("v7w-telling").score(items, Source(tmp_path)).measures

    expected = sum(item.label == 0 for item in items[1:]) / len(items)
    assert measures["accuracy (likelihood)"].value == pytest.approx(expected)
    assert measures["accuracy (parsed)"].value == pytest.approx(expected)


def benchmark_of_the_documentation() -> str:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    return next(code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "BENCHMARK" in code)


@pytest.mark.heavy
def test_a_benchmark_from_a_file_runs_as_the_documentation_shows_it(tmp_path):
    (tmp_path / "animals.py").write_text(benchmark_of_the_documentation(), encoding="utf-8")
    boxes = [{"image": f"{n}.png", "box": [2, 3, 40, 50], "name": name} for n, name in enumerate(["cat", "cow"])]
    (tmp_path / "boxes.jsonl").write_text("\n".join(map(json.dumps, boxes)))
    for number in range(2):
        write_image(tmp_path / f"{number}.png", number)
    (tmp_path / "model.py").write_text("def answer(queries):\n    return ['Cat.'] * len(queries)\n")
    words = ["--benchmark", "animals.py", "--model", "model.py", "--data", "boxes.jsonl", "--out", "out"]
    words = [str(tmp_path / word) if not word.startswith("--") else word for word in words]

    assert main(["evaluate", *words]) == 0

    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["benchmark"], metrics["title"], metrics["split"]) == ("animals", "Animals", "test")
    assert metrics["summary"]["exact match"] == 0.5 and metrics["items"] == 2
    report = (tmp_path / "out" / "report.html").read_text()
    assert "<h1>Animals" in report and "What animal is" in report
    assert main(["evaluate", *words, "--compare", str(tmp_path / "out")]) == 0


class SaysCat(ModelPredictor):
    """A model whose answers are given; explanations are its own."""

    def in_batches(self, queries, selects):
        yield list(range(len(queries))), ["Cat."] * len(queries), [0.5] * len(queries)


@pytest.mark.heavy
def test_the_report_shows_where_the_worst_answers_looked(tmp_path):
    (tmp_path / "animals.py").write_text(benchmark_of_the_documentation(), encoding="utf-8")
    names = ["cat", "cow", "cat", "dog"]
    boxes = [{"image": f"{n}.png", "box": [2, 3, 40, 50], "name": name} for n, name in enumerate(names)]
    (tmp_path / "boxes.jsonl").write_text("\n".join(map(json.dumps, boxes)))
    for number in range(len(names)):
        write_image(tmp_path / f"{number}.png", number)
    model = tiny_model("pyramid")
    predictor = SaysCat(model, tiny_processor(model.config), max_new_tokens=4)
    source, benchmark, out = Source(tmp_path / "boxes.jsonl"), str(tmp_path / "animals.py"), tmp_path / "out"

    metrics = evaluate(benchmark, predictor, source, out, explain=3)

    page = (out / "report.html").read_text()
    assert "Where answers looked" in page and metrics["notes"] == []
    shown = re.findall(r'data-name="inside the region" data-value="([^"]*)"', page)
    assert len(shown) == 3 and all(0 <= float(share) <= 1 for share in shown)
    explained = page[page.index("Where answers looked") : page.index("<h2>Answers")]
    assert explained.count("truth: <b>c") + explained.count("truth: <b>d") == 2  # the two wrong ones, and one more
    items = [replace(item, answer="Cat.") for item in read_items(benchmark, source)]
    _, failed = worst_heatmaps(items, open_benchmark(benchmark).score(items, source), Refusing(), 1)
    assert len(failed) == 1 and "the question is too long" in failed[0]
    assert "Where answers looked" not in page_without(benchmark, predictor, source, out)


class Refusing:
    """Explains nothing."""

    def explain(self, query, answer):
        raise InputError("the question is too long")


def page_without(benchmark, predictor, source, out) -> str:
    evaluate(benchmark, predictor, source, out)
    return (out / "report.html").read_text()


def test_a_python_file_cannot_be_explained(tmp_path, capsys):
    for name in ("model.py", "data.json"):
        (tmp_path / name).write_text(CONSTANT)
    words = [
        "--data",
        str(tmp_path / "data.json"),
        "--model",
        str(tmp_path / "model.py"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["evaluate", "--benchmark", "vg", *words, "--explain", "3"]) == 2
    assert "--explain looks into GPT4RoI's own models; leave it out for a Python file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (("BENCHMARK =", "RESULT ="), "defines no BENCHMARK = gpt4roi.evaluation.items.Benchmark"),
        (("BENCHMARK =", "nothing.there\nBENCHMARK ="), r"mine\.py#\d+: NameError: name 'nothing' is not defined"),
        (("max_new_tokens=8", "tabels=print"), r"mine\.py#\d+: TypeError: .*unexpected keyword argument 'tabels'"),
        (('("test",)', '"test"'), "splits must be several names, the first the default, got 'test'"),
    ],
)
def test_a_benchmark_file_with_a_wrong_name_in_it_is_refused(change, error, tmp_path):
    (tmp_path / "mine.py").write_text(benchmark_of_the_documentation().replace(*change), encoding="utf-8")

    with pytest.raises(InputError, match=error):
        open_benchmark(str(tmp_path / "mine.py"))
