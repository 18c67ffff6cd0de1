"""The examination as a whole: many processes, parts of sets, sets that do not open, verdicts."""

import json
import os
import re

import numpy as np
import pytest
from fuzz import mutated
from PIL import Image
from planted import line, photograph, write_faulty_set

from gpt4roi.cli import main
from gpt4roi.data_check import examine as examination
from gpt4roi.data_check.duplicates import duplicates, leaks
from gpt4roi.data_check.examine import examine
from gpt4roi.data_check.images import examine as look_at
from gpt4roi.data_check.lengths import open_length_estimator
from gpt4roi.data_check.verdict import judge
from gpt4roi.errors import InputError


@pytest.fixture(scope="module")
def estimator():
    """Estimates lengths from bytes."""
    return open_length_estimator(None, 700)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A folder of twenty good samples and twenty faults."""
    folder = tmp_path_factory.mktemp("faulty")
    write_faulty_set(folder)
    return folder


def unified(path, role="training"):
    return {"type": "unified", "ann_file": str(path)}, role


def good_set(folder, count=12):
    """Writes a set without a fault."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        photograph(number).save(folder / f"{number}.png")
    rows = [json.dumps(line(f"{number}.png", answer=f"thing {number}")) for number in range(count)]
    (folder / "train.jsonl").write_text("\n".join(rows))
    return folder / "train.jsonl"


@pytest.mark.heavy
def test_two_processes_find_the_same_in_the_same_order_as_one(faulty, estimator):
    reports = []
    for workers in (1, 2):
        entries = [unified(faulty / "train.jsonl"), unified(faulty / "eval.jsonl", "evaluation")]
        reports.append([one.as_dict() | {"speed": None} for one in examine(entries, estimator, workers=workers)])
    assert reports[0] == reports[1]
    assert len(reports[0][0]["findings"]) == 16


@pytest.mark.heavy
def test_a_process_that_is_killed_is_one_readable_error(faulty, estimator, monkeypatch):
    monkeypatch.setattr(examination.images, "examine", lambda *_: os.kill(os.getpid(), 9))
    with pytest.raises(InputError, match=r"a process that read the data was killed; .* try --workers 1"):
        examine([unified(faulty / "train.jsonl")], estimator, workers=2)


def test_a_part_of_a_set_is_drawn_by_the_seed(tmp_path, estimator):
    path = good_set(tmp_path)
    results = [examine([unified(path)], estimator, sample=5, seed=seed)[0] for seed in (0, 0, 1)]
    assert [one.checked for one in results] == [5, 5, 5] and results[0].size == 12
    assert list(results[0].images) == list(results[1].images) != list(results[2].images)


def test_a_set_that_does_not_open_leaves_the_others_to_be_checked(tmp_path, estimator):
    entries = [unified(tmp_path / "none.jsonl"), ({"type": "VG"}, "training"), unified(good_set(tmp_path / "good"))]
    results = examine([*entries, (7, "training")], estimator)
    messages = [one.findings.examples["set_unreadable"][0].message for one in results if one.dataset is None]
    assert "none.jsonl: no such file" in messages[0]
    assert "unknown type 'VG'" in messages[1]
    assert "expected an object with 'type', got 7" in messages[2]
    assert results[2].checked == 12
    verdict = judge(results, max_bad_fraction=0.01)
    assert not verdict.ready and "none.jsonl cannot be opened" in verdict.reason


def test_a_good_set_is_ready_and_a_remark_matters_only_where_it_is_asked_to(tmp_path, estimator):
    path = good_set(tmp_path)
    assert judge(examine([unified(path)], estimator), 0.01).word == "ready"
    with path.open("a") as file:
        file.write("\n" + json.dumps(line("0.png", [[10, 10, 10.5, 50]], answer="a line")))
    results = examine([unified(path)], estimator)
    assert judge(results, 0.01).word == "ready, with remarks"
    assert not judge(results, 0.01, strict=True).ready


