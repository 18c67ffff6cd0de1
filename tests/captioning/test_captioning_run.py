"""A text at every box: whole, resumed, shared among processes, with what cannot be used told."""

from __future__ import annotations

import json
import threading
import weakref

import numpy as np
import pytest
from coco_tables import tables
from PIL import Image
from pycocotools.coco import COCO

from gpt4roi import InputError
from gpt4roi.captioning.run import caption_file, parts_folder
from gpt4roi.captioning.source import read_source
from gpt4roi.distributed import DistributedContext
from gpt4roi.generation.sampling import SamplingParams
from gpt4roi.processing.user_input import open_image

QUESTION = "What is <region1>?"
JOB = {"boxes": "abc", "model": "tiny"}


class Killed(BaseException):
    """What a kill is to a process: nothing after it runs."""


def caption(chat, source, out, context=None, job=JOB, **settings):
    return caption_file(chat, source, out, job, QUESTION, SamplingParams(6), batch_size=3, context=context, **settings)


@pytest.fixture
def source(ann_file, images):
    return read_source(ann_file, images)


@pytest.fixture
def whole(chat, source, tmp_path):
    """The file of an uninterrupted run."""
    caption(chat, source, tmp_path / "whole.json")
    return tmp_path / "whole.json"


@pytest.mark.heavy
def test_every_box_gets_the_text_that_describe_gives_and_the_rest_stays(chat, whole, images):
    content = json.loads(whole.read_text())
    before = tables()

    assert content["images"] == before["images"] and content["licenses"] == []
    assert content["info"] == {"year": 2020, "gpt4roi": {**JOB, "failed": []}}
    texts = [annotation.pop("caption") for annotation in content["annotations"]]
    assert content["annotations"] == before["annotations"]
    expected = []
    for number in range(1, 6):
        boxes = [row["bbox"] for row in before["annotations"] if row["image_id"] == 10 + number]
        corners = [[x, y, x + w, y + h] for x, y, w, h in boxes]
        expected += chat.describe(images / f"{number}.png", corners, QUESTION, max_new_tokens=6)
    assert texts == expected and len(set(texts)) > 5


def test_one_image_at_a_time_is_held_open(chat, source, tmp_path, monkeypatch):
    from gpt4roi.captioning import run

    opened, held = [], []

    def open_and_count(path):
        image = open_image(path)
        opened.append(weakref.ref(image))
        held.append(sum(one() is not None for one in opened))
        return image

    monkeypatch.setattr(run, "open_image", open_and_count)
    caption_file(chat, source, tmp_path / "out.json", JOB, QUESTION, SamplingParams(2), batch_size=100)

    assert held == [1] * 5


def killed_after(chat, groups: int):
    """Lets a run get so many groups done."""
    left = [groups]

    def hook(*_):
        if left[0] == 0:
            raise Killed
        left[0] -= 1

    return chat.model.vision_tower.register_forward_pre_hook(hook)


@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_run_goes_on_and_gives_the_same_file(chat, source, whole, tmp_path, torn, caplog):
    out = tmp_path / "out.json"
    for groups in (1, 2):
        hook = killed_after(chat, groups)
        with pytest.raises(Killed):
            caption(chat, source, out)
        hook.remove()
        assert not out.exists()
        if torn:
            with (parts_folder(out) / "rank-0.jsonl").open("ab") as file:
                file.write(b'{"group": 3, "resu')
    looks = []
    hook = chat.model.vision_tower.register_forward_hook(lambda *_: looks.append(1))

    caption(chat, source, out)

    hook.remove()
    assert out.read_bytes() == whole.read_bytes()
    assert len(looks) == 1  # three of four groups were there
    assert not parts_folder(out).exists()


class ThreadContext(DistributedContext):
    """Ranks that are threads of one process."""

    def all_gather(self, value):
        shared = self.shared
        shared["values"][self.rank] = value
        shared["barrier"].wait()
        gathered = list(shared["values"])
        shared["barrier"].wait()
        return gathered


def worlds(size: int) -> list[DistributedContext]:
    shared = {"values": [None] * size, "barrier": threading.Barrier(size)}
    made = [ThreadContext(rank, size, rank) for rank in range(size)]
    for world in made:
        object.__setattr__(world, "shared", shared)
    return made


