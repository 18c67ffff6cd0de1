"""Regions of photographs: names by the classifier's own head, training regions, and what is never taken."""

import json
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from gpt4roi.data.unified import UnifiedDataset
from quickstart import fetch, photographs, shapes, splits
from quickstart.accepted import CATEGORIES, category_of_stamp, is_accepted, names_of_category
from quickstart.class_names import BETTER_NAMES, class_names
from quickstart.examples import write_examples
from quickstart.region_classifier import RegionClassifier
from quickstart.splits import StampArguments

pytestmark = pytest.mark.heavy

TOY = fetch.DebianPackage("toy", "toy_1_all.deb", "0" * 64)


@pytest.fixture(scope="module")
def head():
    """A classifier with random weights that differ enough from one box to the next, and so are sure of a class."""
    torch.manual_seed(0)
    classifier = timm.create_model("test_efficientnet", pretrained=False).eval()
    with torch.no_grad():
        pooled = classifier.forward_features(torch.randn(16, 3, 256, 256)).mean((2, 3))
        classifier.classifier.weight.normal_().div_(pooled.std(0).mean() / 2)
        classifier.classifier.bias.copy_(-classifier.classifier.weight @ pooled.mean(0))
    return RegionClassifier(classifier)


def noise(seed, width=120, height=90):
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)


def test_every_class_has_an_everyday_name_with_its_article():
    names = class_names()

    assert len(names) == 1000
    assert [names[number] for number in (285, 967, 657, 665, 437, 985)] == [
        "a cat",
        "a cup of coffee",
        "a rocket",
        "a motorcycle",
        "a lighthouse",
        "a daisy",
    ]
    without = [name for name in names if not name.startswith(("a ", "an "))]
    assert set(without) <= set(json.loads(BETTER_NAMES.read_text()).values())


def test_boxes_are_in_pixels_of_the_image_whatever_its_size(head):
    boxes = np.asarray([[0, 0, 256, 256], [16, 32, 120, 200]])
    image = noise(0, 256, 256)

    small = head.probabilities(image, boxes)
    large = head.probabilities(image.resize((512, 512), Image.Resampling.NEAREST), 2 * boxes)

    assert small.shape == (2, 1000)
    torch.testing.assert_close(small.sum(1), torch.ones(2))
    torch.testing.assert_close(large, small)
    assert (small[0].log() - small[1].log()).abs().nan_to_num().max() > 1


@pytest.fixture
def toy_source(tmp_path, monkeypatch):
    """Two photographs that are fetched already, and a drawing that is not wanted."""
    folder = tmp_path / "downloads" / "toy"
    folder.mkdir(parents=True)
    for seed, name in enumerate(("owl", "pier", "drawing")):
        noise(seed).save(folder / f"{name}.png")
    monkeypatch.setattr(photographs, "TRAINING", (photographs.Source(TOY, "CC0", "usr", "owl|pier"),))
    return tmp_path / "downloads"


