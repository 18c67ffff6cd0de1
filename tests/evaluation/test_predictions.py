"""Long runs: killed and continued, shared among processes, with images that cannot be used."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from official import visual7w, write_image
from tiny import tiny_model, tiny_processor

from gpt4roi.cli import main
from gpt4roi.errors import InputError
from gpt4roi.evaluation.predictions import (
    BatchShard,
    chunk_by_image,
    predict_all,
    predict_chunk,
    read_predictions,
    run_key,
)
from gpt4roi.evaluation.predictor import ModelPredictor, Query
from gpt4roi.io.journal import Journal


def queries_about(folder: Path, images: int, each: int = 3) -> list[Query]:
    """Questions of different lengths about noise images."""
    made = []
    for number in range(images):
        path = folder / f"{number}.png"
        write_image(path, number)
        for k in range(each):
            box = np.asarray([[2.0 + k, 3, 40 + number % 7, 50]])
            made.append(Query(path, f"What is {'very ' * k}<region1>?", box, id=f"{number}.{k}"))
    return made


@pytest.fixture(scope="module")
def model():
    """A tiny model that answers in batches."""
    built = tiny_model("pyramid")
    return ModelPredictor(built, tiny_processor(built.config), batch_size=8, max_new_tokens=5)


def test_pieces_are_whole_images_and_hold_every_question_once(tmp_path):
    queries = queries_about(tmp_path, 10)
    mixed = [queries[place] for place in np.random.default_rng(0).permutation(len(queries))]

    chunks = chunk_by_image(mixed, image_batch_size=4)

    assert sorted(number for chunk in chunks for number in chunk) == list(range(30))
    assert [len(chunk) for chunk in chunks] == [12, 12, 6]
    for chunk in chunks:
        inside = {mixed[number].image for number in chunk}
        assert not inside & {query.image for number, query in enumerate(mixed) if number not in chunk}


class Watched(ModelPredictor):
    """Remembers what it answered, and is killed, without a chance to do anything, after so many batches."""

    def __init__(self, model: ModelPredictor, batches: int = 1000) -> None:
        super().__init__(model.model, model.processor, model.batch_size, model.params.max_new_tokens)
        self.left, self.answered = batches, 0

    def in_batches(self, queries, selects):
        for batch, *answers in super().in_batches(queries, selects):
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            self.answered += len(batch)
            yield batch, *answers


def killed_run(queries: list[Query], model: ModelPredictor, folder: Path, batches: int, at_once: int) -> int:
    """Answers in a process of its own that is killed in the batch after so many; returns its exit code."""
    child = os.fork()
    if child == 0:
        predict_all(queries, Watched(model, batches), folder, {}, image_batch_size=at_once)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.heavy
@pytest.mark.parametrize("at_once", [4, 100])
def test_killed_three_times_and_continued_equals_uninterrupted(tmp_path, model, at_once):
    queries = queries_about(tmp_path, 13)
    whole = predict_all(queries, model, tmp_path / "whole", {}, image_batch_size=at_once)
    killed = tmp_path / "killed"

    counts = []
    for batches in (1, 2, 1):
        assert killed_run(queries, model, killed, batches, at_once) == -signal.SIGKILL
        (kept,) = killed.glob("*/0.jsonl")
        with kept.open("a") as file:  # a line that a kill tore
            file.write('{"id": "12.2", "answ')
        counts.append(len(read_predictions(Journal(kept.parent))))

    assert 0 < counts[0] < counts[1] < counts[2] < 39
    rest = Watched(model)
    assert predict_all(queries, rest, killed, {}, image_batch_size=at_once) == whole
    assert rest.answered == 39 - counts[-1]
    again = Watched(model)
    assert predict_all(queries, again, killed, {}, image_batch_size=at_once) == whole and again.answered == 0


def test_an_answer_comes_with_the_mean_probability_of_its_tokens(tmp_path, model):
    queries = queries_about(tmp_path, 2)
    predictor = ModelPredictor(model.model, model.processor, batch_size=8, max_new_tokens=1)

    predictions = predict_all(queries, predictor, tmp_path / "out", {})

    for query, found in zip(queries, predictions, strict=True):
        prompt = predictor._prompts([query])[0]
        with torch.no_grad():
            logits = model.model.language_model(inputs_embeds=prompt.embed(model.model)[None]).logits[0, -1]
        assert found.confidence == pytest.approx(float(logits.softmax(0).max()), abs=1e-4)
    again = predict_all(queries, lambda queries: pytest.fail("asked again"), tmp_path / "out", {})
    assert again == predictions


def limited_run(queries: list[Query], model: ModelPredictor, folder: Path, num_bytes: int) -> str:
    """Answers in a process of its own whose files may not grow beyond so many bytes; returns what it died of."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
        try:
            predict_all(queries, model, folder, {}, image_batch_size=4)
        except Exception as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as told:
        return told.read()


