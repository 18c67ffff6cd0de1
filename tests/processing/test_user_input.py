"""Images, boxes and questions as people give them."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from gpt4roi import InputError
from gpt4roi.processing.mentions import number_boxes
from gpt4roi.processing.user_input import (
    clean_question,
    mentioned_regions,
    one_region_question,
    open_image,
    read_regions,
    typed_box,
    validate_boxes_px,
)

SIZE = (64, 96)
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def png() -> bytes:
    packed = io.BytesIO()
    Image.fromarray(PIXELS).save(packed, "PNG")
    return packed.getvalue()


def swollen_text() -> bytes:
    """A chunk of a PNG that unpacks to more text than PIL takes."""
    content = b"zTXt" + b"note\0\0" + zlib.compress(bytes(5_000_000))
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def data_url(data: bytes, head: str = "data:image/png;base64,") -> str:
    return head + base64.b64encode(data).decode()


def mask() -> np.ndarray:
    """True in columns 10 to 29 and rows 20 to 39."""
    inside = np.zeros(SIZE, dtype=bool)
    inside[20:40, 10:30] = True
    return inside


def test_every_form_of_an_image_gives_the_same_pixels(tmp_path):
    (tmp_path / "p.png").write_bytes(png())
    forms = [
        tmp_path / "p.png",
        str(tmp_path / "p.png"),
        png(),
        bytearray(png()),
        data_url(png()),
        data_url(png(), "DATA:image/png;name=p.png;base64,"),
        data_url(png(), "data:;base64,").rstrip("="),
        data_url(png(), "data:application/octet-stream;base64,"),
        "data:image/png;base64," + base64.encodebytes(png()).decode(),
        "data:image/png;base64," + base64.urlsafe_b64encode(png()).decode(),
        png()[:33] + swollen_text() + png()[33:],
        png()[:-12] + swollen_text() + png()[-12:],
        PIXELS,
        Image.fromarray(PIXELS),
    ]

    assert all(np.array_equal(open_image(form), PIXELS) for form in forms)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("data:image/png,abc", "expected an image as data:image/png;base64,"),
        ("data:image/png;base64,@@@", "what follows the comma is not base64"),
        (data_url(b"no image"), "image of 8 bytes is not an image file"),
        (b"", "image of 0 bytes is not an image file"),
        (png()[:60], "cannot be decoded"),
        ("", "the image's path is empty"),
        ("a\0b", "is no path"),
        ("https://example.org/p.png", "addresses are not fetched; download the image"),
        (np.zeros((4, 4, 2), dtype=np.uint8), "must have 3 channels"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "an image array must be uint8"),
        (None, "an image must be a path"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_image_is_refused_in_one_line(image, message):
    with pytest.raises(InputError, match=message) as caught:
        open_image(image)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_name_that_is_too_long_for_a_file_is_no_image():
    with pytest.raises(InputError, match="File name too long"):
        open_image("a" * 300)


class OnAnotherDevice:
    """A tensor on a GPU, as far as a mask is concerned: NumPy reads it only after `.cpu()`."""

    def __init__(self, tensor):
        self.tensor, self.shape = tensor, tensor.shape

    def __array__(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first")

    def __ne__(self, other):
        return OnAnotherDevice(self.tensor != other)

    def detach(self):
        return OnAnotherDevice(self.tensor.detach())

    def cpu(self):
        return self.tensor


@pytest.mark.gpu
def test_a_mask_on_a_gpu_becomes_the_box_around_it():
    assert validate_boxes_px([torch.from_numpy(mask()).cuda()], SIZE).tolist() == [[10, 20, 30, 40]]


@pytest.mark.parametrize(
    "region",
    [
        mask(),
        torch.from_numpy(mask()),
        torch.from_numpy(mask()).to(torch.bfloat16).requires_grad_(),
        OnAnotherDevice(torch.from_numpy(mask())),
        Image.fromarray(mask()),
        {"size": [64, 96], "counts": [10 * 64 + 20, *[20, 44] * 19, 20, 66 * 64 + 24]},
        [[10, 20, 30, 20, 30, 40, 10, 40]],
        [10, 20, 30, 20, 30, 40, 10, 40],
        [[[10, 20], [30, 20], [30, 40], [10, 40]]],
        [[10, 20], [30, 20], [30, 40], [10, 40]],
        [[10, 20, 12, 20, 12, 40], [28, 22, 30, 24, 30, 30]],
        mask()[None],
        mask()[None, ..., None],
        mask().tolist(),
        [mask().astype(int).tolist()],
        np.where(mask(), 0.9, 0.001).astype(np.float32),
        torch.from_numpy(np.where(mask(), 3.5, -8.0)).to(torch.bfloat16),
        mask() * np.uint8(255),
        mask() * 40.5,
    ],
    ids=[
        "array",
        "tensor",
        "bf16 with gradient",
        "on a device",
        "PIL",
        "run lengths",
        "polygon",
        "flat polygon",
        "pairs",
        "flat pairs",
        "two polygons",
        "an axis more",
        "two axes more",
        "nested truth values",
        "nested numbers in an axis",
        "probabilities",
        "logits",
        "0 and 255",
        "0 and a float",
    ],
)
def test_a_mask_becomes_the_box_around_it_and_this_is_said(region, caplog):
    boxes = validate_boxes_px([[1, 2, 3, 4], region], SIZE, first_number=4)

    assert boxes.tolist() == [[1, 2, 3, 4], [10, 20, 30, 40]]
    assert caplog.messages == ["masks became their bounding boxes: region 5: 10,20,30,40"]


def test_a_stack_of_masks_is_a_list_of_masks_told_in_one_line(caplog):
    assert validate_boxes_px(np.stack([mask()] * 7), SIZE).tolist() == [[10, 20, 30, 40]] * 7
    assert len(caplog.messages) == 1 and caplog.messages[0].endswith("region 5: 10,20,30,40; and 2 more")


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[1, 2, 30, 40]] * 10_000, "10000 boxes for one image, expected 1000 at most"),
        ([1, 2, 30, 40], r"got one box 1,2,30,40; write \[\[x1, y1, x2, y2\]\]"),
        ("1,2,30,40", "expected a list of boxes"),
        ({"boxes": []}, "expected a list of boxes"),
        (7, "expected a list of boxes"),
        (["1234"], "box 1: expected four numbers"),
        ([[1, 2, 30, 10**400]], "box 1: expected four numbers"),
        ([[float("inf"), 2, 30, 40]], "box 1: expected finite numbers"),
        ([np.zeros(SIZE)], "the mask is empty: no pixel lies inside of region 1"),
        ([mask()[:, :90]], "the mask of region 1 is 90x64 but the image is 96x64"),
        ([Image.fromarray(mask()[:, :90])], "the mask of region 1 is 90x64 but the image is 96x64"),
        ([{"size": [64, 96], "counts": [3]}], "counts sum to 3"),
        (
            [mask() * 200 + np.uint8(3)],
            "got values from 3 to 203 of region 1; give one of them, for example mask > 103",
        ),
        ([mask() * 2 + np.arange(96) % 2], "got values from 0 to 3 of region 1"),
        ([np.where(mask(), 7.5, 0.5)], "got values from 0.5 to 7.5"),
        ([[20.1, 20.2, 30.3, 40.4, 0.91, 0.0]], r"got 6: .*; a polygon is nested: \[\[x1, y1"),
        ([[[10, 20, 30, 20]]], "a polygon needs three corners or more"),
        ([[[100, 20, 130, 20, 130, 40]]], r"box 1 \(100,20,130,40\): reaches outside the image"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_wrong_regions_are_named(boxes, message):
    with pytest.raises(InputError, match=message) as caught:
        validate_boxes_px(boxes, SIZE)
    assert len(str(caught.value)) < 300


def test_no_boxes_are_no_boxes():
    assert validate_boxes_px(None, SIZE).shape == validate_boxes_px([], SIZE).shape == (0, 4)


def test_short_mentions_are_written_out():
    assert clean_question(" What is <2>, and <>? ") == "What is <region2>, and <bbox>?"


@pytest.mark.parametrize("question", ["What is \udcff?", "\ud83d in <region1>"])
def test_a_question_of_bytes_that_are_no_text_is_refused(question):
    with pytest.raises(InputError, match="not UTF-8 text") as caught:
        clean_question(question)
    assert str(caught.value).isascii()


def test_a_region_of_absurdly_many_digits_is_refused_in_one_short_line():
    for digits in (10, 5000):
        for read in (mentioned_regions, one_region_question, lambda text: number_boxes([text], 2)):
            with pytest.raises(InputError, match=rf"^<region999999999…> has a number of {digits} digits") as caught:
                read(f"What is <region{'9' * digits}>?")
            assert len(str(caught.value)) < 150
    assert mentioned_regions(f"What is <region{'0' * 8}1>?") == [1]


@pytest.mark.parametrize(
    ("question", "numbers"),
    [
        ("What is at [60, 60, 100, 100]?", "60,60,100,100"),
        ("What is at (60.5 60) (100, 100)?", "60.5,60,100,100"),
        ("<box>60 60 100 100</box> What is it?", "60,60,100,100"),
        ("What is <region1>, not [60, 60, 100, 100]?", ""),
        ("Are there 1, 2, 3, 4 or [5] of them?", ""),
    ],
)
def test_four_numbers_typed_in_a_question_without_a_region_are_found(question, numbers):
    assert typed_box(question) == numbers


def test_a_coco_files_regions_are_read_as_training_and_caption_read_them(tmp_path, caplog):
    boxes = [["1", "2", "30", "40"], [0, 0, 0, 0], [-9, 2, 20, 9], [90, 90, 5, 5]]
    annotations = [{"image_id": "7", "bbox": bbox} for bbox in boxes]
    annotations[1]["segmentation"] = [[5, 5, 40, 5, 40, 30]]
    content = {
        "images": [{"id": 7.0, "file_name": "a\\x.jpg", "width": 80, "height": 60}, {"id": 8, "file_name": "y.jpg"}],
        "annotations": annotations,
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    regions = read_regions(tmp_path / "c.json", "pics/x.jpg")
    assert validate_boxes_px(regions, (60, 80)).tolist() == [[1, 2, 31, 42], [5, 5, 40, 30], [0, 2, 11, 11]]
    assert "#2 reaches out of the image" in caplog.text and "#3 is left out" in caplog.text
