"""The embedded benchmark: what its controls catch, its numbers, its files, and a tiny model run through it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_model, tiny_processor

from gpt4roi.cli import main
from gpt4roi.errors import InputError
from gpt4roi.evaluation import captions
from gpt4roi.evaluation.evaluate import evaluate
from gpt4roi.evaluation.items import Source
from gpt4roi.evaluation.predictor import ModelPredictor, Query
from quickstart import questions
from quickstart.benchmark import items as stamps
from quickstart.benchmark import scores

CAPTIONS = ("a red apple", "an old truck", "a grey cat", "a tulip", "two bees", "a hammer")
KINDS = dict(zip(CAPTIONS, ("food", "vehicles", "animals", "plants", "animals", "tools"), strict=True))
NUMBERS = re.compile(r"<region(\d+)>")


def write_split(folder, split: str, scenes: int, seed: int) -> None:
    """Writes scenes of three regions with every kind of question, as `make-stamps` does."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(scenes):
        corners = np.asarray([[2, 2], [34, 6], [10, 36]]) + rng.integers(0, 6, (3, 2))
        sides = rng.permutation([[12, 10], [16, 16], [22, 20]])
        boxes = np.concatenate([corners, corners + sides], axis=1).tolist()
        captions = rng.permutation(CAPTIONS)[:3].tolist()
        asked = [questions.ask("caption", boxes, captions, [region]) for region in range(3)]
        asked += [
            questions.ask(task, boxes, captions, [a, b]) for task in questions.RELATIONS for a, b in ((0, 1), (2, 0))
        ]
        asked.append(questions.ask("count", boxes, captions))
        image = f"images/{split}-{number}.png"
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        (folder / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / image)
        lines.append(
            {
                "id": f"{split}-{number}",
                "image": image,
                "height": 64,
                "width": 64,
                "boxes": boxes,
                "conversations": [
                    {"from": role, "value": text}
                    for question in asked
                    for role, text in (("human", question.question), ("gpt", question.answer))
                ],
                "independent": True,
                "objects": [{"caption": c, "stamp": c, "kind": KINDS[c]} for c in captions],
                "tasks": [question.task for question in asked],
                "pairs": [question.pair for question in asked],
            }
        )
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(autouse=True)
def without_java(monkeypatch):
    """Its start would take longer than everything else here."""
    monkeypatch.setattr(captions, "has_java", lambda: False)


def load_items(data, limit=None):
    """The questions of the data set and their controls."""
    return stamps.load_items(Source(Path(data), limit=limit))


def evaluate_answerer(answer, data, out, metadata=None):
    """The metrics of anything that answers."""
    return evaluate("stamps", answer, Source(data), out, metadata=metadata or {})


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_split(folder, "test", 6, seed=0)
    write_split(folder, "test_unseen", 2, seed=1)
    (folder / "manifest.json").write_text(json.dumps({"notes": ["drawn shapes: these figures do not count"]}))
    return folder


class Seer:
    """Knows what stands in every box and answers from the box that is shown, as a perfect model would."""

    def __init__(self, data) -> None:
        self.shown = {}
        for path in data.glob("*.jsonl"):
            for record in map(json.loads, path.read_text().splitlines()):
                for box, thing in zip(record["boxes"], record["objects"], strict=True):
                    self.shown[str(data / record["image"]), tuple(map(float, box))] = thing["caption"]

    def __call__(self, queries: list[Query]) -> list[str]:
        return [self.answer(query) for query in queries]

    def answer(self, query: Query) -> str:
        if query.blank:
            return "nothing"
        boxes = query.boxes_px.tolist()
        captions = [self.shown[str(query.image), tuple(box)] for box in boxes]
        task = next(t for t, words in questions.WORDING.items() if query.question.startswith(words.split("{")[0]))
        if task == "left" and "above" in query.question:
            task = "above"
        return questions.answer(task, boxes, captions, [int(number) - 1 for number in NUMBERS.findall(query.question)])


class Reader(Seer):
    """Never looks at a box: remembers what each region of each image was."""

    def __init__(self, data) -> None:
        self.remembered = {
            (item.query.image, item.query.question): item.truth for item in load_items(data) if not item.control
        }

    def answer(self, query: Query) -> str:
        return self.remembered[query.image, query.question]


def test_a_perfect_model_is_right_everywhere_and_the_controls_agree(data, tmp_path):
    summary = evaluate_answerer(Seer(data), data, tmp_path / "out")["summary"]

    for name in ("captions_exact", "permuted_given", "larger", "left", "above", "relations_swapped", "unseen_exact"):
        assert summary[name] == 1.0, name
    assert summary["permuted_asked"] == summary["blank_exact"] == 0.0
    assert summary["captions_n"] == 18


