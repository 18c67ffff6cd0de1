"""Twenty faults in one folder: the doctor finds each, in JSON and in HTML, and nothing else."""

import json
import re
from html import unescape

import pytest
from planted import write_faulty_set

from gpt4roi.cli import main


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The places of the faults, the JSON, the page and the exit code of one examination."""
    folder = tmp_path_factory.mktemp("faulty")
    places = write_faulty_set(folder)
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("gpt4roi.cli.output.line", printed.append)
        arguments = ["--model-max-length", "700", "--workers", "1", "--json", "--html", str(folder / "report.html")]
        code = main(["data", "check", f"{folder}/train.jsonl", "--eval", f"{folder}/eval.jsonl", *arguments])
    page = unescape((folder / "report.html").read_text(encoding="utf-8"))
    return places, json.loads("".join(printed)), page, code


FAULTS = (
    "picture_missing", "picture_unreadable:empty file", "picture_unreadable:cannot be decoded",
    "picture_unreadable:not an image file", "picture_unreadable:too large", "picture_small", "sideways",
    "size_differs",
    "box_outside", "box_beyond", "box_inverted", "box_tiny", "box_fractions", "object_unusable:empty answer",
    "object_unusable:mention that fits no box", "box_unmentioned", "object_unusable:broken JSON", "rounds_lost",
    "picture_duplicate", "leakage",
)  # fmt: skip


def findings(found):
    """Every (kind, message) of all sets."""
    for one in found["sets"]:
        for kind, entry in one["findings"].items():
            for finding in entry["findings"]:
                yield kind, finding["message"]


def is_it(fault, place, kind, message):
    """Whether a finding is the planted fault: its kind, its place, and for images its reason."""
    base, _, reason = fault.partition(":")
    if base == "picture_unreadable":
        return kind == base and place in message and reason in message
    if base == "picture_duplicate":
        return kind == fault and "copy.jpg" in message and "good3.jpg" in message
    return kind == fault and re.search(rf"{re.escape(place)}(?!\d)", message)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_found_at_its_place_in_json_and_on_the_page(report, fault):
    places, found, page, _ = report
    messages = [message for kind, message in findings(found) if is_it(fault, places[fault], kind, message)]
    assert len(messages) == 1
    assert messages[0] in page


def test_twenty_were_planted_and_nothing_else_is_reported(report):
    _, found, _, _ = report
    assert len(FAULTS) == 20
    kinds = [kind for kind, _ in findings(found)]
    assert len(kinds) == 20, sorted(kinds)


def test_the_verdict_and_the_exit_code_say_not_ready(report):
    _, found, page, code = report
    assert code == 1 and not found["ready"] and found["verdict"] == "not ready"
    assert "not ready" in page.lower()
    training, evaluation = found["sets"]
    assert (training["role"], evaluation["role"]) == ("training", "evaluation")
    # five images and the box with exchanged corners; the three objects were left out before
    assert training["samples"] == training["checked"] == 20 + 19 - 3
    assert training["unusable"] == 6
    assert found["reason"].startswith("3 of 39 annotations and 6 of 36 samples in unified")


def test_the_page_shows_boxes_and_what_is_learnt(report):
    page = report[2]
    assert page.count("<svg") >= 15
    samples = page.split("Samples as the model reads them")[1]
    assert "<mark>" in samples and "image tokens]" in samples
    learnt = re.findall(r"<mark>(.*?)</mark>", samples, flags=re.DOTALL)
    assert any("thing" in text for text in learnt)
    assert not any("What is" in text for text in learnt)
