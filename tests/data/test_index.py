"""The index of annotation files: made once, found again, made anew when a file changes, safe where none can be kept."""

import json
import logging
import multiprocessing
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from recordings import ENTRIES

from gpt4roi.data import index
from gpt4roi.data.columns import Columns, ColumnsError, text_column
from gpt4roi.data.index import Recipe, open_index
from gpt4roi.data.registry import open_reader
from gpt4roi.errors import InputError
from gpt4roi.io import atomic

RECIPE = Recipe("Test", 1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where indexes are kept during a test."""
    place = tmp_path / "cache"
    monkeypatch.setattr(index, "index_folders", lambda: [place])
    monkeypatch.setattr(index, "MIN_BYTES", 0)
    return place


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("one")
    return path


class Builder:
    """Makes an index of a file's text, and remembers how often."""

    def __init__(self):
        self.contents = []

    def __call__(self, contents):
        self.contents.append(contents[0])
        return Columns(text_column("text", [contents[0].decode()]), {"size": len(contents[0])})


def kept(folder):
    return sorted(path.suffix for path in folder.iterdir())


def test_columns_come_back_as_they_were(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "none": np.zeros((0, 4)), "flags": np.array([True, False])}
    made = Columns(arrays | text_column("t", ["", "ü😀", "abc"]) | text_column("no", []), {"x": [1, "é"]})
    made.save(tmp_path / "c")
    opened = Columns.open(tmp_path / "c")
    assert opened.metadata == {"x": [1, "é"]}
    for name in arrays:
        assert opened[name].dtype == arrays[name].dtype
        np.testing.assert_array_equal(opened[name], arrays[name])
    assert opened.texts("t", slice(0, 3)) == ["", "ü😀", "abc"] and opened.text("t", 1) == "ü😀"
    assert os.listdir(tmp_path) == ["c"]


def test_columns_are_read_only_and_only_their_path_goes_to_another_process(tmp_path):
    Columns({"a": np.arange(100_000)}, {}).save(tmp_path / "c")
    opened = Columns.open(tmp_path / "c")
    with pytest.raises(ValueError, match="read-only"):
        opened["a"][0] = 1
    sent = pickle.dumps(opened)
    assert len(sent) < 500
    np.testing.assert_array_equal(pickle.loads(sent)["a"], opened["a"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:20],
        lambda _: b"",
        lambda data: data[:40] + b"\x00" * 20 + data[60:],
        lambda data: data.replace(b'"<i8"', b'"<i9"'),
        lambda data: data[:18] + b"\xff" * 7 + b"\x7f" + data[26:],
        lambda data: data.replace(b"columns 2", b"columns 1"),
    ],
)
def test_a_file_of_columns_that_is_not_whole_is_refused(tmp_path, damage):
    Columns({"a": np.arange(10)}, {}).save(tmp_path / "c")
    (tmp_path / "c").write_bytes(damage((tmp_path / "c").read_bytes()))
    with pytest.raises(ColumnsError):
        Columns.open(tmp_path / "c")


def test_a_single_flipped_bit_is_noticed_wherever_it_is(tmp_path):
    Columns({"a": np.arange(3)} | text_column("t", ["ab"]), {"x": 1}).save(tmp_path / "c")
    data = (tmp_path / "c").read_bytes()
    for place in range(len(data)):
        (tmp_path / "c").write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        with pytest.raises(ColumnsError):
            Columns.open(tmp_path / "c")


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:-3] + b"???", lambda data: b""])
@pytest.mark.parametrize("age", [0, index.MIN_AGE])
def test_a_damaged_index_is_made_anew_with_a_word(folder, file, monkeypatch, caplog, damage, age):
    monkeypatch.setattr(index, "MIN_AGE", age)
    build = Builder()
    open_index([file], RECIPE, build)
    (made,) = folder.glob("*.columns")
    whole = made.read_bytes()
    made.write_bytes(damage(whole))

    assert open_index([file], RECIPE, build).text("text", 0) == "one"

    assert caplog.text.count(f"The index of {file} is damaged") == 1
    assert made.read_bytes() == whole and len(build.contents) == 2