def test_two_ranks_give_the_file_of_one_also_after_a_kill(chat, source, whole, tmp_path):
    out = tmp_path / "out.json"
    hook = killed_after(chat, 1)
    with pytest.raises(Killed):
        caption(chat, source, out)
    hook.remove()

    outcomes = [None, None]

    def work(world):
        outcomes[world.rank] = caption(chat, source, out, world)

    threads = [threading.Thread(target=work, args=(world,)) for world in worlds(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert out.read_bytes() == whole.read_bytes()
    assert outcomes[0].captioned == 15 and outcomes[1] is None


def test_the_result_opens_in_pycocotools(whole):
    coco = COCO(str(whole))

    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[15]))
    assert len(annotations) == 5 and all(annotation["caption"] for annotation in annotations)
    assert coco.loadCats(coco.getCatIds())[0]["name"] == "thing"


def test_what_coco_tools_need_is_added_where_it_lacks(chat, images, tmp_path):
    results = [
        {"image_id": 2, "bbox": [1, 2, 30, 40], "score": 0.5},
        {"image_id": 1, "segmentation": [[10, 20, 30, 20, 30, 40]], "score": 0.4, "bbox": []},
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))

    caption(chat, read_source(tmp_path / "results.json", images), tmp_path / "out.json")

    content = json.loads((tmp_path / "out.json").read_text())
    assert content["images"][0] == {"id": 2, "file_name": "2.png", "height": 64, "width": 96}
    first, second = content["annotations"]
    assert (first["id"], first["area"], first["iscrowd"], first["category_id"]) == (1, 1200, 0, 1)
    assert second["bbox"] == [10, 20, 20, 20] and second["caption"]
    assert content["categories"] == [{"id": 1, "name": "region"}]
    COCO(str(tmp_path / "out.json"))


def test_images_without_boxes_get_their_size_too(chat, images, tmp_path):
    content = tables((0, 1, 0, 0))
    for image in content["images"]:
        del image["height"], image["width"]
    (images / "2.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(images / "3.png").save(images / "3.png", exif=exif)
    (tmp_path / "ann.json").write_text(json.dumps(content))

    caption(chat, read_source(tmp_path / "ann.json", images), tmp_path / "out.json")

    images = json.loads((tmp_path / "out.json").read_text())["images"]
    sizes = [(image.get("height"), image.get("width")) for image in images]
    assert sizes == [(64, 96), (64, 96), (None, None), (96, 64)]


def test_what_is_null_is_added_too_and_no_id_is_given_twice(chat, images, tmp_path):
    content = tables((3,))
    content["categories"][0]["id"] = 1
    content["images"][0] |= {"height": None, "width": None}
    for annotation, identity in zip(content["annotations"], (2, None, 1), strict=True):
        annotation |= {"id": identity, "area": None, "iscrowd": None, "category_id": None}
    del content["annotations"][1]["id"]
    (tmp_path / "ann.json").write_text(json.dumps(content))

    caption(chat, read_source(tmp_path / "ann.json", images), tmp_path / "out.json")

    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["images"][0]["height"], written["images"][0]["width"]) == (64, 96)
    assert [annotation["id"] for annotation in written["annotations"]] == [2, 3, 1]
    added = {(one["area"], one["iscrowd"], one["category_id"]) for one in written["annotations"]}
    assert added == {(462, 0, 2)}
    assert written["categories"] == [{"id": 1, "name": "thing"}, {"id": 2, "name": "region"}]
    assert len(COCO(str(tmp_path / "out.json")).anns) == 3


def test_half_a_character_in_the_file_does_not_cost_the_result(chat, images, tmp_path):
    content = tables((1, 1))
    content["annotations"][0]["note"] = "\ud83d"  # JSON may hold it as an escape
    content["images"][1]["file_name"] = "caf\udce9.png"  # how Python keeps a name that is not UTF-8
    (tmp_path / "ann.json").write_text(json.dumps(content))

    outcome = caption(chat, read_source(tmp_path / "ann.json", images), tmp_path / "out.json")

    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert outcome.captioned == 1 and written["annotations"][0]["note"] == "\ud83d"
    assert "caf" in outcome.failed[0] and written["info"]["gpt4roi"]["failed"] == outcome.failed


def test_a_box_that_is_no_box_does_not_cost_the_others_their_texts(chat, images, tmp_path):
    results = [{"image_id": 2, "bbox": [1, 2, 30, 40], "category_id": [3]}]
    results += [
        {"image_id": 2, "bbox": bbox} for bbox in ([1, 2, None, None], [1, 2, "x", "y"], ["1", "2", "30", "40"])
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))

    outcome = caption(chat, read_source(tmp_path / "results.json", images), tmp_path / "out.json")

    assert outcome.captioned == 2 and len(outcome.failed) == 2
    first, *_, last = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert first["caption"] == last["caption"] and first["area"] == 1200


