"""Exports of annotation tools, of photographs of all EXIF orientations: every command looks at what was annotated."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch
from exports import EXPORTS
from phone import ORIENTATIONS, colour, is_red, save_photo
from tiny import tiny_model, tiny_processor

from gpt4roi.captioning.run import _prepare
from gpt4roi.captioning.source import read_source
from gpt4roi.cli._regions import given_regions, upright_regions
from gpt4roi.data.convert.coco import objects_of_coco
from gpt4roi.data.convert.objects import Conversion, write_objects
from gpt4roi.data.unified import UnifiedDataset
from gpt4roi.data_check.lengths import open_length_estimator
from gpt4roi.data_check.samples import SampleChecker
from gpt4roi.errors import InputError
from gpt4roi.evaluation.evaluate import read_items
from gpt4roi.evaluation.items import Source
from gpt4roi.geometry.frames import FrameRule
from gpt4roi.processing.user_input import open_image

LIST = r"expected an object with 'images' \(a file in COCO's form\), got a list"
REFUSED = {
    ("SAM", "caption"): "an entry has segmentation, area, bbox",
    ("SAM", "convert"): LIST,
    ("SA-1B", "convert"): "nothing could be converted; the first: .* neither a caption nor a known category",
    ("YOLO rows", "caption"): "an entry has name, class, confidence, box",
    ("YOLO rows", "convert"): LIST,
    ("YOLO results", "convert"): LIST,
}
"""What a command says of an export that it does not read."""
REFUSED |= {("SAM, stored", command): REFUSED["SAM", command] for command in ("caption", "convert")}
REFUSED |= {(name, "evaluate"): said for (name, command), said in REFUSED.items() if command == "convert"}
REFUSED |= {(name, "evaluate"): "no 'categories'" for name in ("SA-1B", "Grounded-SAM-2", "VIA", "labelme")}
STORED = ("EXIF ignored", "SAM, stored", "Grounded-SAM-2")
"""Whose boxes are of the image as stored."""
TOLD_BY_SIZE = ("EXIF ignored", "SAM, stored")
"""Whose frame the sizes alone tell: not where the photograph is only mirrored or turned by 180 degrees."""


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(tiny_model("pyramid").config)


def shown(processor, pixel_values, box):
    """Returns the mean colour of the middle of a box, xyxy in [0, 1], in what a model sees."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    pixels = ((pixel_values * std + mean) * 255).round()
    x1, y1, x2, y2 = (np.asarray(box) * processor.image_size).tolist()
    dx, dy = (x2 - x1) / 4, (y2 - y1) / 4
    crop = pixels[:, round(y1 + dy) : round(y2 - dy), round(x1 + dx) : round(x2 - dx)]
    return crop.reshape(3, -1).mean(dim=1).tolist()


def describe(path, photo, rule, processor):
    args = argparse.Namespace(boxes=[], regions=str(path), image=str(photo), frame=rule.frame, scale_boxes=False)
    (box,) = upright_regions(args, given_regions(args), args.image).boxes_px
    return colour(open_image(photo), box)


def caption(path, photo, rule, processor):
    source = read_source(path, photo.parent)
    (image,) = source.images
    prepared, result = _prepare(processor, source, image, rule)
    if prepared is None:
        raise InputError(str(result))
    (box,), (height, width) = prepared[1], prepared[0].size
    return shown(processor, prepared[0].pixel_values, box / [width, height, width, height])


def _converted(path, photo, rule):
    target = Conversion(photo.parent, rule)
    out = photo.parent / "converted.jsonl"
    assert write_objects(objects_of_coco(path, photo.parent, target), out, target) == 1
    return UnifiedDataset(out)


def convert(path, photo, rule, processor):
    encoded = processor.encode(_converted(path, photo, rule).sample(0, np.random.default_rng(0)))
    return shown(processor, encoded["pixel_values"], encoded["boxes"][0])


def check(path, photo, rule, processor):
    """Returns all that the check finds."""
    dataset = _converted(path, photo, rule)
    part = SampleChecker(dataset, open_length_estimator(None, 700), rule=rule).check([0])
    return [(kind, first[0].message.rpartition("phone.jpg' ")[2]) for kind, _, first in part.findings]


def evaluate(path, photo, rule, processor):
    (item,) = read_items("coco", Source(path, images=photo.parent, rule=rule))
    return colour(item.query.image, item.query.boxes_px[0])


def export(tmp_path, name, orientation):
    """Writes a photograph and an export, and returns their files, and the switch that the export needs."""
    folder = tmp_path / str(orientation)
    folder.mkdir()
    save_photo(folder / "phone.jpg", orientation)
    (folder / "export.json").write_text(json.dumps(EXPORTS[name](folder, orientation)))
    own = folder / "phone_jpg.rf.0a1b2c3d.jpg"
    rule = FrameRule("stored" if name in TOLD_BY_SIZE and orientation in (2, 3, 4) else "auto")
    return folder / "export.json", own if own.exists() else folder / "phone.jpg", rule


@pytest.mark.heavy
@pytest.mark.parametrize("command", [describe, caption, convert, evaluate], ids=lambda command: command.__name__)
@pytest.mark.parametrize("name", EXPORTS)
def test_the_annotated_thing_is_looked_at_or_the_file_refused(tmp_path, name, command, processor):
    for orientation in ORIENTATIONS:
        path, photo, rule = export(tmp_path, name, orientation)
        said = REFUSED.get((name, command.__name__))
        if said:
            with pytest.raises(InputError, match=said) as raised:
                command(path, photo, rule, processor)
            assert "\n" not in str(raised.value)
        else:
            found = command(path, photo, rule, processor)
            assert is_red(found), (orientation, found)


@pytest.mark.parametrize("name", [name for name in EXPORTS if (name, "convert") not in REFUSED])
def test_the_check_of_a_converted_export_says_how_each_image_is_read(tmp_path, name, processor):
    for orientation in ORIENTATIONS:
        path, photo, rule = export(tmp_path, name, orientation)
        found = check(path, photo, rule, processor)
        if orientation == 1 or name == "Roboflow":
            assert found == []
        elif name not in STORED:
            assert found == [
                ("frame:image turned upright by its EXIF data", "is turned upright by its EXIF data, with its boxes")
            ]
        elif rule.frame == "stored":
            assert found == [("frame:image read as it is stored", "is read as it is stored, with its boxes")]
        else:
            how = f"is turned or mirrored by its EXIF data (orientation {orientation}), but is read as it is stored"
            assert found == [("sideways", how)]