def written(out):
    lines = (out / "train_photographs.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def likely(out):
    return [json.loads(line) for line in (out / "train_names.jsonl").read_text(encoding="utf-8").splitlines()]


def test_names_are_the_likeliest_class_of_a_region_sure_or_not_and_differ_within_an_image(
    toy_source, tmp_path, head, monkeypatch
):
    monkeypatch.setattr(photographs, "SURE", 0.9)
    photographs.write_training(tmp_path / "out", toy_source, head, 0, [])

    names, least = class_names(), 1.0
    assert likely(tmp_path / "out")
    for record in likely(tmp_path / "out"):
        said = [thing["caption"] for thing in record["objects"]]
        least = min(least, *(thing["probability"] for thing in record["objects"]))
        assert len(set(said)) == len(said) <= 8 and not photographs.CARDS & set(said)
        image = Image.open(tmp_path / "out" / record["image"]).convert("RGB")
        assert said == [names[number] for number in head.probabilities(image, record["boxes"]).argmax(1)]
    assert photographs.LIKELY <= least < photographs.SURE


def test_names_of_all_classes_are_spelt_in_turn_and_said_again(toy_source, tmp_path, head):
    photographs.write_training(tmp_path / "out", toy_source, head, 0, [])

    spelt = []
    for record in likely(tmp_path / "out"):
        assert len(record["conversations"]) == 2 * len(record["tasks"])
        pairs = zip(record["conversations"][::2], record["conversations"][1::2], record["tasks"], strict=True)
        for question, answer, task in pairs:
            if task == "spelt":
                assert question["value"] == f"What is {answer['value']}?"
                spelt.append(answer["value"])
    assert len(spelt) == len(set(spelt)) == photographs.NAMES_READ * len(likely(tmp_path / "out"))
    assert set(spelt) <= set(class_names())


def test_training_regions_are_those_that_the_head_is_sure_of_and_few_of_one_name(toy_source, tmp_path, head):
    counts = photographs.write_training(tmp_path / "out", toy_source, head, 0, [])

    records = written(tmp_path / "out")
    things = [thing for record in records for thing in record["objects"]]
    assert counts == {
        "photographs": 2,
        "images": len(records),
        "regions": len(things),
        "names": len({thing["caption"] for thing in things}),
        "likely_names": len({thing["caption"] for record in likely(tmp_path / "out") for thing in record["objects"]}),
    }
    assert counts["regions"] >= 6 and min(thing["probability"] for thing in things) >= 0.5
    assert {record["image"].split("/")[-1].split("-")[0] for record in records} == {"owl", "pier"}
    names = class_names()
    for record in records:
        said = [thing["caption"] for thing in record["objects"]]
        assert max(said.count(name) for name in said) <= 2 and not photographs.CARDS & set(said)
        image = Image.open(tmp_path / "out" / record["image"])
        assert image.size == (record["width"], record["height"])
        classes = head.probabilities(image.convert("RGB"), record["boxes"]).argmax(1)
        assert said == [names[number] for number in classes]


def test_training_regions_are_read_as_captions_of_the_unified_format(toy_source, tmp_path, head):
    photographs.write_training(tmp_path / "out", toy_source, head, 0, [])

    data = UnifiedDataset(tmp_path / "out" / "train_photographs.jsonl", pairs_per_epoch={"caption": 1})

    sample = data.sample(0, np.random.default_rng(0))
    assert sample.turns[0].text.startswith("What is <region") and len(sample.turns) == 2
    assert list(data.region_texts(0).values()) == [
        thing["caption"] for thing in written(tmp_path / "out")[0]["objects"]
    ]


def test_the_same_seed_draws_the_same_regions_and_a_finished_file_is_left_alone(toy_source, tmp_path, head):
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        photographs.write_training(tmp_path / out, toy_source, head, seed, [])
    first = written(tmp_path / "a")
    assert written(tmp_path / "b") == first != written(tmp_path / "c")

    changed_at = (tmp_path / "a" / "train_photographs.jsonl").stat().st_mtime_ns
    photographs.write_training(tmp_path / "a", toy_source, head, 5, [])
    assert (tmp_path / "a" / "train_photographs.jsonl").stat().st_mtime_ns == changed_at


def test_an_answer_is_accepted_where_it_holds_an_accepted_name_word_by_word():
    assert is_accepted("A coffee mug.", ["cup", "mug"])
    assert is_accepted("an Egyptian cat", ["the cat"])
    assert not is_accepted("a caterpillar", ["cat"])
    assert not is_accepted("a mug of coffee", ["coffee mug"])


def test_any_name_of_a_category_is_accepted_and_each_stamp_has_one_category_at_most():
    dogs = names_of_category("dog")

    assert {"dog", "a beagle", "a cocker spaniel"} <= dogs and "a cat" not in dogs
    assert category_of_stamp("animals/birds/toucan", "a toucan") == "bird"
    assert category_of_stamp("seasonal/easter/bunny", "a bunny") == "small mammal"
    assert category_of_stamp("medical/tooth", "a tooth") is None
    entries = json.loads(CATEGORIES.read_text(encoding="utf-8")).values()
    for key in ("folders", "captions"):
        listed = [name for entry in entries for name in entry.get(key, ())]
        assert len(listed) == len(set(listed))
    numbers = [
        n for entry in entries for one in entry.get("classes", ()) for n in (one if isinstance(one, list) else [one])
    ]
    assert min(numbers) >= 0 and max(numbers) < 1000


def test_the_benchmark_is_large_enough_and_no_training_region_lies_on_its_photographs():
    entries = json.loads(photographs.REGIONS.read_text(encoding="utf-8"))
    sources = {entry["source"] for entry in entries}

    assert len(entries) >= 25 and sum(len(entry["regions"]) for entry in entries) >= 40
    assert sources == set(photographs.BENCHMARK)
    assert not sources & {source.fetched.name for source in photographs.TRAINING}
    assert len({entry["file"] for entry in entries}) == len(entries)
    for entry in entries:
        assert re.fullmatch(photographs.BENCHMARK[entry["source"]].wanted, entry["file"].rsplit(".", 1)[0])
        for region in entry["regions"]:
            x1, y1, x2, y2 = region["box"]
            assert 0 <= x1 < x2 and 0 <= y1 < y2 and ("names" in region) != ("category" in region)


@pytest.fixture
def toy_benchmark(tmp_path, monkeypatch):
    """A benchmark of two photographs, of which the archive's other version has one."""
    regions = [{"box": [10, 10, 60, 50], "names": ["owl", "bird"]}, {"box": [0, 0, 120, 90], "category": "dog"}]
    entries = [{"file": f"{name}.png", "source": "toy", "regions": regions} for name in ("owl", "gone")]
    (tmp_path / "photographs.json").write_text(json.dumps(entries))
    (tmp_path / "downloads" / "toy").mkdir(parents=True)
    noise(7).save(tmp_path / "downloads" / "toy" / "owl.png")
    monkeypatch.setattr(photographs, "REGIONS", tmp_path / "photographs.json")
    monkeypatch.setattr(photographs, "BENCHMARK", {"toy": photographs.Source(TOY, "CC0", "usr")})
    return tmp_path / "downloads"


def test_the_benchmark_file_has_accepted_names_and_what_the_head_says_and_names_what_is_missing(
    toy_benchmark, tmp_path, head
):
    notes = []
    counts = photographs.write_benchmark(tmp_path / "out", toy_benchmark, head, notes)

    (line,) = (tmp_path / "out" / "test_photographs.jsonl").read_text(encoding="utf-8").splitlines()
    record = json.loads(line)
    assert counts == {"images": 1, "regions": 2, "names": 2}
    assert notes == ["1 of 2 photographs of the benchmark are missing: gone.png"]
    first, second = record["objects"]
    assert first["accepted"] == ["owl", "bird"] and "a beagle" in second["accepted"]
    best = head.probabilities(noise(7), record["boxes"]).max(1)
    assert [first["head"], second["head"]] == [class_names()[number] for number in best.indices]
    assert [first["probability"], second["probability"]] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert (tmp_path / "out" / record["image"]).read_bytes() == (toy_benchmark / "toy" / "owl.png").read_bytes()


def test_examples_of_the_page_are_titled_photographs_with_the_boxes_that_the_head_is_right_about(tmp_path):
    things = [{"head": "an owl", "accepted": ["owl"]}, {"head": "a spoon", "accepted": ["cup"]}]
    record = {"image": "images/owl.png", "boxes": [[1, 2, 30, 40], [5, 5, 20, 20]], "objects": things}
    data, model = tmp_path / "data", tmp_path / "run" / "stage2"
    model.mkdir(parents=True)
    assert write_examples(data, model) == 0 and not list(model.iterdir())

    data.mkdir()
    lines = [record | {"title": "an owl at night"}, record, record | {"title": "a cup", "objects": things[1:] * 2}]
    (data / "test_photographs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    assert write_examples(data, model) == 1
    assert json.loads((model / "examples.json").read_text()) == [
        {"image": "../../data/images/owl.png", "title": "an owl at night", "boxes": [[1, 2, 30, 40]]}
    ]


def test_stamps_of_the_training_alone_are_pasted_on_photographs_of_things(tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "PASTED_SCENES", 6)
    stamps, things = shapes.draw_stamps(), shapes.draw_backgrounds(("cat", "bus"))
    arguments = StampArguments(shapes=True, size=128, seed=3)
    file = splits.write_pasted(tmp_path, arguments, stamps, things, workers=1)

    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert file.name == "train_pasted.jsonl" and len(records) == 6
    held_out = np.random.default_rng([3, 99]).choice(len({stamp.caption for stamp in stamps}), 24, False)
    captions = list(dict.fromkeys(stamp.caption for stamp in stamps))
    shown = {thing["caption"] for record in records for thing in record["objects"]}
    assert shown and not shown & {captions[number] for number in held_out}
    assert all(Image.open(tmp_path / record["image"]).size == (128, 128) for record in records)

    changed_at = file.stat().st_mtime_ns
    assert splits.write_pasted(tmp_path, arguments, stamps, things, workers=1).stat().st_mtime_ns == changed_at
    data = UnifiedDataset(file, pairs_per_epoch={"caption": 8})
    assert all(turn.text.startswith("What is <region") for turn in data.sample(0, np.random.default_rng(0)).turns[::2])
