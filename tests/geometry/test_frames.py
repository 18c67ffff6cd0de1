"""Frames of boxes: which one a file means, and the way from one to the other."""

import numpy as np
import pytest
from PIL import Image

from gpt4roi.errors import InputError
from gpt4roi.geometry.frames import FrameClues, FrameCounts, FrameRule, ImageHeader, frame_of_exporter
from gpt4roi.processing.images import load_image, read_header

PHONE, MIRRORED, SQUARE = ImageHeader((300, 400), 6), ImageHeader((300, 400), 3), ImageHeader((90, 90), 8)


def place(header, clues, **rule):
    return FrameRule(**rule).place(header, clues, "a.jpg")


@pytest.mark.parametrize(
    ("header", "clues", "rule", "expected"),
    [
        (PHONE, FrameClues((400, 300)), {}, ("upright", False)),
        (PHONE, FrameClues((300, 400)), {}, ("stored", False)),
        (PHONE, FrameClues((300, 400), "upright"), {}, ("upright", False)),  # Label Studio
        (PHONE, FrameClues((300, 400)), {"frame": "upright"}, ("upright", False)),
        (PHONE, FrameClues((400, 300)), {"frame": "stored"}, ("stored", False)),
        (PHONE, FrameClues(), {}, ("upright", True)),
        (PHONE, FrameClues(default="stored"), {}, ("stored", True)),
        (PHONE, FrameClues((400, 300), default="stored"), {}, ("upright", False)),
        (MIRRORED, FrameClues((300, 400)), {}, ("upright", True)),
        (MIRRORED, FrameClues((300, 400), "stored"), {}, ("stored", False)),
        (SQUARE, FrameClues((90, 90)), {}, ("upright", True)),
        (ImageHeader((300, 400)), FrameClues((300, 400)), {}, ("upright", False)),
    ],
)
def test_a_frame_follows_from_switch_file_and_size_in_this_order(header, clues, rule, expected):
    placed = place(header, clues, **rule)
    assert (placed.frame, placed.assumed) == expected
    assert placed.size == header.size_in(expected[0]) and placed.scale == 1
    assert placed.pipeline == ("dialogue" if expected[0] == "stored" or header.orientation == 1 else "detection")


@pytest.mark.parametrize(
    ("clues", "match"),
    [
        (
            FrameClues((600, 800)),
            r"says 800 x 600, image 'a.jpg' is 400 x 300 as stored and 300 x 400 .*factor 0.5;",
        ),
        (FrameClues((500, 500)), r"500 x 500, image .* is 400 x 300 as stored .*; the boxes belong to another image"),
        (FrameClues((400, 300), "stored"), r"says 300 x 400, image 'a.jpg' is 400 x 300 as stored"),
        (FrameClues((10**5000, 3)), r"says 3 x too many, image"),
    ],
)
def test_a_size_of_no_frame_is_refused_with_both_sizes(clues, match):
    with pytest.raises(InputError, match=match) as raised:
        place(PHONE, clues)
    assert raised.value.code == "size_mismatch"


def test_boxes_are_scaled_where_both_sides_differ_by_one_factor_and_the_user_asks():
    boxes = np.asarray([[40.0, 40, 240, 200]])
    placed = place(ImageHeader((300, 400)), FrameClues((600, 800)), scale_boxes=True)
    assert placed.upright(boxes).tolist() == [[20, 20, 120, 100]] and placed.box_size == (600, 800)
    assert place(PHONE, FrameClues((150, 200), "upright"), scale_boxes=True).box_size == (200, 150)  # Label Studio
    assert place(PHONE, FrameClues((267, 200)), scale_boxes=True).scale == 400 / 267  # a rounded size
    with pytest.raises(InputError, match="another image"):
        place(PHONE, FrameClues((500, 500)), scale_boxes=True)
    with pytest.raises(InputError, match="frame must be one of auto, upright, stored, got 'up'"):
        FrameRule("up")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_the_stored_image_are_turned_as_pillow_turns_the_image(tmp_path, orientation):
    stored = np.zeros((30, 40, 3), dtype=np.uint8)
    stored[2:10, 5:12] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    placed = place(read_header(str(tmp_path / "a.png")), FrameClues(frame="stored"))
    upright = np.asarray(load_image(tmp_path / "a.png", "detection"))
    ((x1, y1, x2, y2),) = placed.upright(np.asarray([[5.0, 2, 12, 10]])).astype(int).tolist()
    assert upright[y1:y2, x1:x2].min() == 255 and upright.sum() == 7 * 8 * 3 * 255
    assert placed.header.size_in("upright") == upright.shape[:2]


@pytest.mark.parametrize("orientation", [0, 3, 6, 9])
def test_a_tiff_is_upright_whatever_reads_it(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 30)).save(tmp_path / "a.tif", exif=exif)
    header = read_header(str(tmp_path / "a.tif"))
    assert header.orientation == 1
    for pipeline in ("detection", "dialogue"):
        image = load_image(tmp_path / "a.tif", pipeline)
        assert header.size_read_by(pipeline) == (image.height, image.width)


def test_exporters_whose_sizes_do_not_tell_the_frame_are_known():
    assert frame_of_exporter({"info": {"contributor": "Label Studio"}}) == "upright"
    assert frame_of_exporter({"box_format": "xyxy", "img_width": 4, "img_height": 3}) == "stored"
    assert [frame_of_exporter(one) for one in ({"info": {"contributor": 7}}, {"info": None}, [], {})] == [None] * 4


def test_a_summary_counts_what_was_decided_and_names_the_first():
    counts = FrameCounts()
    for name, header, clues in (("a", PHONE, FrameClues((400, 300))), ("b", PHONE, FrameClues((300, 400))),
                                ("c", SQUARE, FrameClues()), ("d", ImageHeader((9, 9)), FrameClues())):  # fmt: skip
        counts.add(place(header, clues).remarks(), name)
    assert counts.as_dict() == {"upright": 2, "stored": 1, "scaled": 0, "assumed": 1}
    assert counts.text() == (
        "images: 2 turned upright by their EXIF data (such as a), 1 taken as stored (such as b), "
        "1 whose file does not tell which (--frame upright|stored) (such as c)"
    )
    assert FrameCounts().text() == ""