@pytest.mark.heavy
def test_a_model_that_does_not_look_at_boxes_is_caught_by_every_control(data, tmp_path):
    summary = evaluate_answerer(Reader(data), data, tmp_path / "out")["summary"]

    assert summary["captions_exact"] == summary["relations"] == 1.0
    assert summary["permuted_asked"] == summary["blank_exact"] == 1.0
    assert summary["permuted_given"] == summary["relations_swapped"] == 0.0


@pytest.mark.heavy
def test_a_constant_answer_scores_the_chance_level(data, tmp_path):
    metrics = evaluate_answerer(lambda queries: ["yes"] * len(queries), data, tmp_path / "out")

    truths = [item.truth for item in load_items(data) if item.task == "left" and not item.control]
    assert metrics["relations"]["left"]["right"]["value"] == pytest.approx(truths.count("yes") / len(truths))
    assert metrics["relations"]["left"]["chance"] >= metrics["relations"]["left"]["right"]["value"]
    assert metrics["summary"]["captions_exact"] == 0.0


def test_naming_always_the_first_region_is_the_chance_level_of_larger(data, tmp_path):
    def first(queries):
        return [
            f"region{NUMBERS.findall(query.question)[0]}" if "larger" in query.question else "" for query in queries
        ]

    larger = evaluate_answerer(first, data, tmp_path / "out")["relations"]["larger"]

    share = larger["right"]["value"]
    assert max(share, 1 - share) == pytest.approx(larger["chance"], abs=1e-4)
    assert larger["swapped"]["flipped_of_right"]["value"] == 0.0


def test_permuting_leaves_no_region_its_box_and_swapping_exchanges_two(data):
    items = load_items(data)
    by_id = {item.id: item for item in items}

    for item in items:
        boxes, before = item.query.boxes_px, by_id[item.asked_as].query.boxes_px
        moved = (boxes != before).any(axis=1)
        assert by_id[item.asked_as].query.question == item.query.question
        if item.control == "permuted":
            assert moved.all() and sorted(boxes.tolist()) == sorted(before.tolist())
        elif item.control == "swapped":
            assert set(np.flatnonzero(moved) + 1) == set(map(int, NUMBERS.findall(item.query.question)))
            assert item.truth != by_id[item.asked_as].truth
        else:
            assert not moved.any()


def test_the_controls_are_the_same_every_time(data):
    first, second = load_items(data), load_items(data)

    assert [item.query.boxes_px.tolist() for item in first] == [item.query.boxes_px.tolist() for item in second]
    assert {item.scene for item in load_items(data, limit=2)} == {"test-0", "test-1", "test_unseen-0", "test_unseen-1"}


def test_difficulty_bands_hold_every_question_once(data, tmp_path):
    relations = evaluate_answerer(Seer(data), data, tmp_path / "out")["relations"]

    for task, bands in (("larger", "by_ratio"), ("left", "by_offset"), ("above", "by_offset"), ("left", "by_distance")):
        assert sum(band["n"] for band in relations[task][bands]) == relations[task]["right"]["n"] == 12


def test_unseen_things_are_scored_by_words_and_kind_with_their_chance(data, tmp_path):
    def nearly(queries):
        return [answer.replace("red", "green") for answer in Seer(data)(queries)]

    unseen = evaluate_answerer(nearly, data, tmp_path / "out")["unseen"]

    assert unseen["exact"]["value"] < 1.0 < unseen["word_overlap"]["value"] + 0.2
    assert unseen["word_overlap"]["value"] > unseen["word_overlap_of_another"]["value"]
    assert unseen["kind"]["value"] > unseen["kind_of_another"]["value"]


@pytest.fixture
def photographs(data):
    """The data set with three regions of two photographs: the head is right about two of them."""
    things = [
        [("bird", ["bird", "owl"], "an owl"), ("cup", ["cup", "mug"], "a spoon")],
        [("dog", ["dog", "beagle"], "a beagle")],
    ]
    lines = []
    for number, of_image in enumerate(things):
        image = f"images/photograph-{number}.png"
        Image.new("RGB", (64, 64), (40 * number, 80, 120)).save(data / image)
        spoken = [{"from": who, "value": f"What is <region{n + 1}>?"} for n in range(len(of_image)) for who in "hg"]
        objects = [{"caption": name, "accepted": names, "head": head} for name, names, head in of_image]
        boxes = [[4 + 8 * n, 4, 40, 60] for n in range(len(of_image))]
        line = {"id": f"photograph-{number}", "image": image, "boxes": boxes}
        lines.append(json.dumps(line | {"objects": objects, "conversations": spoken}) + "\n")
    (data / "test_photographs.jsonl").write_text("".join(lines))
    return data


