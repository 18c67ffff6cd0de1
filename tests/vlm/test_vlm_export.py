"""Export of a pretrained vision-language model with regions: base and region encoder, and nothing of the training."""

from __future__ import annotations

import json
import shutil

import pytest
from tiny_vlms import noise_image, tiny_vlm

from gpt4roi import RegionChat
from gpt4roi.checkpoint.export import export_folder
from gpt4roi.cli import main
from gpt4roi.errors import InputError
from gpt4roi.io.model_folders import REGIONS_ON_BASE, identify

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The finished work directory of a training of regions on a base."""
    folder = tmp_path_factory.mktemp("vlm") / "stage2"
    vlm = tiny_vlm("qwen2_5_vl")
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    for name in ("run.json", "trained.json", "watch.html", "checkpoint-4/optimizer.pt", "region_encoder/notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "/home/me/secret/qwen"}))
    return folder


def test_a_base_with_regions_is_packed_with_its_region_encoder_and_answers_as_before(work, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(work), str(out)]) == 0
    written, left = capsys.readouterr()
    assert "vision-language model with regions, " in written and "checkpoint-4, run.json, trained.json" in left
    names = {str(path.relative_to(out)) for path in out.rglob("*")}
    inside = {f"region_encoder/{name}" for name in ("config.json", "model.safetensors", "processor_config.json")}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", *inside} <= names
    assert not [name for name in names if "notes" in name or name.endswith(("run.json", ".html", ".pt", ".py"))]
    for name in ("model.safetensors", "region_encoder/model.safetensors"):
        assert (out / name).read_bytes() == (work / name).read_bytes()
    assert json.loads((out / "config.json").read_text())["_name_or_path"] == "qwen"
    card = (out / "README.md").read_text()
    assert "folder `region_encoder`" in card and "that of its base, `qwen2_5_vl`" in card and "trust_remote" not in card
    assert identify(out).kind == REGIONS_ON_BASE
    answers = [
        RegionChat.from_pretrained(folder, device="cpu", dtype="float32").describe(
            noise_image(60, 90), [[3, 5, 40, 50]], max_new_tokens=5
        )
        for folder in (work, out)
    ]
    assert answers[0] == answers[1]


def test_a_base_whose_region_encoder_has_no_weights_is_not_packed(work, tmp_path):
    folder = shutil.copytree(work, tmp_path / "work")
    (folder / "region_encoder/model.safetensors").unlink()
    with pytest.raises(InputError, match=r"region_encoder has no weights: expected one of model.safetensors"):
        export_folder(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
