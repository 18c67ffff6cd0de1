"""Images: both pipelines, EXIF rotation, augmentation, and files that are no usable image."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin, features

from gpt4roi.errors import InputError
from gpt4roi.geometry.boxes import boxes_in_frame
from gpt4roi.processing.images import load_image, read_header, to_pixel_values
from gpt4roi.structures import Augmentation

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def grey_ramp(height, width):
    """An image whose grey level is twenty times the column."""
    return Image.fromarray(np.tile(np.arange(width, dtype=np.uint8)[None, :, None] * 20, (height, 1, 3)))


def test_bilinear_samples_between_pixel_centres():
    values = to_pixel_values(grey_ramp(4, 4), "detection", 8, **PLAIN)[0, 0] * 255
    # output centres lie at -0.25, 0.25, 0.75, ... input pixels; the border repeats
    np.testing.assert_allclose(values, [0, 5, 15, 25, 35, 45, 55, 60], atol=1e-4)


def test_bilinear_takes_only_the_nearest_pixels_when_it_shrinks():
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[:, 0] = 255  # lies outside every pair of pixels that is looked at
    assert to_pixel_values(Image.fromarray(image), "detection", 2, **PLAIN).max() == 0
    assert to_pixel_values(Image.fromarray(image), "dialogue", 2, **PLAIN).max() > 0.1


def test_bicubic_of_the_right_size_leaves_the_image_as_it_is():
    values = to_pixel_values(grey_ramp(4, 4), "dialogue", 4, **PLAIN)[0, 0] * 255
    np.testing.assert_allclose(values, [0, 20, 40, 60], atol=1e-4)


def test_pixel_values_are_normalised_per_channel():
    image = Image.new("RGB", (3, 5), (255, 0, 51))
    values = to_pixel_values(image, "detection", 2, mean=(0.5, 0.25, 0.1), std=(0.5, 0.25, 0.1))
    np.testing.assert_allclose(values[:, 0, 0], [1, -1, 1], atol=1e-6)


@pytest.mark.parametrize("pipeline", ["detection", "dialogue"])
def test_uncovered_pixels_of_a_shift_are_black_before_normalisation(pipeline):
    image = Image.new("RGB", (8, 8), (255, 255, 255))
    values = to_pixel_values(image, pipeline, 8, (0.5,) * 3, (0.5,) * 3, Augmentation(shift=(3, -2)))
    assert (values[:, :6, 3:] == 1).all()
    assert (values[:, 6:] == -1).all() and (values[:, :, :3] == -1).all()


def test_a_shift_beyond_the_image_leaves_it_black():
    image = Image.new("RGB", (8, 8), (255, 255, 255))
    assert to_pixel_values(image, "detection", 8, **PLAIN, augmentation=Augmentation(shift=(-9, 0))).max() == 0


def test_boxes_are_scaled_per_axis_shifted_then_flipped():
    boxes = np.array([[10, 5, 50, 25]])
    moved = boxes_in_frame(boxes, (50, 100), "detection", 200, Augmentation((30, -30), flip=True))
    np.testing.assert_allclose(moved, [[70, 0, 150, 70]])


def test_an_image_taken_sideways_is_turned_only_in_the_bilinear_pipeline(tmp_path):
    image = np.zeros((20, 40, 3), dtype=np.uint8)
    image[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    path = tmp_path / "sideways.jpg"
    Image.fromarray(image).save(path, exif=exif, quality=100)
    shown, stored = load_image(path, "detection"), load_image(path, "dialogue")
    assert (shown.size, stored.size) == ((20, 40), (40, 20))
    assert np.asarray(shown)[:19].min() > 200 and np.asarray(shown)[21:].max() < 50
    turned = to_pixel_values(shown, "detection", 8, **PLAIN)
    assert turned[:, :3].min() > 0.7 and turned[:, 5:].max() < 0.2


@pytest.mark.parametrize(
    ("mode", "expected"), [("L", 77), ("RGBA", 77), ("P", 77), ("LA", 77), ("I;16", 77), ("CMYK", 77)]
)
def test_images_of_every_mode_open_as_rgb(mode, expected, tmp_path):
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    if mode == "I;16":
        Image.fromarray(np.full((4, 4), 77 * 256 + 3, dtype=np.uint16)).save(path)
    else:
        Image.new("RGB", (4, 4), (77, 77, 77)).convert(mode, palette=Image.Palette.ADAPTIVE).save(path)
    opened = load_image(path)
    assert opened.mode == "RGB"
    assert abs(int(np.asarray(opened)[0, 0, 0]) - expected) <= 1


def save_grey(path, dtype, value):
    Image.fromarray(np.full((4, 4), value, dtype=dtype)).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "dtype", "value", "expected"),
    [
        ("16 bits.png", np.uint16, 77 * 256 + 200, 77),
        ("16 bits.tif", np.uint16, 77 * 256 + 200, 77),
        ("dark 16 bits.png", np.uint16, 300, 1),
        ("16 bits that hold 8.png", np.uint16, 77, 77),
        ("32 bits that hold 16.tif", np.int32, 77 * 256, 77),
        ("32 bits that hold 8.tif", np.int32, 77, 77),
        ("floats to 1.tif", np.float32, 0.5, 128),
        ("floats to 255.tif", np.float32, 77.2, 77),
    ],
)
def test_greys_of_more_than_eight_bits_keep_their_brightness(name, dtype, value, expected, tmp_path):
    assert load_image(save_grey(tmp_path / name, dtype, value)).getpixel((1, 1)) == (expected,) * 3


def test_jpegs_in_cmyk_and_images_with_a_palette_keep_their_colours(tmp_path):
    orange = Image.new("RGB", (16, 16), (230, 120, 20))
    orange.convert("CMYK").save(tmp_path / "print.jpg", quality=100)
    orange.quantize(8).save(tmp_path / "palette.png")
    orange.quantize(8).save(tmp_path / "palette.gif")
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_allclose(load_image(path).getpixel((8, 8)), (230, 120, 20), atol=3, err_msg=path.name)


@pytest.mark.heavy
@pytest.mark.parametrize("pipeline", ["detection", "dialogue"])
@pytest.mark.parametrize("size", [(1, 1), (1, 150), (30_000, 160), (160, 30_000)])
def test_images_of_one_pixel_and_of_thirty_thousand_are_loaded(size, pipeline, tmp_path):
    Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "odd.png")
    image = load_image(tmp_path / "odd.png", pipeline)
    assert image.size == size
    values = to_pixel_values(image, pipeline, 8, **PLAIN) * 255
    np.testing.assert_allclose(values[:, 4, 4], (10, 200, 30), atol=1)


@pytest.mark.heavy
def test_damaged_files_of_every_kind_are_loaded_or_refused_in_one_line(tmp_path):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
    refused = 0
    for kind in ("jpg", "png", "gif", "bmp", "tif", "webp"):
        path = tmp_path / f"damaged.{kind}"
        image.save(path)
        whole = path.read_bytes()
        for number in range(50):
            broken = bytearray(whole)
            for place in rng.integers(0, min(len(whole), 200 if number % 2 else len(whole)), 6):
                broken[place] = rng.integers(256)
            path.write_bytes(broken[: rng.integers(1, len(broken))] if number % 5 == 0 else broken)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    assert load_image(path, "detection").mode == "RGB"
            except InputError as error:
                assert str(path) in str(error)
                refused += 1
    assert refused > 60


def test_grey_arrays_are_taken():
    assert load_image(np.full((4, 6), 9, dtype=np.uint8)).getpixel((0, 0)) == (9, 9, 9)


def logo(colour=(0, 0, 0)):
    """A black square on a transparent ground whose hidden colour is black as well."""
    image = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    image.paste((*colour, 255), (10, 10, 30, 20))
    return image


def png(depth, kind, row, *chunks):
    """A PNG of one row of two pixels, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", 2, 1, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "P", "array"])
