"""The drawn-shapes data set, end to end, offline."""

import json
from pathlib import Path

import pytest
from PIL import Image

from gpt4roi.errors import InputError
from gpt4roi.processing.mentions import name_regions
from quickstart import questions
from quickstart.make import make_stamps
from quickstart.scenes import write_images
from quickstart.splits import StampArguments

pytestmark = pytest.mark.heavy

SMALL = StampArguments(
    scenes=6, val_scenes=2, test_scenes=12, unseen_scenes=3, seed=5, size=256, shapes=True, parts=False
)
SPLITS = ("train", "val", "test", "test_unseen")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("stamps")
    return out, make_stamps(out, SMALL)


def records(out, split):
    return [json.loads(line) for line in (out / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_answer_follows_from_the_boxes_and_captions_of_its_line(made):
    out, _ = made
    asked = 0
    for split in SPLITS:
        for record in records(out, split):
            captions = [thing["caption"] for thing in record["objects"]]
            turns = record["conversations"]
            pairs = zip(record["tasks"], record["pairs"], turns[0::2], turns[1::2], strict=True)
            for task, pair, human, gpt in pairs:
                regions = [int(part.split(">")[0]) - 1 for part in human["value"].split("<region")[1:]]
                if task == "near":
                    assert split in ("train", "val") and 24 <= pair["offset"] < 60
                    task = "left" if "left" in human["value"] else "above"
                if task in ("animals", "which"):
                    label = "animals" if "animals" in human["value"] else human["value"].rpartition(" show ")[2][:-1]
                    labels = [{thing["kind"], thing["caption"]} for thing in record["objects"]]
                    having = [region + 1 for region in regions if label in labels[region]]
                    assert gpt["value"] == (name_regions(having) if task == "which" else str(len(having)))
                    continue
                assert gpt["value"] == questions.answer(task, record["boxes"], captions, regions)
                assert human["value"] == questions.ask(task, record["boxes"], captions, regions).question
                assert (pair is not None) == (task in questions.RELATIONS)
                asked += 1
    assert asked > 150


def test_a_line_has_the_keys_of_the_unified_format_and_its_image_the_named_size(made):
    out, _ = made
    record = records(out, "test")[0]
    assert record["independent"] is True
    assert {"id", "image", "height", "width", "boxes", "conversations", "objects", "tasks", "pairs"} <= set(record)
    assert len(record["objects"]) == len(record["boxes"])
    assert Image.open(out / record["image"]).size == (record["width"], record["height"]) == (256, 256)


def test_every_region_of_every_scene_is_asked_for_its_caption(made):
    out, _ = made
    for split in SPLITS:
        for record in records(out, split):
            assert record["tasks"].count("caption") == len(record["boxes"])


def test_unseen_captions_are_in_no_other_split(made):
    out, manifest = made
    unseen = set(manifest["captions"]["unseen"])
    shown = {split: {o["caption"] for r in records(out, split) for o in r["objects"]} for split in SPLITS}
    assert len(unseen) == 24
    assert shown["test_unseen"] <= unseen
    assert not unseen & (shown["train"] | shown["val"] | shown["test"])


def test_the_manifest_says_that_shapes_were_drawn_and_counts_what_was_written(made):
    out, manifest = made
    assert manifest["stamps"] == "drawn shapes"
    assert manifest["splits"]["train"]["scenes"] == 6 == len(list((out / "images" / "train").glob("*.png")))
    assert manifest["splits"]["test"]["regions"] == sum(len(r["boxes"]) for r in records(out, "test"))
    assert not set(manifest["splits"]["train"]["photographs"]) & set(manifest["splits"]["test"]["photographs"])
    assert json.loads((out / "manifest.json").read_text(encoding="utf-8")) == manifest


def test_the_same_arguments_give_the_same_bytes_elsewhere_and_another_seed_gives_others(made, tmp_path):
    _, manifest = made
    again = make_stamps(tmp_path / "again", SMALL, workers=2)
    assert again["files"] == manifest["files"] and again["splits"] == manifest["splits"]
    other = make_stamps(tmp_path / "again", StampArguments(**{**again["arguments"], "seed": 6}))
    assert other["files"]["train.jsonl"] != manifest["files"]["train.jsonl"]


def changed_at(path: Path) -> int:
    return path.stat().st_mtime_ns


def test_a_finished_folder_is_left_alone(made):
    out, manifest = made
    before = {path: changed_at(path) for path in out.rglob("*")}
    assert make_stamps(out, SMALL) == manifest
    assert {path: changed_at(path) for path in out.rglob("*")} == before


def test_an_interrupted_run_goes_on_with_the_splits_that_are_missing(tmp_path):
    manifest = make_stamps(tmp_path, SMALL)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "test.jsonl").unlink()
    (tmp_path / "images" / "val" / "000001.png").unlink()
    untouched = changed_at(tmp_path / "images" / "train" / "000000.png")
    assert make_stamps(tmp_path, SMALL) == manifest
    assert changed_at(tmp_path / "images" / "train" / "000000.png") == untouched


def test_an_image_that_a_kill_tore_while_missing_ones_were_made_again_does_not_stay(tmp_path, monkeypatch):
    manifest = make_stamps(tmp_path, SMALL)
    (tmp_path / "images" / "val" / "000001.png").unlink()

    def killed_at_the_last(scenes, stamps, photographs, folder, workers=1):
        yield from write_images(scenes, stamps, photographs, folder)
        last = folder / f"{len(scenes) - 1:06d}.png"
        last.write_bytes(last.read_bytes()[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("quickstart.scenes.write_images", killed_at_the_last)
        with pytest.raises(KeyboardInterrupt):
            make_stamps(tmp_path, SMALL)
    assert make_stamps(tmp_path, SMALL) == manifest


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scenes": 0}, "scenes must be at least 1, got 0"),
        ({"size": 64}, "size must be from 128 to 1024 pixels, got 64"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        StampArguments(**change)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(InputError, match="is a file, expected a folder"):
        make_stamps(tmp_path / "out", SMALL)


def test_without_debian_tools_shapes_are_drawn_and_the_manifest_tells(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))
    fetched = StampArguments(**{**SMALL.__dict__, "shapes": False})
    manifest = make_stamps(tmp_path / "out", fetched)
    assert manifest["stamps"] == "drawn shapes"
    assert "figures do not count" in manifest["notes"][0] and manifest["notes"][0] in caplog.text