def test_the_second_opening_makes_nothing_and_does_not_read_the_file(folder, file, monkeypatch):
    build = Builder()
    monkeypatch.setattr(index, "MIN_AGE", 0)
    assert open_index([file], RECIPE, build).text("text", 0) == "one"
    monkeypatch.setattr(index, "read_bytes", lambda path: pytest.fail("read again"))
    assert open_index([file], RECIPE, build).text("text", 0) == "one"
    assert build.contents == [b"one"]


def test_an_index_that_nobody_touched_is_not_read_whole_again(folder, file, monkeypatch):
    build = Builder()
    monkeypatch.setattr(index, "MIN_AGE", 0)
    open_index([file], RECIPE, build)
    monkeypatch.setattr("gpt4roi.data.columns._checksum", lambda *arguments: pytest.fail("read whole"))
    assert open_index([file], RECIPE, build).text("text", 0) == "one"


def test_another_content_version_or_option_makes_another_index_and_the_old_content_s_goes(folder, file):
    build = Builder()
    open_index([file], RECIPE, build)
    open_index([file], Recipe("Test", 2), build)
    open_index([file], Recipe("Test", 1, "x=1"), build)
    assert len(build.contents) == 3 and kept(folder).count(".columns") == 3
    file.write_text("two")
    assert open_index([file], RECIPE, build).text("text", 0) == "two"
    assert len(build.contents) == 4 and kept(folder).count(".columns") == 3


