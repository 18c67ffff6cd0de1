"""`gpt4roi caption`, as it is typed."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from phone import STORED, coco, colour, is_red, save_photo, seen

from gpt4roi.cli import build_parser, main
from gpt4roi.cli.caption import describe_job
from gpt4roi.data.readers.vg import VisualGenome
from gpt4roi.io.atomic import only_writer
from gpt4roi.processing.images import load_image

pytestmark = pytest.mark.heavy


@pytest.fixture
def job(tmp_path, image, model_folder):
    """The words of the command: two boxes on one image, one on a copy, one on an image that is missing."""
    shutil.copy(image, tmp_path / "other.png")
    images = [{"id": n, "file_name": name} for n, name in enumerate(["image.png", "other.png", "missing.png"])]
    of_images = [(0, [5, 5, 35, 25]), (1, [5, 5, 35, 25]), (0, [50, 2, 20, 60]), (2, [1, 1, 9, 9])]
    annotations = [{"id": n, "image_id": image, "bbox": bbox} for n, (image, bbox) in enumerate(of_images)]
    (tmp_path / "ann.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    words = ["caption", tmp_path / "ann.json", "--images", tmp_path, "--out", tmp_path / "out.json"]
    words += ["--model", model_folder, "--device", "cpu", "--dtype", "float32", "--max-new-tokens", "8"]
    return [str(word) for word in words]


def test_the_counts_go_to_stdout_and_the_rest_to_stderr(job, tmp_path, capsys):
    assert main(job) == 0

    out, err = capsys.readouterr()
    assert out == f"wrote {tmp_path / 'out.json'}: 3 of 4 boxes have a text\n"
    assert "4 of 4 regions, " in err and "0:00 left" in err
    assert "not captioned: image 2: image" in err
    texts = [row.get("caption") for row in json.loads((tmp_path / "out.json").read_text())["annotations"]]
    assert texts[0] == texts[1] != texts[2] and texts[3] is None


def test_images_that_failed_are_captioned_by_another_run(job, tmp_path, image, capsys):
    assert main(job) == 0
    assert (tmp_path / "out.json.parts").is_dir()
    shutil.copy(image, tmp_path / "missing.png")
    assert main(job) == 0
    written = capsys.readouterr()
    assert "images failed: trying these again" in written.err and "4 of 4 boxes have a text" in written.out
    assert not (tmp_path / "out.json.parts").exists()


def test_a_job_of_which_nothing_came_out_ends_with_1_again_and_again(job, tmp_path, capsys):
    content = json.loads((tmp_path / "ann.json").read_text())
    for annotation in content["annotations"]:
        annotation["bbox"] = [500, 500, 20, 20]
    del content["annotations"][3]
    (tmp_path / "ann.json").write_text(json.dumps(content))
    assert main(job) == 1
    assert "3 of 3 boxes have no text, more than --max-bad-fraction 0.01 allows" in capsys.readouterr().err
    assert main(job) == 1
    assert "nothing to do" in capsys.readouterr().err
    assert main([*job, "--max-bad-fraction", "1"]) == 0


def test_the_same_answer_from_text_placeholders_and_boxes_that_reach_out(job, tmp_path, capsys):
    images = [{"id": "7", "file_name": "C:\\photos\\image.png"}]
    boxes = [[5, 5, 35, 25], ["5", "5", "35", "25"], [0, 0, 0, 0], [-3, 5, 35, 25]]
    annotations = [{"id": 1, "image_id": 7.0, "bbox": bbox, "score": float("nan")} for bbox in boxes]
    annotations[2]["segmentation"] = [[5, 5, 40, 5, 40, 30]]
    (tmp_path / "ann.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    assert main(job) == 0
    text = (tmp_path / "out.json").read_text()
    assert "NaN" not in text
    rows = json.loads(text)["annotations"]
    assert rows[0]["caption"] == rows[1]["caption"] == rows[2]["caption"] and rows[3]["caption"]
    assert [row["id"] for row in rows] == [1, 2, 3, 4] and {row["image_id"] for row in rows} == {7}
    assert "1 boxes reached out of their image" in capsys.readouterr().err


def test_boxes_of_crowds_are_left_out_and_counted_unless_they_are_asked_for(job, tmp_path, image, capsys):
    rows = [{"id": n, "image_id": 0, "bbox": [5, 5, 35, 25], "iscrowd": flag} for n, flag in enumerate((0, "1"))]
    rows.append({"id": 2, "image_id": 0, "bbox": [5, 5, 35, 25], "ignore": 1})
    content = {"images": [{"id": 0, "file_name": "image.png"}], "annotations": rows}
    (tmp_path / "ann.json").write_text(json.dumps(content))
    assert main(job) == 0
    assert "1 of 3 boxes have a text; left out: box of a crowd: 1; box marked ignore: 1\n" in capsys.readouterr().out
    assert main(job) == 0, "the boxes that a rule leaves out are not lost in a finished job either"
    assert main([*job, "--crowds", "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == {"box marked ignore": 1}
    written = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert [row.get("caption") is not None for row in written] == [True, True, False]
    (tmp_path / "ann.json").write_text(json.dumps({**content, "annotations": rows[1:2]}))
    assert main([*job, "--overwrite"]) == 2
    assert "holds no box but box of a crowd: 1" in capsys.readouterr().err


@pytest.mark.parametrize("frame", ["upright", "stored"])
def test_a_training_on_the_result_reads_the_pixels_that_were_captioned(job, tmp_path, frame):
    save_photo(tmp_path / "phone.jpg", 6)
    square = seen(6)[1] if frame == "upright" else STORED
    content = {**coco("phone.jpg", seen(6)[0][::-1], square), "info": {"contributor": "Label Studio"}}
    (tmp_path / "ann.json").write_text(json.dumps(content))
    assert main([*job, "--frame", frame]) == 0
    out, pipeline = tmp_path / "out.json", {"upright": "detection", "stored": "dialogue"}[frame]
    assert json.loads(out.read_text())["images"][0]["image_pipeline"] == pipeline
    sample = VisualGenome(out, tmp_path).sample(0, np.random.default_rng(0))
    assert is_red(colour(load_image(sample.image, sample.image_pipeline), sample.boxes_px[0]))
    assert main(["data", "convert", str(out), str(tmp_path / "t.jsonl"), "--from", "coco"]) == 0
    converted = json.loads((tmp_path / "t.jsonl").read_text())
    assert is_red(colour(load_image(tmp_path / "phone.jpg", converted["image_pipeline"]), converted["boxes"][0]))


def test_a_second_job_on_one_output_is_refused_in_a_line(job, tmp_path, capsys):
    with only_writer(tmp_path / "out.json"):
        assert main(job) == 2
    assert f"another run is writing {tmp_path / 'out.json'} (process {os.getpid()})" in capsys.readouterr().err
    assert main(job) == 0 and not list(tmp_path.glob(".*"))


def test_what_a_kill_after_the_result_left_is_cleared_away(job, tmp_path, image):
    shutil.copy(image, tmp_path / "missing.png")
    assert main(job) == 0
    described = json.loads((tmp_path / "out.json").read_text())["info"]["gpt4roi"]
    described.pop("failed")
    parts = tmp_path / "out.json.parts"
    parts.mkdir()
    (parts / "rank-0.jsonl").write_text("")
    (parts / "job.json").write_text(json.dumps(described | {"seed": 5}))
    assert main(job) == 0
    assert parts.is_dir(), "it is of another job"
    (parts / "job.json").write_text(json.dumps(described))
    assert main(job) == 0
    assert not parts.exists()


def test_a_finished_job_has_nothing_left_and_another_is_not_overwritten(job, tmp_path, image, capsys):
    shutil.copy(image, tmp_path / "missing.png")
    assert main([*job, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["captioned"] == 4
    before = (tmp_path / "out.json").read_bytes()

    assert main(job) == 0
    assert "nothing to do" in capsys.readouterr().err
    other_images = tmp_path / "others"
    other_images.mkdir()
    assert main([*job, "--images", str(other_images)]) == 2
    assert "exists and is of another job" in capsys.readouterr().err
    assert main([*job, "--question", "Name <region1>!"]) == 2
    assert "exists and is of another job" in capsys.readouterr().err
    assert (tmp_path / "out.json").read_bytes() == before
    assert main([*job, "--question", "Name <region1>!", "--overwrite"]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["info"]["gpt4roi"]["question"] == "Name <region1>!"


def test_without_vllm_the_engine_vllm_is_refused(job, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gpt4roi.cli.caption.find_spec", lambda name: None)
    assert main([*job, "--engine", "vllm"]) == 2
    assert "--engine vllm needs vLLM, in an environment of its own; see docs/serving.md" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_a_job_of_vllm_is_the_same_one_in_float32_only(job):
    def described(*more: str) -> dict:
        return describe_job(build_parser("caption").parse_args([*job[1:], *more]))

    assert described("--engine", "vllm") == described()
    assert described("--engine", "vllm", "--dtype", "bfloat16") != described("--dtype", "bfloat16")