def test_what_is_transparent_is_white_unless_the_original_is_followed(mode):
    image = np.asarray(logo()) if mode == "array" else logo().quantize(8) if mode == "P" else logo().convert(mode)
    shown = load_image(image)
    assert (shown.mode, shown.getpixel((1, 1)), shown.getpixel((20, 15))) == ("RGB", (255, 255, 255), (0, 0, 0))
    assert load_image(image, ignore_alpha=True).getpixel((1, 1)) == (0, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "TGA"])
def test_files_with_an_alpha_channel_are_shown_on_white(kind, tmp_path):
    logo((200, 20, 20)).save(tmp_path / "logo", kind, **({"lossless": True} if kind == "WEBP" else {}))
    for pipeline in ("detection", "dialogue"):
        shown = load_image(tmp_path / "logo", pipeline)
        assert shown.getpixel((1, 1)) == (255, 255, 255) and shown.getpixel((20, 15)) == (200, 20, 20)


def test_libtiff_writes_nothing_to_the_terminal(tmp_path, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.tif", compression="tiff_deflate")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[500:540] = b"\xff" * 40
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(InputError, match="cannot be decoded"):
        load_image(tmp_path / "a.tif")
    assert capfd.readouterr().err == ""


def test_half_transparent_pixels_are_mixed_and_opaque_ones_stay_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[0, 0] = (0, 100, 200, 51)
    shown = np.asarray(load_image(pixels))
    assert shown[0, 0].tolist() == [204, 224, 244] and (shown[1:] == pixels[1:, :, :3]).all()


@pytest.mark.parametrize(
    ("depth", "kind", "row", "key", "opaque"),
    [
        (1, 0, b"\x40", b"\0\0", 255),
        (2, 0, b"\x60", b"\0\1", 170),
        (4, 0, b"\x2f", b"\0\2", 255),
        (8, 0, b"\x12\x80", b"\0\x12", 128),
        (16, 0, b"\x12\x34\x80\0", b"\x12\x34", 128),
        (8, 2, b"\1\2\3\4\4\4", b"\0\1\0\2\0\3", 4),
        (16, 2, b"\1\0\2\0\3\0\4\0\4\0\4\0", b"\1\0\2\0\3\0", 4),
    ],
)
def test_the_transparent_colour_of_a_png_is_white_at_every_depth(depth, kind, row, key, opaque):
    shown = load_image(png(depth, kind, row, (b"tRNS", key)))
    assert shown.getpixel((0, 0)) == (255,) * 3 and shown.getpixel((1, 0)) == (opaque,) * 3


def phone_jpeg(exif):
    """A JPEG, red at the left as stored, with EXIF data as bytes."""
    image = Image.new("RGB", (80, 40), "blue")
    image.paste("red", (0, 0, 40, 40))
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=95)
    whole, segment = packed.getvalue(), b"Exif\0\0" + exif
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + whole[2:]