def answer_photographs(*answers):
    """Says these about the photographs, in order, and what the boxes show of everything else."""

    def answer(queries):
        left = iter(answers)
        return [
            next(left) if "photograph" in query.image.name else Seer(query.image.parents[1]).answer(query)
            for query in queries
        ]

    return answer


def test_photographs_are_right_where_an_accepted_name_is_said_and_stand_beside_the_head(photographs, tmp_path):
    answer = answer_photographs("a small owl", "a bowl", "an old dog")
    metrics = evaluate_answerer(answer, photographs, tmp_path / "out")

    summary, found = metrics["summary"], metrics["photographs"]
    assert (summary["photographs"], summary["photographs_n"]) == (pytest.approx(2 / 3, abs=1e-5), 3)
    assert summary["photographs_head"] == pytest.approx(2 / 3, abs=1e-5)
    assert found["accepted"]["low"] < 2 / 3 < found["accepted"]["high"] and found["floor"] == 0.0
    assert metrics["estimates"]["photographs"]["n"] == 3
    assert summary["captions_exact"] == 1.0
    records = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    about = [record for record in records if record["split"] == "test_photographs"]
    assert [record["right"] for record in about] == [True, False, True]
    assert about[1]["references"] == ["cup", "mug"]


@pytest.mark.heavy
def test_the_report_shows_photographs_before_scenes_and_the_wrong_ones_first(photographs, tmp_path):
    answer = answer_photographs("an owl", "a cup", "a cat")
    evaluate_answerer(answer, photographs, tmp_path / "out")

    page = (tmp_path / "out" / "report.html").read_text()
    title, wrong, right = (page.index(text) for text in (">Photographs<", "photograph-1", "photograph-0"))
    assert title < wrong < right
    assert page.index("ceiling: the vision tower") < page.index("floor: the recipe without photographs")
    assert page.count('class="item"') == 10


def test_near_relations_are_a_figure_of_their_own(data, tmp_path):
    metrics = evaluate_answerer(Seer(data), data, tmp_path / "out")

    pairs = [item.pair["offset"] for item in load_items(data) if item.task in ("left", "above") and not item.control]
    assert metrics["near"]["n"] == sum(24 <= offset < 60 for offset in pairs) > 0
    assert metrics["summary"]["near"] == 1.0


def test_regions_that_answers_name_are_scored_as_sets():
    def one(task: str, truth: str, answer: str) -> stamps.Item:
        query = Query(Path("a.png"), "Which of <region1>, <region2> and <region3> are animals?", np.zeros((3, 4)))
        return stamps.Item(truth, "test", truth, task, truth, query, answer=answer)

    asked = [
        one("which", "region1, region3", "region3, region2"),
        one("which", "none", "none"),
        one("which", "region2", "none"),
        one("caption", "a cat", "region1"),
    ]

    found = {name: measure.value for name, measure in scores._which(asked).items()}

    assert found == pytest.approx({"which_precision": 0.5, "which_recall": 0.5, "which_f1": 0.5, "which_count": 2 / 3})
    assert scores._which(asked[3:]) == {}