@pytest.mark.heavy
def test_a_full_disk_is_told_in_one_line_and_what_was_answered_stays(tmp_path, model):
    queries = queries_about(tmp_path, 13)
    whole = predict_all(queries, model, tmp_path / "whole", {}, image_batch_size=4)
    (written,) = (tmp_path / "whole").glob("*/0.jsonl")
    half = written.stat().st_size // 2 + 3

    told = limited_run(queries, model, tmp_path / "full", half)

    assert told.startswith("InputError: ") and "\n" not in told
    assert "0.jsonl cannot be written: File too large; the answers so far are kept: make room, and run it again" in told
    (kept,) = (tmp_path / "full").glob("*/0.jsonl")
    assert kept.stat().st_size == half and not kept.read_bytes().endswith(b"\n"), "the last line is torn"
    before = len(read_predictions(Journal(kept.parent)))
    assert before > 10
    rest = Watched(model)
    assert predict_all(queries, rest, tmp_path / "full", {}, image_batch_size=4) == whole
    assert rest.answered <= 39 - before + 8, "at most the torn batch is answered again"


@pytest.mark.parametrize(
    ("name", "blocked"), [("metrics.json", ".metrics.json.part"), ("report.html", ".report.html.part")]
)
def test_a_result_that_cannot_be_written_is_told_in_one_line(tmp_path, name, blocked):
    from gpt4roi.evaluation.evaluate import evaluate
    from gpt4roi.evaluation.items import Source

    folder = visual7w(tmp_path, "telling")
    (tmp_path / "out" / blocked).mkdir(parents=True)
    with pytest.raises(InputError, match=rf"{name} cannot be written: Is a directory; the answers so far are kept"):
        evaluate("v7w-telling", lambda queries: ["a"] * len(queries), Source(folder), tmp_path / "out")


def test_an_image_whose_name_is_no_text_costs_no_file_of_the_evaluation(tmp_path):
    from gpt4roi.evaluation.evaluate import evaluate
    from gpt4roi.evaluation.items import Source

    folder = visual7w(tmp_path, "telling")
    path = folder / "dataset_v7w_telling.json"
    content = json.loads(path.read_text())
    name = content["images"][0]["filename"]
    content["images"][0]["filename"] = os.fsdecode(b"caf\xe9.jpg")
    (folder / "visual7w_images" / name).rename(folder / "visual7w_images" / os.fsdecode(b"caf\xe9.jpg"))
    path.write_text(json.dumps(content))

    evaluate("v7w-telling", lambda queries: ["a"] * len(queries), Source(folder), tmp_path / "out")

    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert any("caf\\udce9.jpg" in line for line in lines)
    assert "caf\\udce9.jpg" in (tmp_path / "out" / "report.html").read_text()