SIDEWAYS = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
BAD_RATIONAL = b"II*\0" + struct.pack("<IH", 8, 2) + SIDEWAYS + struct.pack("<HHIIIii", 0x9204, 10, 1, 38, 0, -1, 0)


@pytest.mark.parametrize("exif", [BAD_RATIONAL, BAD_RATIONAL[:-4], BAD_RATIONAL[:24]], ids=["rational", "cut", "short"])
def test_a_photograph_with_damaged_exif_data_is_turned_upright(exif, tmp_path):
    (tmp_path / "phone.jpg").write_bytes(phone_jpeg(exif))
    shown = load_image(tmp_path / "phone.jpg", "detection")
    assert shown.size == (40, 80) and shown.getpixel((20, 10))[0] > 200 and shown.getpixel((20, 70))[2] > 200


@pytest.mark.parametrize("exif", [BAD_RATIONAL[:8], b"II*\0\xff\xff\xff\xff", b"nothing"])
def test_exif_data_that_tell_no_orientation_leave_the_photograph_as_stored(exif):
    assert load_image(phone_jpeg(exif), "detection").size == (80, 40)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_every_orientation_is_turned_as_pillow_turns_it(ending, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / f"o.{ending}", exif=exif)
        expected = ImageOps.exif_transpose(Image.open(tmp_path / f"o.{ending}")).convert("RGB")
        np.testing.assert_array_equal(load_image(tmp_path / f"o.{ending}", "detection"), expected)


def large_text(compress):
    """Several MB of text, as a chunk of a PNG."""
    return (
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2**21)) if compress else (b"tEXt", b"Comment\0" + b"x" * 2**26)
    )


@pytest.mark.heavy
@pytest.mark.parametrize(
    "chunk",
    [
        large_text(compress=True),
        large_text(compress=False),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * 2**21)),
        (b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**22))),
    ],
    ids=["zTXt", "tEXt", "iTXt", "iCCP"],
)
def test_a_png_with_megabytes_of_text_or_profile_opens_without_unpacking_them(chunk, tmp_path):
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    (tmp_path / "text.png").write_bytes(png(8, 2, b"\1\1\1\4\4\4", chunk))
    assert load_image(tmp_path / "text.png", "detection").getpixel((1, 0)) == (4, 4, 4)
    assert read_header(str(tmp_path / "text.png"))
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_a_text_of_a_png_that_tells_its_orientation_is_read():
    turned = b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="6"/>'
    assert load_image(png(8, 2, b"\1\1\1\4\4\4", (b"iTXt", turned)), "detection").size == (1, 2)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize(("largest", "expected"), [(1023, 128), (3000, 94), (4095, 128), (16383, 128), (65535, 128)])