@pytest.mark.heavy
def test_things_never_shown_are_accepted_by_any_name_of_their_category(data, tmp_path):
    lines = [json.loads(line) for line in (data / "test_unseen.jsonl").read_text().splitlines()]
    for line in lines:
        for thing in line["objects"]:
            thing |= {"stamp": "animals/birds/owl"} if thing["caption"] == "a grey cat" else {}
    (data / "test_unseen.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    unseen = evaluate_answerer(lambda queries: ["a goose"] * len(queries), data, tmp_path / "out")["unseen"]

    birds = [thing["caption"] for line in lines for thing in line["objects"]].count("a grey cat")
    assert unseen["accepted"]["value"] == pytest.approx(birds / unseen["accepted"]["n"], abs=1e-6) and birds > 0
    assert unseen["exact"]["value"] == 0.0


def test_calibration_compares_confidence_with_the_share_right(data):
    (first, *_) = load_items(data)
    sure = [(0.95, True), (0.95, True), (0.55, True), (0.55, False), (0.15, False), (0.15, True)]
    items = [replace(first, confidence=value, answer=first.truth if right else "no") for value, right in sure]

    found = scores.calibration(items)

    assert found["ece"] == pytest.approx((2 * 0.05 + 2 * 0.05 + 2 * 0.35) / 6, abs=1e-6)
    assert [(third["confidence"], third["right"]["value"]) for third in found["terciles"]] == [
        (0.15, 0.5),
        (0.55, 0.5),
        (0.95, 1.0),
    ]
    assert scores.calibration([replace(first, confidence=None)]) == {}


def test_the_files_tell_numbers_answers_and_what_the_data_set_says_of_itself(data, tmp_path):
    out = tmp_path / "out"
    metadata = {"command": "gpt4roi evaluate …", "phases": {"stage 1": 0.84, "stage 2": 7.0}}

    metrics = evaluate_answerer(Seer(data), data, out, metadata=metadata)

    assert json.loads((out / "metrics.json").read_text()) == metrics
    records = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(records) == len(load_items(data))
    assert {record["control"] for record in records} == {"", "permuted", "blank", "swapped"}
    assert all(record["right"] for record in records if record["control"] in ("", "swapped"))
    page = (out / "report.html").read_text()
    assert page.count('class="item"') == 8
    assert "drawn shapes: these figures do not count" in page
    assert "gpt4roi evaluate …" in page and "this evaluation" in page


@pytest.mark.heavy
def test_a_model_answers_as_one_question_at_a_time(data):
    model = tiny_model("pyramid")
    processor = tiny_processor(model.config)
    queries = [item.query for item in load_items(data, limit=2) if item.control != "blank"]
    one_by_one = ModelPredictor(model, processor, batch_size=1, max_new_tokens=6)

    together = ModelPredictor(model, processor, batch_size=16, max_new_tokens=6)(queries)

    assert together == [one_by_one([query])[0] for query in queries]


def test_blank_regions_all_look_the_same(data):
    model = tiny_model("pyramid")
    predictor = ModelPredictor(model, tiny_processor(model.config), max_new_tokens=6)
    image, boxes = load_items(data)[0].query.image, load_items(data)[0].query.boxes_px

    def query(blank):
        return predictor([Query(image, "What is <region1>?", boxes[[row, 1, 2]], blank) for row in range(3)])

    assert len(set(query(blank=True))) == 1


@pytest.mark.heavy
def test_a_tiny_model_runs_through_everything(data, tmp_path):
    model = tiny_model("pyramid")

    answer = ModelPredictor(model, tiny_processor(model.config), batch_size=32, max_new_tokens=24)
    metrics = evaluate("stamps", answer, Source(data, limit=2), tmp_path / "out")

    assert metrics["captions"]["exact"]["n"] == 6 and metrics["limit"] == 2
    assert len(metrics["calibration"]["captions"]["terciles"]) == 3
    records = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert all(0 < record["confidence"] <= 1 for record in records)
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.heavy
def test_the_command_writes_the_main_figures(data, tmp_path, capsys, saved_tiny_model):
    words = ["--benchmark", "stamps", "--model", str(saved_tiny_model), "--data", str(data), "--limit", "1"]
    words += ["--device", "cpu", "--dtype", "float32"]

    assert main(["evaluate", *words, "--out", str(tmp_path / "a"), "--json"]) == 0
    as_json = json.loads(capsys.readouterr().out)
    assert main(["evaluate", *words, "--out", str(tmp_path / "b")]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert as_json["captions_n"] == 3
    assert lines[0].split()[0] == "captions_exact" and lines[-1] == f"report: {tmp_path / 'b' / 'report.html'}"
    command = json.loads((tmp_path / "a" / "metrics.json").read_text())["command"]
    assert command.startswith(f"gpt4roi evaluate --benchmark stamps --model {saved_tiny_model} --data {data}")


@pytest.fixture
def saved_tiny_model(tmp_path):
    model = tiny_model("pyramid")
    model.save_pretrained(tmp_path / "model")
    tiny_processor(model.config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--benchmark", "vqa"], "--benchmark 'vqa': unknown; give one of coco, "),
        (["--benchmark", "stamps", "--data", "nowhere"], "--data nowhere: no such file or folder; for stamps run"),
        (["--benchmark", "stamps", "--limit", "0"], "--limit must be at least 1, got 0"),
        (["--benchmark", "stamps", "--phases", "nowhere.json"], "--phases nowhere.json: cannot be read"),
        (["--benchmark", "stamps", "--model", "nowhere"], "no model in nowhere"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(words, message, tmp_path, capsys):
    defaults = {"--data": str(tmp_path), "--out": str(tmp_path / "out"), "--model": str(tmp_path)}
    for name, value in defaults.items():
        words = words if name in words else [*words, name, value]

    assert main(["evaluate", *words]) == 2

    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1


def test_files_that_are_no_such_data_set_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"test\.jsonl: no such file"):
        load_items(tmp_path)
    with pytest.raises(InputError, match="is a file; give the folder that"):
        load_items(__file__)
    (tmp_path / "test.jsonl").write_text('{"boxes": [], "conversations": []}\n')
    with pytest.raises(InputError, match=r"test\.jsonl#1: no 'objects'; expected an object that"):
        load_items(tmp_path)