def test_losses_within_the_allowed_share_are_remarks(tmp_path, estimator):
    path = good_set(tmp_path)
    (tmp_path / "3.png").unlink()
    results = examine([unified(path)], estimator)
    assert results[0].lost == 1
    assert judge(results, 0.01).word == "ready, with remarks", "a training lets a single one pass too"
    assert judge(results, 0.01).reason == "1 left out, which stops no training; 1 error and 0 warnings"
    (tmp_path / "4.png").unlink()
    results = examine([unified(path)], estimator)
    assert judge(results, 0.2).word == "ready, with remarks"
    verdict = judge(results, 0.1)
    assert verdict.word == "not ready" and verdict.reason.startswith("2 of 12 samples in unified")
    assert verdict.reason.endswith("cannot be used (16.7 %; one, or 10 %, is allowed)")


@pytest.mark.heavy
def test_losses_of_every_kind_count_together(tmp_path, estimator):
    path = good_set(tmp_path, count=20)
    rows = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(line("0.png", answer="")), *rows[1:]]))
    assert judge(examine([unified(path)], estimator), 0.01).ready, "an empty answer alone"
    (tmp_path / "7.png").unlink()
    results = examine([unified(path)], estimator)
    verdict = judge(results, 0.01)
    assert not verdict.ready
    assert verdict.reason.startswith("1 of 20 annotations and 1 of 19 samples in unified")
    assert verdict.reason.endswith("cannot be used (10 %; one, or 1 %, is allowed)")
    assert judge(results, 0.1).ready


@pytest.mark.heavy
def test_losses_of_all_training_sets_count_together(tmp_path, estimator):
    entries = [unified(good_set(tmp_path / name)) for name in "ab"]
    (tmp_path / "a" / "3.png").unlink()
    assert judge(examine(entries, estimator), 0.01).ready
    (tmp_path / "b" / "4.png").unlink()
    verdict = judge(examine(entries, estimator), 0.01)
    assert verdict.reason == "2 of 24 samples in all training sets cannot be used (8.33 %; one, or 1 %, is allowed)"


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_the_verdict_on_annotations_is_that_of_a_training(tmp_path, estimator, bad):
    from gpt4roi.train.sanity_checks import check_drops

    path = good_set(tmp_path)
    with path.open("a") as file:
        file.write("".join("\n" + json.dumps(line("0.png", answer="")) for _ in range(bad)))
    (result,) = examine([unified(path)], estimator)
    verdict = judge([result], 0.01)
    if bad < 2:
        check_drops([result.dataset], 0.01)
        assert verdict.ready
    else:
        with pytest.raises(InputError, match="2 of 14 cannot be used"):
            check_drops([result.dataset], 0.01)
        assert not verdict.ready and verdict.reason.startswith("2 of 14 annotations in unified")


def test_a_set_whose_only_sample_is_lost_is_not_ready(tmp_path, estimator):
    path = good_set(tmp_path, count=1)
    (tmp_path / "0.png").unlink()
    assert judge(examine([unified(path)], estimator), 0.01).reason == "there is nothing to learn from"


def test_a_bad_image_counts_for_every_sample_that_needs_it(tmp_path, estimator):
    path = good_set(tmp_path)
    with path.open("a") as file:
        file.write("\n" + json.dumps(line("3.png", answer="another thing")))
    (tmp_path / "3.png").write_bytes(b"")
    (result,) = examine([unified(path)], estimator)
    assert result.lost == 2
    assert result.findings.counts["picture_unreadable"] == 1
    assert "#4 and 1 more sample: " in result.findings.examples["picture_unreadable"][0].message


def test_one_answer_to_nearly_everything_is_told(tmp_path, estimator):
    turns = []
    for number in range(60):
        turns.append({"from": "human", "value": f"Is it {number}?"})
        turns.append({"from": "gpt", "value": "No." if number else "yes"})
    (tmp_path / "t.jsonl").write_text(json.dumps({"conversations": turns}))
    (result,) = examine([unified(tmp_path / "t.jsonl")], estimator)
    assert result.findings.examples["answers_alike"][0].message.endswith("59 of 60 short answers are 'no'")


def test_an_image_of_coco_is_known_by_its_number_under_every_name(tmp_path):
    names = ("train2017/000000000009.jpg", "COCO_train2014_000000000009.jpg", "000000000010.jpg")
    facts = []
    for seed, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        photograph(seed).save(path)
        facts.append((str(path), look_at(str(path))))
    found = list(leaks(dict(facts[:1]), dict(facts[1:])))
    assert [finding.where for finding in found] == [facts[1][0]]
    assert "same COCO number" in found[0].message