def test_the_batches_of_a_piece_can_be_shared_and_get_the_same_answers(tmp_path, model):
    queries = queries_about(tmp_path, 5)
    (alone,) = [dict(pair for found in predict_chunk(queries, model, BatchShard()) for pair in found.items())]

    shares = [list(predict_chunk(queries, model, BatchShard((), rank, 3))) for rank in range(3)]

    joined = [pair for share in shares for found in share for pair in found.items()]
    assert dict(joined) == alone and len(joined) == len(queries)
    assert all(shares)


def test_answers_under_other_settings_or_to_other_questions_are_not_taken_over(tmp_path):
    queries = queries_about(tmp_path, 2)

    def says(word):
        return lambda chunk: [word] * len(chunk)

    assert {prediction.answer for prediction in predict_all(queries, says("a"), tmp_path, {"model": 1})} == {"a"}
    assert {prediction.answer for prediction in predict_all(queries, says("b"), tmp_path, {"model": 1})} == {"a"}
    assert {prediction.answer for prediction in predict_all(queries, says("b"), tmp_path, {"model": 2})} == {"b"}
    assert {prediction.answer for prediction in predict_all(queries[:4], says("c"), tmp_path, {"model": 1})} == {"c"}
    assert {
        prediction.answer for prediction in predict_all(queries, says("d"), tmp_path, {"model": 1}, fresh=True)
    } == {"d"}
    assert run_key(queries, {"model": 1}) != run_key(queries[::-1], {"model": 1})


def test_an_image_that_cannot_be_read_costs_only_its_own_questions(tmp_path, model):
    queries = queries_about(tmp_path, 3)
    queries[3].image.write_text("no image")

    predictions = predict_all(queries, model, tmp_path / "out", {})

    assert [bool(prediction.error) for prediction in predictions] == [False] * 3 + [True] * 3 + [False] * 3
    assert "1.png" in predictions[3].error and predictions[3].answer == ""


def test_two_questions_of_the_same_name_are_refused(tmp_path):
    queries = queries_about(tmp_path, 1)

    with pytest.raises(InputError, match="3 of 6 questions have the id of another"):
        predict_all(queries + queries, lambda chunk: [""] * len(chunk), tmp_path, {})


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A folder as a training writes it."""
    folder = tmp_path_factory.mktemp("model")
    built = tiny_model("pyramid")
    built.save_pretrained(folder)
    tiny_processor(built.config).save_pretrained(folder)
    return folder


def results(folder: Path) -> tuple[str, dict]:
    """Predictions as written, and the figures."""
    metrics = json.loads((folder / "metrics.json").read_text())
    return (folder / "predictions.jsonl").read_text(), {key: metrics[key] for key in ("summary", "estimates")}


@pytest.mark.heavy
def test_two_processes_give_the_files_of_one(tmp_path, model_folder):
    folder = visual7w(tmp_path / "data", "telling")
    content = json.loads((folder / "dataset_v7w_telling.json").read_text())
    pairs = content["images"][0]["qa_pairs"]
    content["images"] = [
        {"image_id": n, "filename": f"v7w_{n}.jpg", "split": "test", "qa_pairs": pairs[2 * n : 2 * n + 2]}
        for n in range(40)
    ]
    for n in range(40):
        write_image(folder / "visual7w_images" / f"v7w_{n}.jpg", n)
    (folder / "dataset_v7w_telling.json").write_text(json.dumps(content))
    words = ["evaluate", "--benchmark", "v7w-telling", "--model", str(model_folder), "--data", str(folder)]
    words += ["--device", "cpu", "--dtype", "float32", "--max-new-tokens", "3", "--out"]

    assert main([*words, str(tmp_path / "one")]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, "-m", "gpt4roi.cli", *words, str(tmp_path / "two")]
    # Likelihoods are equal to the bit where as many threads compute them, whatever the machine's setting.
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    assert results(tmp_path / "two") == results(tmp_path / "one")
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["processes"] == 2
    parts = sorted((tmp_path / "two").glob("answers-*/*.jsonl"))
    assert [part.name for part in parts] == ["0.jsonl", "1.jsonl"]
    assert all(part.stat().st_size for part in parts)
