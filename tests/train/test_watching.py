"""A training that one can see learn: rates, validation loss, and answers for a few fixed regions."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_model, tiny_processor
from tiny_training import stage1

from gpt4roi.data.registry import build_mixture
from gpt4roi.errors import InputError
from gpt4roi.region_chat import RegionChat
from gpt4roi.structures import RegionSample, Turn
from gpt4roi.train import main
from gpt4roi.train.throughput import ThroughputMeter
from gpt4roi.train.watch import Watched, ask, choose, page

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def watched(parts, tmp_path_factory):
    """Twenty steps with an evaluation before them and after every ten."""
    flags = ["--eval_dataset", f"{parts}/train.jsonl", "--eval_steps", "10", "--watch_regions", "3"]
    boards = tmp_path_factory.mktemp("boards")
    more = ["--report_to", "tensorboard", "--logging_steps", "5"]
    return stage1(boards / "out", parts, *flags, *more, steps=20)


def history(folder):
    return json.loads((folder / "checkpoint-20" / "trainer_state.json").read_text())["log_history"]


def test_the_validation_loss_is_logged_and_falls(watched):
    losses = {entry["step"]: entry["eval_loss"] for entry in history(watched) if "eval_loss" in entry}
    assert list(losses) == [0, 10, 20]
    assert losses[20] < losses[10] < losses[0]


def test_the_page_shows_every_watched_region_with_its_answer_at_each_evaluation(parts, watched):
    answers = json.loads((watched / "watch.json").read_text())
    assert list(answers) == ["0", "10", "20"]
    questions = [one.key for one in choose(build_mixture(parts / "train.jsonl"), 42, 3)]
    assert list(answers["20"]["answers"]) == questions
    assert answers["0"]["answers"] != answers["20"]["answers"]
    page = (watched / "watch.html").read_text()
    assert page.count("<img") == 3 and page.count("data:image/jpeg;base64,") == 3
    assert re.findall(r"<th>step (\d+)", page) == ["0", "10", "20"]


def test_every_line_has_rates_memory_and_minutes_left(watched):
    lines = [entry for entry in history(watched) if "loss" in entry]
    assert len(lines) == 4
    assert all(line["tokens_per_second"] > 0 and line["regions_per_second"] > 0 for line in lines)
    assert all(line["peak_memory_gib"] > 0.1 for line in lines)
    assert "minutes_left" not in lines[0] and lines[-1]["minutes_left"] == 0


def test_what_is_logged_also_reaches_tensorboard(watched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = watched.rglob("events.out.tfevents*")
    board = EventAccumulator(str(file))
    board.Reload()
    assert {"train/loss", "eval/loss", "train/tokens_per_second"} <= set(board.Tags()["scalars"])


def test_rates_are_of_the_time_since_the_last_line_and_of_all_processes(monkeypatch):
    clock = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr("gpt4roi.train.throughput.time.perf_counter", lambda: next(clock))
    rates = ThroughputMeter(processes=4)
    rates.update(100, 5)
    first = rates.metrics(1, 11)
    assert (first["tokens_per_second"], first["regions_per_second"]) == (40.0, 2.0)
    rates.update(300, 0)
    assert rates.metrics(3, 11) | {"peak_memory_gib": 0} == {
        "tokens_per_second": 120.0,
        "regions_per_second": 0.0,
        "peak_memory_gib": 0,
        "minutes_left": round(5 * 8 / 60, 2),
    }


def test_the_watched_questions_are_fixed_and_show_regions(parts):
    mixture = build_mixture(parts / "train.jsonl")
    first, second = choose(mixture, 0, 4), choose(mixture, 0, 4)
    assert [one.key for one in first] == [one.key for one in second]
    assert len({one.sample.source for one in first}) == 4
    assert all(np.asarray(one.sample.boxes_px).shape[1] == 4 and len(one.sample.turns) == 1 for one in first)


class Samples:
    """A data set of fixed samples; None for one that cannot be drawn."""

    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def sample(self, index, rng):
        if self.samples[index] is None:
            raise InputError("no boxes")
        return self.samples[index]


def test_a_watched_question_with_a_bare_box_keeps_that_box_and_what_cannot_be_drawn_is_passed_over(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    turns = [Turn("user", "<bbox>"), Turn("assistant", "cat"), Turn("user", "<bbox>"), Turn("assistant", "dog")]
    boxes = np.asarray([[1, 1, 20, 20], [5, 5, 30, 30]])
    sample = RegionSample(str(tmp_path / "a.png"), tuple(turns), boxes, region_texts=("cat", "dog"), source="a#1")
    (one,) = choose(Samples(None, sample), 0, 2)
    assert (one.truth, one.sample.boxes_px.tolist(), one.sample.region_texts) == ("cat", [[1, 1, 20, 20]], ("cat",))
    assert tiny_processor()(one.sample, generation=True)["boxes"][0].shape == (1, 4)


def test_a_watched_image_that_is_gone_is_told_on_the_page():
    sample = RegionSample("gone.png", (Turn("user", "What is <region1>?"),), np.asarray([[1, 1, 9, 9]]), source="a#1")
    assert "gone.png&#39; not found" in page([Watched(sample, "cat")], {"1": {"loss": 0.5, "answers": {}}})


def test_an_evaluation_without_anything_to_evaluate_on_is_refused(tmp_path):
    with pytest.raises(InputError, match="--eval_strategy steps needs --eval_dataset"):
        main(["--stage", "1", "--output_dir", str(tmp_path), "--eval_strategy", "steps", "--eval_steps", "5"])


def test_a_watched_box_with_its_corners_the_wrong_way_round_does_not_end_the_training(parts, tmp_path):
    lines = [json.loads(line) for line in (parts / "train.jsonl").read_text().splitlines()]
    lines[0]["boxes"][0] = [28, 30, 2, 2]
    for line in lines:
        line["image"] = str(parts / line["image"])
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--eval_dataset", str(tmp_path / "held_out.jsonl"), "--watch_regions", "8"]
    page = (stage1(tmp_path / "out", parts, *flags, steps=1) / "watch.html").read_text()
    assert page.count("<img") == 7


def test_watched_regions_are_answered_as_users_get_them_and_the_model_trains_on(tmp_path):
    Image.effect_noise((96, 64), 80).convert("RGB").save(tmp_path / "a.png")
    model = tiny_model("pyramid")
    chat = RegionChat(model, tiny_processor(model.config))
    questions, boxes = ["What is <region1>?", "Is <region1> red or blue?"], [[5, 5, 40, 30], [30, 10, 90, 60]]
    samples = [
        RegionSample(str(tmp_path / "a.png"), (Turn("user", question),), np.asarray([box], dtype=float))
        for question, box in zip(questions, boxes, strict=True)
    ]
    missing = RegionSample("gone.png", (Turn("user", questions[0]),), np.asarray([boxes[0]]))
    expected = []
    for question, box in zip(questions, boxes, strict=True):
        chat.set_image(tmp_path / "a.png")
        expected.append(chat.ask(question, [box], max_new_tokens=48))
    chat.model.train()

    first, told, second = ask(chat.model, chat.processor, [samples[0], missing, samples[1]])

    assert [first, second] == expected and first != second
    assert told.startswith("[image") and "gone.png" in told
    assert chat.model.training


def test_a_watched_answer_that_fails_leaves_the_model_training():
    model = tiny_model("pyramid").train()
    model.language_model.forward = lambda **_: 1 / 0
    image = np.zeros((64, 96, 3), dtype=np.uint8)

    with pytest.raises(ZeroDivisionError):
        ask(model, tiny_processor(model.config), [RegionSample(image, (Turn("user", "What?"),), np.zeros((0, 4)))])

    assert model.training
