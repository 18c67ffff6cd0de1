import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recordings import DATA

import gpt4roi
from gpt4roi.cli import main
from gpt4roi.data.base import RegionDataset
from gpt4roi.data.mixture import Mixture
from gpt4roi.data.registry import READERS, build_mixture
from gpt4roi.errors import InputError
from gpt4roi.structures import RegionSample, Turn

CONFIGS = Path(gpt4roi.__file__).parent / "configs"


class Numbers(RegionDataset):
    def __init__(self, name, size):
        super().__init__()
        self.name, self.size = name, size

    def __len__(self):
        return self.size

    def sample(self, index, rng):
        return RegionSample(None, (Turn("user", f"{self.name}{index}"),))


def texts(mixture):
    return [mixture.sample(index, np.random.default_rng(0)).turns[0].text for index in range(len(mixture))]


def test_sets_are_joined_in_order():
    assert texts(Mixture([Numbers("a", 2), Numbers("b", 1)])) == ["a0", "a1", "b0"]


def test_a_ratio_below_one_takes_a_seeded_part_and_above_one_repeats():
    drawn = texts(Mixture([Numbers("a", 10), Numbers("b", 4)], [0.5, 2.5], seed=1))
    assert len(drawn) == 15
    assert len({text for text in drawn if text[0] == "a"}) == 5
    assert sorted(drawn.count(f"b{index}") for index in range(4)) == [2, 2, 3, 3]
    assert drawn == texts(Mixture([Numbers("a", 10), Numbers("b", 4)], [0.5, 2.5], seed=1))


@pytest.mark.parametrize("ratio", [0, -1, 0.01])
def test_a_ratio_that_leaves_nothing_is_refused(ratio):
    with pytest.raises(InputError, match="leaves none of 3 samples"):
        Mixture([Numbers("a", 3)], [ratio])


def line():
    return json.dumps({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}) + "\n"


def test_a_list_in_json_in_python_and_a_plain_file_of_images_are_all_opened(tmp_path):
    images = tmp_path / "p.jsonl"
    images.write_text(line() * 3)
    entry = {"type": "unified", "ann_file": str(images), "ratio": 2}
    (tmp_path / "c.json").write_text(json.dumps([entry]))
    (tmp_path / "c.py").write_text(f"# sets\ndatasets = {[entry]!r}\n")
    assert [len(build_mixture(tmp_path / name)) for name in ("c.json", "c.py", "p.jsonl")] == [6, 6, 3]


def test_a_list_may_name_the_image_pipeline_as_version_0_1_did(tmp_path):
    images = tmp_path / "p.jsonl"
    images.write_text(line())
    entry = {"type": "unified", "ann_file": str(images), "picture_pipeline": "bilinear"}
    assert build_mixture([entry]).sample(0, np.random.default_rng(0)).image_pipeline == "detection"


def test_building_does_not_change_the_list(tmp_path):
    images = tmp_path / "p.jsonl"
    images.write_text(line())
    entries = [{"type": "unified", "ann_file": str(images)}]
    assert len(build_mixture(entries)) == len(build_mixture(entries)) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "names no data set"),
        ('[{"type": "unifid"}]', "unknown type 'unifid'; known are"),
        ('[{"type": "unified", "ann": 1}]', r"unknown keys \['ann'\] for unified; accepted are ann_file, img_prefix"),
        ('{"type": 1}', "expected a list of data sets, got an object"),
        ("[1]", "data set 0: expected an object with 'type'"),
        ("nonsense", "not valid JSON"),
    ],
)
def test_a_wrong_list_is_a_readable_error(tmp_path, config, message):
    path = tmp_path / "c.json"
    path.write_text(config)
    with pytest.raises(InputError, match=message):
        build_mixture(path)


def test_a_python_list_is_read_and_never_executed(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("datasets = [{'type': open('/tmp/x')}]")
    with pytest.raises(InputError, match="expected plain literals"):
        build_mixture(path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ratio": "x"}, "data set 0: ratio must be a number above 0, at most 1000, got 'x'"),
        ({"ratio": float("nan")}, "data set 0: ratio must be a number above 0, at most 1000, got nan"),
        ({"ann_file": None}, "data set 0: ann_file is missing"),
        ({"pairs_per_epoch": 5}, "pairs_per_epoch must be task -> number, got 5"),
        ({"type": ["unified"]}, "data set 0: expected an object with 'type'"),
    ],
)
def test_a_wrong_value_in_a_list_of_data_sets_is_one_readable_error(more, message):
    entry = {"type": "unified", "ann_file": "train.jsonl"} | more
    with pytest.raises(InputError, match=message):
        build_mixture([{key: value for key, value in entry.items() if value is not None}])


