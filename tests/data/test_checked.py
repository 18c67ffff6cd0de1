"""`gpt4roi data check` understands the ten sets of the original."""

from pathlib import Path

from recordings import ENTRIES

from gpt4roi.data_check.examine import examine
from gpt4roi.data_check.lengths import open_length_estimator

NOT_TRAINING = ("coco_det_test", "coco_det_train_max2", "coco_det_tiny")


def entry_of(name):
    """An entry as a list of data sets in a file has it."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in ENTRIES[name].items()}


def test_the_ten_sets_are_checked_without_a_loss():
    entries = [(entry_of(name), "training") for name in ENTRIES if name not in NOT_TRAINING]
    results = examine(entries, open_length_estimator(None))
    assert len(results) == 10
    for one in results:
        assert one.checked == one.size > 0 and one.lost == 0
        assert {kind.partition(":")[0] for kind in one.findings.counts} <= {"box_beyond", "left_out", "object_unusable"}
    assert results[1].findings.counts["left_out:expression of fewer than 3 words"] == 2


def test_images_of_refcocog_are_found_among_those_of_coco():
    entries = [(entry_of("coco_det_train"), "training"), (entry_of("refcocog"), "evaluation")]
    _, refcocog = examine(entries, open_length_estimator(None))
    assert refcocog.findings.counts["leakage"] == len(refcocog.images) == 3
    assert all("same COCO number" in one.message for one in refcocog.findings.examples["leakage"])