@pytest.mark.heavy
def test_copies_in_another_size_and_quality_look_the_same_and_others_do_not(tmp_path):
    facts = {}
    for seed in range(12):
        path = tmp_path / f"{seed}.png"
        photograph(seed, 320, 240).save(path)
        facts[str(path)] = look_at(str(path))
    assert not list(duplicates(facts))
    with Image.open(tmp_path / "7.png") as image:
        image.resize((200, 150)).save(tmp_path / "small.jpg", quality=60)
    copy = {str(tmp_path / "small.jpg"): look_at(str(tmp_path / "small.jpg"))}
    (alike,) = duplicates(facts | copy)
    assert alike.kind == "picture_alike" and "7.png" in alike.message
    (leak,) = leaks(facts, copy)
    assert "7.png (same look)" in leak.message


def test_links_to_one_file_are_one_image_and_flat_images_are_not_compared(tmp_path):
    photograph(1).save(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    for level in (3, 200):
        Image.fromarray(np.full((40, 40), level, dtype=np.uint8)).save(tmp_path / f"flat{level}.png")
    facts = {str(path): look_at(str(path)) for path in sorted(tmp_path.iterdir())}
    assert not list(duplicates(facts))


@pytest.mark.heavy
def test_damaged_files_never_end_an_examination(tmp_path, estimator):
    content = [
        line("0.png", answer="a thing", tasks=["x"], independent=True),
        line("1.png", [[1, 2, 9, 9], [2, 2, 8, 8]]),
    ]
    for number in range(2):
        photograph(number).save(tmp_path / f"{number}.png")
    kinds = set()
    for number, (_, data) in enumerate(mutated(content, 80, lines=True)):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(data)
        (result,) = examine([unified(path)], estimator)
        json.dumps(result.as_dict(), allow_nan=False)
        assert all(str(tmp_path) in one.message for _, _, kept in result.findings for one in kept)
        kinds |= set(result.findings.counts)
    assert {"set_unreadable", "box_unmentioned", "object_unusable:broken JSON"} <= kinds, kinds


def test_lines_for_a_terminal_end_with_the_verdict(tmp_path, capsys):
    assert main(["data", "check", str(good_set(tmp_path)), "--workers", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "12 samples, 12 images, 12 regions, 12 answers; 0 samples would be skipped" in lines[1]
    assert "estimated from bytes (give --model to count them)" in lines[2]
    assert lines[-1] == "ready: no fault was found"


def test_a_fault_is_told_with_what_to_do_in_words_that_fit_one(tmp_path, capsys):
    path = good_set(tmp_path, count=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(0).save(tmp_path / "0.png", exif=exif)
    assert main(["data", "check", str(path), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "  1 sample, 1 image, 1 region, 1 answer; 0 samples would be skipped" in printed
    assert '    to do: say "image_pipeline": "detection", or save it upright\n' in printed
    assert printed.endswith("ready, with remarks: 0 errors and 1 warning\n")


def samples_of(path, *arguments):
    """The page's part that shows samples: (its note, the titles of the samples)."""
    assert main(["data", "check", str(path), "--html", str(path.parent / "r.html"), "--workers", "1", *arguments]) == 0
    page = (path.parent / "r.html").read_text(encoding="utf-8").split("Samples as the model reads them")[1:]
    return [(re.search(r'<p class="soft">(.*?)</p>', part)[1], re.findall(r"(\w+\.jsonl#\d+)", part)) for part in page]


@pytest.mark.heavy
def test_the_page_shows_every_sample_in_its_order_and_fewer_where_that_is_asked_for(tmp_path):
    path = good_set(tmp_path)
    ((note, titles),) = samples_of(path)
    assert titles[::2] == [f"train.jsonl#{number}" for number in range(1, 13)]
    assert note.startswith("12 of 12 samples. ")
    ((note, titles),) = samples_of(path, "--show", "5")
    assert len(titles[::2]) == 5 and note.startswith("5 of 12 samples, of 5 drawn at random; --show N shows more. ")
    assert samples_of(path, "--show", "0") == []
    ((_, titles),) = samples_of(path, "--sample", "4", "--seed", "1")
    assert len(titles[::2]) == 4, "only what was checked is shown"


def test_small_sets_leave_their_share_of_the_page_to_the_large_ones(tmp_path):
    for name, count in (("many", 12), ("few", 2)):
        good_set(tmp_path / name, count)
    entries = [{"type": "unified", "ann_file": str(tmp_path / name / "train.jsonl")} for name in ("many", "few")]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    shown = [len(titles[::2]) for _, titles in samples_of(tmp_path / "list.json", "--show", "10")]
    assert shown == [8, 2]


def test_the_page_of_a_check_has_filters_of_a_check(tmp_path):
    path = good_set(tmp_path)
    rows = [line("0.png", [[10, 10, 10.5, 50]], answer="a line"), line("1.png", [[10, 10, 160, 50]], answer="a sheet")]
    path.write_text(path.read_text() + "".join("\n" + json.dumps(row) for row in rows))
    samples_of(path)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "every kind of finding" in page and ">tiny box</option>" in page
    assert all(word not in page.partition("<script>")[0] for word in ("worst first", "every task", ">all</button>"))
    assert 'data-row="finding" data-card="image"' in page and 'data-row="" data-card="sample"' in page


@pytest.mark.heavy
def test_boxes_stand_on_the_page_where_they_are_in_an_image_of_any_size(tmp_path):
    photograph(0, 1200, 900).save(tmp_path / "0.png")
    (tmp_path / "t.jsonl").write_text(json.dumps(line("0.png", [[120, 90, 600, 450]])))
    samples_of(tmp_path / "t.jsonl")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert 'viewBox="0 0 480 360"' in page and '<rect x="48.0" y="36.0" width="192.0" height="144.0"' in page


@pytest.mark.parametrize(("pipeline", "view"), [("detection", "90 120"), ("dialogue", "120 90")])
def test_a_finding_is_shown_on_the_image_as_its_sample_opens_it(tmp_path, pipeline, view):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("phone.jpg", "copy.jpg"):
        photograph(0).save(tmp_path / name, exif=exif)
    rows = [line("phone.jpg", [[10, 10, 10.5, 50]], image_pipeline=pipeline), line("copy.jpg", image_pipeline=pipeline)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    samples_of(tmp_path / "t.jsonl", "--show", "9")
    findings = (tmp_path / "r.html").read_text(encoding="utf-8").partition("Findings with an image")[2]
    cards = findings.partition("Samples as the model reads them")[0]
    assert "tiny box" in cards and "the same image under two names" in cards
    assert set(re.findall(r'viewBox="0 0 (\d+ \d+)"', cards)) == {view}


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"config.json": {"model_type": "gpt4roi"}, "delta.json": {}}, "holds a weight delta, not a model"),
        ({"run.json": {}}, "its training is not finished"),
        ({"adapter_config.json": {"base_model_name_or_path": "/gone/base"}}, "is not in /gone/base or "),
    ],
)
def test_what_is_no_model_by_itself_is_told_by_its_kind(tmp_path, files, told):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=told):
        open_length_estimator(str(tmp_path))


def test_a_model_counts_its_own_tokens(tmp_path, model_folder, capsys):
    path = good_set(tmp_path)
    assert main(["data", "check", str(path), "--workers", "1", "--json", "--model", str(model_folder)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lengths"] == {"limit": 2048, "estimated": False}
    assert 30 < found["sets"][0]["statistics"]["longest"] < 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{tmp}/none.json", "no such file; --dataset_config takes"),
        ("{good} --sample 0", "--sample must be at least 1, got 0"),
        ("{good} --show -1", "--show must be at least 0, got -1"),
        ("{good} --max-bad-fraction 2", "--max-bad-fraction must lie between 0 and 1, got 2.0"),
        ("{good} --html {tmp}", "give a file to write, in a folder"),
        ("{good} --html {good}/page.html", "give a file to write, in a folder"),
        ("{good} --eval {tmp}/none.json", "none.json: no such file"),
        ("{good} --model {tmp}/none", "none: no tokenizer can be opened there"),
        ("{good} --prompt-format v7", "prompt_format must be one of"),
        ("{tmp}/list.json", "names no data set"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_two(tmp_path, capsys, arguments, message):
    (tmp_path / "list.json").write_text("[]")
    good = good_set(tmp_path)
    assert main(["data", "check", *arguments.format(tmp=tmp_path, good=good).split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.strip().count("\n") == 0