def test_a_mask_of_another_images_size_is_told_and_costs_the_others_nothing(chat, images, tmp_path):
    masks = [{"size": [height, width], "counts": [0, height * width]} for height, width in [(64, 96), (32, 48)]]
    results = [{"image_id": 2, "segmentation": mask} for mask in masks]
    (tmp_path / "results.json").write_text(json.dumps(results))

    outcome = caption(chat, read_source(tmp_path / "results.json", images), tmp_path / "out.json")

    assert outcome.captioned == 1
    assert outcome.failed == ["annotation 2: the mask is 48x32 but the image is 96x64 pixels (width x height)"]


def test_what_cannot_be_used_is_told_and_the_rest_is_captioned(chat, images, tmp_path):
    content = tables((1, 1, 1, 2))
    (images / "0.png").write_text("no image")
    (images / "1.png").unlink()
    content["images"][2]["width"] = 200
    content["annotations"][3]["bbox"] = [90, 60, 0, 3]
    (tmp_path / "ann.json").write_text(json.dumps(content))

    outcome = caption(chat, read_source(tmp_path / "ann.json", images), tmp_path / "out.json")

    assert (outcome.regions, outcome.captioned, len(outcome.failed)) == (5, 1, 4)
    for reason, expected in zip(
        outcome.failed,
        ["image 10: image", "image 11: image", "image 12: ", "annotation 103: the box 90,60,90,63 has no area"],
        strict=True,
    ):
        assert reason.startswith(expected)
    assert "the file says 200 x 64, image " in outcome.failed[2]
    written = json.loads((tmp_path / "out.json").read_text())
    assert ["caption" in annotation for annotation in written["annotations"]] == [False] * 4 + [True]
    assert written["info"]["gpt4roi"]["failed"] == outcome.failed


def test_boxes_of_an_image_stored_sideways_are_read_in_the_frame_of_their_size(chat, images, tmp_path):
    upright = Image.open(images / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(images / "0.png", exif=exif)
    box = [10, 12, 20, 30]
    answers = {}
    for name, (height, width) in {"upright": (64, 96), "stored": (96, 64)}.items():
        content = tables((1,))
        content["images"][0] |= {"height": height, "width": width}
        content["annotations"][0]["bbox"] = box
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        caption(chat, read_source(tmp_path / f"{name}.json", images), tmp_path / f"{name}-out.json")
        answers[name] = json.loads((tmp_path / f"{name}-out.json").read_text())["annotations"][0]["caption"]

    corners = [[10, 12, 30, 42]]
    assert answers["upright"] == chat.describe(upright, corners, QUESTION, max_new_tokens=6)[0]
    assert answers["stored"] == chat.describe(np.asarray(stored), corners, QUESTION, max_new_tokens=6)[0]


def test_parts_of_another_job_are_not_taken_for_these(chat, source, tmp_path):
    out = tmp_path / "out.json"
    hook = killed_after(chat, 1)
    with pytest.raises(Killed):
        caption(chat, source, out)
    hook.remove()

    with pytest.raises(InputError, match="holds what is done of another job \\(model was 'tiny', is 'other'\\)"):
        caption(chat, source, out, job={**JOB, "model": "other"})

    next(tmp_path.rglob("job.json")).write_text("{")
    with pytest.raises(InputError, match=r"job\.json: damaged; remove .* to begin anew"):
        caption(chat, source, out)


def test_texts_that_are_there_are_not_overwritten(chat, images, tmp_path):
    content = tables((1,))
    content["annotations"][0]["caption"] = "a truth"
    (tmp_path / "ann.json").write_text(json.dumps(content))
    source = read_source(tmp_path / "ann.json", images)

    with pytest.raises(InputError, match="have a 'caption' already; name another field"):
        caption(chat, source, tmp_path / "out.json")
    caption(chat, source, tmp_path / "out.json", field="answer")

    (annotation,) = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert annotation["caption"] == "a truth" and annotation["answer"]


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_told_and_costs_nothing(chat, source, whole, tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    hook = killed_after(chat, 3)
    with pytest.raises(Killed):
        caption(chat, source, out)
    hook.remove()
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full_disk)
        with pytest.raises(InputError, match=r"out.json cannot be written: No space left on device; what is done is"):
            caption(chat, source, out)
    assert not out.exists()

    hook = killed_after(chat, 0)  # all four groups are there
    caption(chat, source, out)

    hook.remove()
    assert out.read_bytes() == whole.read_bytes()