def test_greys_whose_values_fill_ten_to_fourteen_bits_are_not_black(kind, largest, expected, tmp_path):
    grey = np.full((4, 4), largest // 2, dtype=kind)
    grey[0, 0] = largest
    Image.fromarray(grey).save(tmp_path / "grey.tif")
    assert abs(load_image(tmp_path / "grey.tif").getpixel((2, 2))[0] - expected) <= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is HEIC, which cannot be read; save it as JPEG or PNG first"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "is HEIC, which"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "is AVIF, which cannot be read; save it as JPEG or PNG first, or"),
        (b"\0\0\0\x18ftypisom", "is a video, which"),
        (b"\xff\x0a12", "is JPEG XL, which"),
        (b'<?xml version="1.0"?>\n<svg>', "is SVG, which"),
        (b"<!DOCTYPE html><title>404", "is a web page, which cannot be read; download the image itself"),
        (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS"),
    ],
)  # fmt: skip
def test_files_that_pillow_does_not_read_are_named_by_their_first_bytes(content, message, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(content)
    for form in (tmp_path / "photo.jpg", content):
        with pytest.raises(InputError, match=message):
            load_image(form)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_opens_where_pillow_reads_it(tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "photo.jpg", "AVIF")
    assert load_image(tmp_path / "photo.jpg").getpixel((8, 8))[0] > 240


def test_warnings_of_pillow_do_not_reach_the_terminal(tmp_path):
    logo().quantize(8).convert("P").save(tmp_path / "palette.png", transparency=bytes(8))
    (tmp_path / "apng.png").write_bytes(png(8, 2, b"\1\1\1\4\4\4", (b"acTL", bytes(8))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("palette.png", "apng.png"):
            load_image(tmp_path / name), load_image(tmp_path / name, ignore_alpha=True)


def png_header(width, height):
    """The beginning of a PNG that claims a size."""
    data = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(data)) + b"IHDR" + data + struct.pack(">I", zlib.crc32(b"IHDR" + data))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 100) + b"IDAT"


def whole_jpeg(tmp_path):
    path = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


BROKEN = {
    "an empty file": (lambda tmp: b"", "is not an image file that can be read"),
    "a text file": (lambda tmp: b"once upon a time", "is not an image file that can be read"),
    "half an image": (lambda tmp: whole_jpeg(tmp)[:2000], "cannot be decoded"),
    "a bomb": (lambda tmp: png_header(60000, 60000), "is too large to open"),
    "a ribbon": (lambda tmp: png_header(60000, 2), "its sides may differ 200 times at most"),
    "a header alone": (lambda tmp: png_header(20, 20), "cannot be decoded"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_usable_image_is_refused_by_name(name, tmp_path):
    content, message = BROKEN[name]
    path = tmp_path / "broken.jpg"
    path.write_bytes(content(tmp_path))
    with warnings.catch_warnings(), pytest.raises(InputError) as caught:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        load_image(path, where=" in d.json#7")
    assert message in str(caught.value)
    assert "broken.jpg" in str(caught.value) and "in d.json#7" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_or_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot be decoded.*Is a directory"):
        load_image(tmp_path)
    with pytest.raises(InputError, match=r"gone\.png' not found; check the path"):
        load_image(tmp_path / "gone.png")


def test_what_is_no_image_at_all_is_refused():
    with pytest.raises(InputError, match="must be a path, a PIL image or a uint8 array, got int"):
        load_image(7)
    with pytest.raises(InputError, match=r"must be uint8 \[H, W, 3\], got float32 \[2, 2, 3\]"):
        load_image(np.zeros((2, 2, 3), dtype=np.float32))
    with pytest.raises(InputError, match=r"must have 3 channels \(RGB\), got 2"):
        load_image(np.zeros((2, 2, 2), dtype=np.uint8))
    with pytest.raises(InputError, match=r"got uint8 \[0, 2, 3\]"):
        load_image(np.zeros((0, 2, 3), dtype=np.uint8))