def test_a_list_of_data_sets_that_is_not_text_is_named(tmp_path):
    (tmp_path / "list.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"list.json: not UTF-8 text at byte 0"):
        build_mixture(tmp_path / "list.json")


def test_a_cap_takes_at_most_so_many_and_a_seed_of_its_own_does_not_depend_on_the_sets_beside():
    sets = [Numbers("a", 10), Numbers("b", 50)]
    drawn = texts(Mixture(sets, [2, 1], caps=[15, 5], seeds=[None, 7]))
    assert [text[0] for text in drawn] == ["a"] * 15 + ["b"] * 5
    assert {text for text in drawn if text[0] == "a"} == {f"a{index}" for index in range(10)}
    alone = texts(Mixture([Numbers("b", 50)], caps=[5], seeds=[7]))
    assert alone == drawn[15:] != texts(Mixture([Numbers("b", 50)], caps=[5], seeds=[8]))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"max_samples": 0}, "data set 0: max_samples must be a whole number, got 0"),
        ({"seed": "x"}, "data set 0: seed must be a whole number, got 'x'"),
        ({"max_gt_per_img": "many"}, "data set 0: max_gt_per_img must be a whole number above 0, got 'many'"),
        ({"test_mode": 1}, "data set 0: test_mode must be true or false, got 1"),
        ({"ratio": 1e308}, "data set 0: ratio must be a number above 0, at most 1000, got 1e"),
        ({"ann_file": "a" * 5000}, "data set 0: ann_file cannot be a path: 'aaa"),
        ({"ann_file": "a\x00"}, "data set 0: ann_file cannot be a path"),
        ({"img_prefix": "\ud800"}, "data set 0: img_prefix cannot be a path"),
        ({"img_prefix": 3}, "data set 0: img_prefix must be a path, got 3"),
        ({"type": "det_llava"}, "data set 0: det_pkl_path is missing"),
        ({"ann_path": "b.json"}, "data set 0: ann_path and another key for ann_file differ: 'b.json', 'a.json'"),
        ({"as_recorded": True}, r"unknown keys \['as_recorded'\] for VGDATA; accepted are .*max_gt_per_img"),
    ],
)
def test_a_wrong_key_of_a_reader_is_one_readable_error(more, message):
    with pytest.raises(InputError, match=message):
        build_mixture([{"type": "VGDATA", "ann_file": "a.json"} | more])


def test_the_original_s_other_spellings_of_keys_and_folders_are_understood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DATA / "coco", tmp_path / "data/coco_det")
    shutil.copytree(DATA / "coco_all", tmp_path / "data/coco_imgs")
    shutil.copytree(DATA / "mdetr_annotations", tmp_path / "data/mdetr_annotations")
    one = build_mixture("gpt4roi/configs/stage1.py")
    other = build_mixture(json.loads((CONFIGS / "dataset_config.json").read_text())[:3])
    assert len(one) == len(other) == 5 + 5 + 2
    assert {part.image(0).split("/")[-2] for part in one.parts} == {"train2017", "coco_imgs"}
    old = {"type": "vcr", "ann_path": str(DATA / "vcr/train.jsonl"), "vis_root": str(DATA / "vcr/vcr1images")}
    assert len(build_mixture([old])) == 13
    llava = {"ann_path": "llava_instruct_150k.json", "det_pkl_path": "llava_150k_bbox_pred_results.pkl"}
    llava = {key: str(DATA / "llava" / name) for key, name in llava.items()}
    assert len(build_mixture([{"type": "det_llava", "data_path": str(DATA / "coco_all")} | llava])) == 4


def test_the_lists_of_the_paper_open_on_a_tree_as_data_readme_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DATA, tmp_path / "data")
    sets = {
        name: [type(part).__name__ for part in build_mixture(f"gpt4roi/configs/{name}").parts]
        for name in ("stage1.py", "stage2.py", "dataset_config.json")
    }
    assert sets["stage1.py"] == ["CocoDetection", "RefCOCO", "RefCOCOP"]
    assert set(sets["stage1.py"] + sets["stage2.py"]) == set(sets["dataset_config.json"])
    assert len(sets["dataset_config.json"]) == len(READERS) - 1  # all but `unified`


def test_the_list_for_a_pretrained_base_opens_on_such_a_tree_with_its_files_converted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DATA, tmp_path / "data")
    shutil.move("data/coco_all", "data/coco_imgs")  # either name will do
    photos = sorted((tmp_path / "data/coco_imgs").glob("*.jpg"))[:2]
    sizes = [dict(zip(("width", "height"), Image.open(photo).size, strict=True)) for photo in photos]
    images = [{"id": 1, "coco_url": f"http://images.cocodataset.org/train2017/{photos[0].name}"} | sizes[0]]
    for name, category in (("lvis/lvis_v1_train", "coffee_maker"), ("paco/paco_lvis_v1_train", "cup:handle")):
        rows = [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 20, 10]}]
        table = {"images": images, "annotations": rows, "categories": [{"id": 7, "name": category}]}
        convert(tmp_path / f"data/{name}", "lvis", table)
    region = {"segmentation": [[1, 2, 9.5, 2, 9.5, 7]]}
    described = {"description": ["<region1>: A cup."]}
    asked = {"conversations": [{"from": "human", "value": "Is <region1> red?"}, {"from": "gpt", "value": "Yes."}]}
    texts = {"conversation": asked, "detail_description": described, "short_form": asked, "part_level": asked}
    for name, text in texts.items():
        entry = {"file_name": photos[1].name, "annotation": [region]} | sizes[1] | text
        convert(tmp_path / f"data/osprey/osprey_{name}", "osprey", [entry])
    parts = build_mixture("gpt4roi/configs/vlm.py").parts
    drawn = [part.sample(0, np.random.default_rng(0)) for part in parts]
    assert all(sample.turns and Path(str(sample.image)).is_file() for sample in drawn)
    said = [sample.turns[-1].text for sample in drawn if "unified" in str(sample.source)]
    assert said == ["coffee maker", "cup handle", "Yes.", "A cup.", "Yes.", "Yes."]


def convert(path, form, content):
    """Writes a file as it is published and converts it as configs/vlm.py says."""
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(content))
    words = f"data convert {path}.json {path}.unified.jsonl --from {form} --img-prefix data/coco_imgs"
    assert main(words.split()) == 0


def test_a_python_list_is_never_run(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(f"datasets = [open({str(tmp_path / 'ran')!r}, 'w')]\n")
    with pytest.raises(InputError, match="expected plain literals"):
        build_mixture(path)
    assert not (tmp_path / "ran").exists()
