"""Numbered boxes on an image."""

from types import SimpleNamespace

import numpy as np
from PIL import Image

from gpt4roi.report.drawing import PALETTE, draw_boxes, draw_heatmaps, region_color
from gpt4roi.structures import Regions


def rgb(color: str) -> tuple[int, ...]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def test_each_box_is_outlined_in_its_own_colour_and_the_image_itself_stays_as_it_was():
    image = Image.new("RGB", (200, 160), "white")

    drawn = draw_boxes(image, [[10, 10, 60, 60], [100, 40, 180, 140]])

    assert drawn.getpixel((35, 60)) == rgb(region_color(0))
    assert drawn.getpixel((140, 140)) == rgb(region_color(1))
    assert drawn.getpixel((140, 90)) == (255, 255, 255)
    assert image.getcolors() == [(200 * 160, (255, 255, 255))]


def test_of_a_mask_its_outline_is_drawn_and_of_a_box_beside_it_the_box():
    lower_left = np.tri(28, dtype=np.float32)
    regions = Regions(np.array([[20.0, 20, 160, 160], [170, 20, 190, 60]]), (lower_left, None))

    drawn = draw_boxes(Image.new("RGB", (200, 180), "white"), regions)

    outline, box = rgb(region_color(0)), rgb(region_color(1))
    assert drawn.getpixel((90, 161)) == drawn.getpixel((19, 100)) == outline  # around the shape
    assert any(drawn.getpixel((90 + step, 90 - step)) == outline for step in range(8))  # along the diagonal
    assert drawn.getpixel((60, 120)) == drawn.getpixel((120, 20)) == (255, 255, 255)  # inside, and the box's edge
    assert drawn.getpixel((180, 60)) == box


def test_the_number_of_a_box_at_the_border_stays_inside_the_image():
    drawn = draw_boxes(Image.new("RGB", (120, 120), "white"), [[118, 118, 120, 120]])

    plate = [x for x in range(120) if drawn.getpixel((x, 114)) == rgb(region_color(0))]

    assert min(plate) < 115


def test_images_of_any_mode_can_be_drawn_on():
    for mode in ("L", "RGBA", "P", "1"):
        assert draw_boxes(Image.new(mode, (64, 64)), [[4, 4, 40, 40]]).mode == "RGB"


def test_colours_start_again_after_the_last():
    assert region_color(len(PALETTE)) == region_color(0)
    assert len(set(PALETTE)) == len(PALETTE)


def test_a_heatmap_is_red_where_it_is_highest_and_grey_where_it_counts_nothing():
    heat = SimpleNamespace(values=np.array([[2.0, -1.0]]), x=np.array([0.0, 40, 80]), y=np.array([0.0, 60]))

    drawn = draw_heatmaps(Image.new("RGB", (80, 60), (0, 200, 0)), [], {"occlusion": heat, "again": heat})

    assert drawn.size == (160, 60)
    red, grey = drawn.getpixel((20, 20)), drawn.getpixel((60, 20))
    assert red[0] > 200 > 60 > red[1]
    assert grey[0] == grey[1] == grey[2]
    assert drawn.getpixel((100, 20)) == red