def test_a_change_that_keeps_size_and_time_is_seen(folder, file):
    build, before = Builder(), file.stat()
    open_index([file], RECIPE, build)
    file.write_text("two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert open_index([file], RECIPE, build).text("text", 0) == "two"


def test_a_change_within_one_tick_of_the_clock_is_seen(folder, file, monkeypatch):
    build, just_now = Builder(), time.time_ns() + 3600 * 10**9
    monkeypatch.setattr(index, "_states", lambda files: [[3, just_now, just_now]])
    open_index([file], RECIPE, build)
    file.write_text("two")
    assert open_index([file], RECIPE, build).text("text", 0) == "two"
    assert build.contents == [b"one", b"two"]


def test_a_touched_or_copied_file_of_the_same_content_is_not_indexed_again(folder, file, tmp_path):
    build = Builder()
    open_index([file], RECIPE, build)
    os.utime(file)
    open_index([file], RECIPE, build)
    shutil.copy(file, tmp_path / "b.json")
    open_index([tmp_path / "b.json"], RECIPE, build)
    assert build.contents == [b"one"]


def test_a_damaged_index_or_stamp_is_made_again(folder, file):
    build = Builder()
    open_index([file], RECIPE, build)
    for suffix in (".columns", ".stamp"):
        (path,) = folder.glob(f"*{suffix}")
        path.write_bytes(b"damaged")
        assert open_index([file], RECIPE, build).text("text", 0) == "one"
    assert len(build.contents) == 2


def _open_in_process(file, folder, start, results):
    index.index_folders = lambda: [folder]
    build = Builder()
    start.wait()
    columns = open_index([file], RECIPE, build)
    results.put((len(build.contents), columns.text("text", 0)))


def test_of_several_processes_one_makes_the_index_and_the_others_wait(folder, file):
    file.write_text("x" * 2_000_000)
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    processes = [context.Process(target=_open_in_process, args=(file, folder, start, results)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    seen = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(count for count, _ in seen) == [0, 0, 0, 1]
    assert {text for _, text in seen} == {"x" * 2_000_000}


def test_where_no_folder_can_be_written_the_index_stays_in_memory_and_says_so(tmp_path, file, monkeypatch, caplog):
    monkeypatch.setattr(index, "MIN_BYTES", 0)
    (tmp_path / "a file").write_text("")
    monkeypatch.setattr(index, "index_folders", lambda: [tmp_path / "a file" / "below", tmp_path / "a file"])
    build = Builder()
    with caplog.at_level(logging.WARNING):
        assert open_index([file], RECIPE, build).text("text", 0) == "one"
    assert len(build.contents) == 1
    assert "stays in memory" in caplog.text and str(tmp_path / "a file") in caplog.text


def test_a_full_disk_leaves_nothing_behind_and_the_next_folder_is_taken(tmp_path, file, monkeypatch):
    monkeypatch.setattr(index, "MIN_BYTES", 0)
    full, other = tmp_path / "full", tmp_path / "other"
    monkeypatch.setattr(index, "index_folders", lambda: [full, other])
    save = Columns.save

    def fills_up(self, path):
        if path.parent == full:
            part = path.with_name(path.name + ".part")
            try:
                part.write_bytes(b"half")
                raise OSError(28, "No space left on device")
            finally:
                part.unlink()
        save(self, path)

    monkeypatch.setattr(Columns, "save", fills_up)
    build = Builder()
    assert open_index([file], RECIPE, build).text("text", 0) == "one"
    assert len(build.contents) == 1
    assert kept(full) == [".lock"] and kept(other) == [".columns", ".lock", ".stamp"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_real_full_device_is_told_from_a_written_file(tmp_path, monkeypatch):
    columns = Columns({"a": np.arange(1_000_000)}, {})
    (tmp_path / "c").write_bytes(b"before")
    part = tmp_path / "c.part"
    part.symlink_to("/dev/full")
    monkeypatch.setattr(atomic, "temporary_path", lambda path: part)
    with pytest.raises(OSError, match="No space left"):
        columns.save(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"before" and not part.is_symlink()


def test_a_folder_of_another_user_is_not_trusted(tmp_path, file, folder, monkeypatch, caplog):
    folder.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    build = Builder()
    assert open_index([file], RECIPE, build).text("text", 0) == "one"
    assert "belongs to another user" in caplog.text and not kept(folder)


def test_a_small_file_is_read_without_an_index(folder, file, monkeypatch):
    monkeypatch.setattr(index, "MIN_BYTES", 4)
    build = Builder()
    assert [open_index([file], RECIPE, build).text("text", 0) for _ in range(2)] == ["one", "one"]
    assert len(build.contents) == 2 and not folder.exists()
    file.write_text("four")
    open_index([file], RECIPE, build)
    assert kept(folder) == [".columns", ".lock", ".stamp"]


def test_a_missing_annotation_file_is_one_readable_error(folder, tmp_path):
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        open_index([tmp_path / "none.json"], RECIPE, Builder())


@pytest.mark.parametrize("name", ENTRIES)
def test_a_reader_gives_the_same_samples_from_memory_and_from_the_index_and_in_another_process(name, folder):
    first, second = open_reader(ENTRIES[name]), open_reader(ENTRIES[name])
    sent = pickle.loads(pickle.dumps(second))
    assert len(pickle.dumps(second)) < 70_000
    for place in range(len(first)):
        samples = [reader.sample(place, np.random.default_rng(place)) for reader in (first, second, sent)]
        for sample in samples[1:]:
            assert sample.turns == samples[0].turns and sample.augmentation == samples[0].augmentation
            np.testing.assert_array_equal(sample.boxes_px, samples[0].boxes_px)
    assert list(first.drops()) == list(sent.drops()) and first.dropped == sent.dropped


@pytest.mark.parametrize("name", ["coco_det_train", "flickr30k", "vcr", "det_llava"])
def test_a_sample_depends_on_index_and_generator_alone(name):
    reader = open_reader(ENTRIES[name])

    def all_of(order):
        drawn = {place: reader.sample(place, np.random.default_rng([1, 2, place])) for place in order}
        return [
            (drawn[place].turns, drawn[place].boxes_px.tolist(), drawn[place].augmentation) for place in sorted(drawn)
        ]

    before = np.random.get_state()[1].tolist()
    assert all_of(range(len(reader))) == all_of(reversed(range(len(reader))))
    assert np.random.get_state()[1].tolist() == before


def test_what_is_dropped_is_counted_and_listed_with_its_place(tmp_path):
    content = json.loads(Path(ENTRIES["vg"]["ann_file"]).read_text())
    content["annotations"][0]["bbox"] = [1, 2, float("nan"), 4]
    content["images"][1]["width"] = "wide"
    (tmp_path / "t.json").write_text(json.dumps(content))
    reader = open_reader(ENTRIES["vg"] | {"ann_file": tmp_path / "t.json"})
    faults = {drop.where.rpartition("#")[2]: drop.reason for drop in reader.drops() if drop.detail}
    assert faults == {
        "images[1]": "image whose width or height is not a number above 0",
        "annotations[0]": "box with a value that is not a number of an image's size",
    }
    assert sum(reader.dropped.values()) == len(list(reader.drops()))
    kept = sum(len(reader.item(index).boxes_px) for index in range(len(reader)))
    assert reader.faults() == (2, len(reader) + kept + len(list(reader.drops())))
