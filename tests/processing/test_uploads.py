"""Images from the network, within limits."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gpt4roi import InputError
from gpt4roi.processing.uploads import MAX_STORED_SIDE, Limits, file_stem, open_upload
from gpt4roi.report.drawing import jpeg_data_url


def encoded(image: Image.Image, kind: str = "PNG", **more) -> str:
    packed = io.BytesIO()
    image.save(packed, kind, **more)
    return base64.b64encode(packed.getvalue()).decode()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int, more: bytes = b"") -> str:
    """A PNG of a few hundred bytes whose header promises many pixels; more: another chunk."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    packed = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return base64.b64encode(packed).decode()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_the_usual_formats_are_opened_with_and_without_their_prefix(kind):
    text = encoded(Image.new("RGB", (30, 20), "red"), kind)
    for data in (text, f"data:image/{kind.lower()};base64,{text}"):
        upload = open_upload(data)
        assert upload.image.size == upload.own_size == (30, 20) and upload.image.mode == "RGB"


def test_images_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    upload = open_upload(encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif))
    assert upload.own_size == (20, 30)


def test_large_images_are_kept_small_and_remember_their_size():
    upload = open_upload(encoded(Image.new("RGB", (4096, 1024)), "PNG"))
    assert upload.own_size == (4096, 1024)
    assert upload.image.size == (MAX_STORED_SIDE, MAX_STORED_SIDE // 4)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("IMG 1.2 (été).JPG", "IMG 1.2 (été)"),
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\cat.png", "cat"),
        (".hidden", "hidden"),
        ("a\nb\0.png", "ab"),
        ("x" * 500 + ".png", "x" * 120),
        (None, ""),
    ],
)
def test_the_name_of_a_file_loses_its_folders_and_its_extension(name, stem):
    assert file_stem(name) == stem
    assert open_upload(encoded(Image.new("RGB", (3, 2))), name=name).file_name == stem


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no image in the request"),
        (7, "no image in the request"),
        ("", "no image in the request"),
        ("/etc/passwd", "not base64|no image that can be read"),
        ("../../etc/passwd", "not base64"),
        ("file:///etc/passwd", "not base64"),
        ("http://127.0.0.1/x.png", "not base64"),
        ("data:text/html;base64,PGI+", "not base64"),
        (base64.b64encode(b"GIF89a and no more").decode(), "no image|damaged"),
        (base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").decode(), "no image that can"),
        (encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))[:4000], "damaged"),
        (bomb(9_000, 9_000), "9000 x 9000 pixels; at most 40,000,000"),
        (bomb(60_000, 60_000), "too many pixels"),
        (
            base64.b64encode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic").decode(),
            "this is HEIC, which cannot be read here; send",
        ),
        (encoded(Image.new("RGB", (2000, 10))), "sides may differ 20 times"),
        ("A" * 20_000_000, "at most 12 MB"),
    ],
)
def test_what_is_no_image_within_the_limits_is_refused_in_one_line(data, message):
    with pytest.raises(InputError, match=message) as caught:
        open_upload(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_limits_are_the_callers():
    text = encoded(Image.new("RGB", (30, 20)))
    with pytest.raises(InputError, match="at most 500 are taken"):
        open_upload(text, Limits(max_pixels=500))
    with pytest.raises(InputError, match="bytes"):
        open_upload(text, Limits(max_bytes=20))


def test_what_the_browser_shows_is_a_small_jpeg():
    address = jpeg_data_url(Image.new("RGB", (3000, 1500)), max_side=300)
    assert address.startswith("data:image/jpeg;base64,")
    assert open_upload(address).own_size == (300, 150)
