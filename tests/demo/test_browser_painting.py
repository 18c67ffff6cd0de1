"""Regions of any shape in the page: brush, eraser, outline, polygon and point, with mouse, finger and keyboard."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_browser import open_page, save_noise, the_session  # noqa: F401 (open_page is a fixture)

from gpt4roi.geometry.masks import to_pixels

pytestmark = pytest.mark.browser
WIDTH, HEIGHT = 800, 600


@pytest.fixture(scope="module")
def running():
    """A page whose model reads masks."""
    pytest.importorskip("gradio")
    from test_region_masks import sensitive

    from gpt4roi.demo.server import ServerOptions, serve

    served = serve(sensitive("pyramid"), "masks", ServerOptions())
    yield served
    served.close()


@pytest.fixture
def page(open_page, tmp_path):  # noqa: F811
    driver = open_page()
    driver.upload(save_noise(tmp_path / "noise.png", (WIDTH, HEIGHT)))
    return driver


def choose(page, tool: str, size: float | None = None) -> None:
    page.page.check(f".stage-paint input[value={tool}]")
    if size is not None:
        page.page.locator(".brush-size").fill(str(size))


def paint(page, *places: tuple[float, float]) -> None:
    mouse = page.page.mouse
    mouse.move(*page.at(*places[0]))
    mouse.down()
    for place in places[1:]:
        mouse.move(*page.at(*place), steps=4)
    mouse.up()


def covered(mask: dict | None) -> np.ndarray:
    """Which pixels of the image a region covers."""
    return to_pixels(mask, (HEIGHT, WIDTH)) > 0


def test_a_painted_region_is_what_python_gets_and_what_is_saved(page, running, screenshots):
    choose(page, "brush", 5)  # a radius of 40 px
    paint(page, (0.2, 0.5), (0.5, 0.5))
    page.wait_for_regions(1)
    choose(page, "erase")
    paint(page, (0.35, 0.3), (0.35, 0.7))
    choose(page, "outline")
    paint(page, (0.6, 0.2), (0.8, 0.2), (0.8, 0.6))
    page.wait_for_regions(2)
    choose(page, "point")
    paint(page, (0.9, 0.9))
    page.wait_for_regions(3)
    choose(page, "box")
    page.draw(0.05, 0.05, 0.15, 0.15)
    assert page.page.locator(".chip-shape").count() == 3
    page.page.screenshot(path=screenshots / "painted.png")

    page.ask("Is <region1> on <region2>, <region3> or <region4>?")
    session = the_session(running, "Is <region1> on <region2>, <region3> or <region4>?")

    stroke, outline, point = (covered(mask) for mask in session.masks[:3])
    assert session.masks[3] is None
    at = {name: (int(y * HEIGHT), int(x * WIDTH)) for name, x, y in
          (("left", 0.2, 0.5), ("gap", 0.35, 0.5), ("right", 0.5, 0.5), ("beside", 0.2, 0.6))}  # fmt: skip
    assert stroke[at["left"]] and stroke[at["right"]] and not stroke[at["gap"]] and not stroke[at["beside"]]
    assert outline.sum() == pytest.approx(0.5 * 0.2 * WIDTH * 0.4 * HEIGHT, rel=0.05)  # half of the box around it
    assert point.sum() == pytest.approx(np.pi * 40**2, rel=0.1)
    for mask, box in zip((stroke, outline, point), session.boxes_px, strict=False):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(np.subtract(around, box)).max() <= 2  # a pixel of the painted canvas is 1.6 of the image
    assert session._chat.regions.masks[0].mean() < 0.7 and session._chat.regions.masks[3] is None

    with page.page.expect_download() as saved:
        page.page.click("#save-json")
    regions = json.loads(saved.value.path().read_text())["regions"]
    assert [("mask" in region) for region in regions] == [True, True, True, False]
    assert np.array_equal(covered(regions[0]["mask"]), stroke)
    with page.page.expect_download() as saved:
        page.page.click("#save-image")


def test_the_keyboard_places_moves_grows_and_deletes_a_painted_region(page, running):
    page.page.focus(".add-point")
    page.page.keyboard.press("Enter")
    page.wait_for_regions(1)

    for key in ("ArrowRight", "ArrowRight", "+", "+", "-"):
        page.page.keyboard.press(key)
    page.ask("What is <region1>?")
    session = the_session(running, "What is <region1>?")
    shape = covered(session.masks[0])
    rows, columns = np.nonzero(shape)
    assert columns.mean() == pytest.approx(0.4 * WIDTH + 16, abs=3)
    assert rows.mean() == pytest.approx(0.4 * HEIGHT, abs=3)
    assert shape.sum() == pytest.approx(np.pi * (16 + 8) ** 2, rel=0.2)  # a radius of 2 %, grown by 1 % in the end

    page.page.focus(".add-point")
    page.page.keyboard.press("Enter")
    page.wait_for_regions(2)
    page.page.keyboard.press("Delete")
    page.wait_for_regions(1)


def test_a_finger_paints_on_a_phone(open_page, running, tmp_path):  # noqa: F811
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.upload(save_noise(tmp_path / "noise.png", (WIDTH, HEIGHT)))
    choose(page, "brush", 4)
    page.touch("touchStart", page.at(0.3, 0.3))
    for share in (0.4, 0.5, 0.6):
        page.touch("touchMove", page.at(share, share))
    page.touch("touchEnd")
    page.wait_for_regions(1)
    page.ask("What is <region1> there?")
    mask = covered(the_session(running, "What is <region1> there?").masks[0])
    diagonal = [mask[int(share * HEIGHT), int(share * WIDTH)] for share in (0.3, 0.45, 0.6)]
    assert all(diagonal) and not mask[int(0.3 * HEIGHT), int(0.6 * WIDTH)]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert len(columns) == pytest.approx(0.3 * WIDTH + 64, abs=8)
    assert len(rows) == pytest.approx(0.3 * HEIGHT + 64, abs=8)


def click_corners(page, *places: tuple[float, float]) -> None:
    for place in places:
        page.page.mouse.click(*page.at(*place))


def corners_of(mask) -> np.ndarray:
    """The corners of a polygon's mask, in shares of the image."""
    (polygon,) = mask
    return np.reshape(polygon, (-1, 2)) / (WIDTH, HEIGHT)


TRIANGLE = [(0.2, 0.2), (0.6, 0.3), (0.3, 0.7)]


def test_a_polygon_is_clicked_and_stays_a_polygon_in_chips_python_and_what_is_saved(page, running, screenshots):
    choose(page, "polygon")
    click_corners(page, *TRIANGLE[:2])
    page.page.mouse.dblclick(*page.at(*TRIANGLE[2]))
    page.wait_for_regions(1)
    click_corners(page, (0.7, 0.1), (0.9, 0.1))
    page.page.screenshot(path=screenshots / "polygon.png")
    tag = page.page.locator(".stage-region .region-tag").bounding_box()  # amid a polygon a corner like any other
    page.page.mouse.click(tag["x"] + tag["width"] / 2, tag["y"] + tag["height"] / 2)
    page.page.keyboard.press("Backspace")
    click_corners(page, (0.9, 0.4), (0.7, 0.1))  # on the first corner
    page.wait_for_regions(2)
    shapes = page.page.locator(".chip-shape")
    assert [shapes.nth(row).get_attribute("title") for row in (0, 1)] == [
        "Region 1 is a polygon of 3 corners",
        "Region 2 is a polygon of 3 corners",
    ]

    page.page.keyboard.press("ArrowDown")  # moves the second by a hundredth of the longer side
    page.ask("Is <region1> beside <region2>?")
    session = the_session(running, "Is <region1> beside <region2>?")
    assert corners_of(session.masks[0]) == pytest.approx(np.asarray(TRIANGLE), abs=0.004)
    moved = np.add([(0.7, 0.1), (0.9, 0.1), (0.9, 0.4)], (0, WIDTH / HEIGHT / 100))
    assert corners_of(session.masks[1]) == pytest.approx(moved, abs=0.004)
    assert session._chat.regions.masks[0].mean() == pytest.approx(0.475, abs=0.02)  # 0.095 of 0.4 x 0.5 of the image

    with page.page.expect_download() as saved:
        page.page.click("#save-json")
    regions = json.loads(saved.value.path().read_text())["regions"]
    assert [region["mask"] for region in regions] == session.masks
    assert covered(regions[0]["mask"]).sum() == pytest.approx(0.095 * WIDTH * HEIGHT, rel=0.02)
    with page.page.expect_download():
        page.page.click("#save-image")


def test_escape_cancels_a_polygon_and_the_keyboard_alone_draws_one(page, running):
    choose(page, "polygon")
    click_corners(page, *TRIANGLE)
    page.page.keyboard.press("Escape")
    page.page.keyboard.press("Enter")  # nothing to close
    assert page.regions() == 0

    page.page.focus(".stage-frame")
    page.page.keyboard.press(" ")
    for key in ("ArrowRight", "ArrowDown"):
        for _ in range(20):
            page.page.keyboard.press(key)
        page.page.keyboard.press(" ")
    page.page.keyboard.press("Backspace")
    page.page.keyboard.press("Enter")  # two corners are too few
    assert page.regions() == 0
    page.page.keyboard.press(" ")
    page.page.keyboard.press("Enter")
    page.wait_for_regions(1)
    page.ask("Is <region1> a triangle?")
    (mask,) = the_session(running, "Is <region1> a triangle?").masks
    start = np.asarray(corners_of(mask)[0])
    down = 0.2 * WIDTH / HEIGHT
    assert corners_of(mask) - start == pytest.approx(np.asarray([(0, 0), (0.2, 0), (0.2, down)]), abs=1e-3)

    page.page.keyboard.press("Tab")
    choose(page, "brush", 3)
    paint(page, (start[0] + 0.15, start[1] + 0.03), (start[0] + 0.15, start[1] + 0.05))
    page.wait_for_regions(2)  # what was asked about stays: a region of its own


def test_taps_draw_a_polygon_on_a_phone_and_a_brush_makes_it_a_painted_region(open_page, running, tmp_path):  # noqa: F811
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.upload(save_noise(tmp_path / "noise.png", (WIDTH, HEIGHT)))
    choose(page, "polygon")
    for place in (*TRIANGLE, TRIANGLE[-1]):  # the last one twice closes it
        page.touch("touchStart", page.at(*place))
        page.touch("touchEnd")
    page.wait_for_regions(1)
    assert page.page.locator(".chip-shape").get_attribute("title") == "Region 1 is a polygon of 3 corners"
    choose(page, "brush", 4)
    page.touch("touchStart", page.at(0.35, 0.4))
    page.touch("touchMove", page.at(0.8, 0.4))
    page.touch("touchEnd")
    page.ask("What is <region1> here?")
    (mask,) = the_session(running, "What is <region1> here?").masks
    inside = covered(mask)
    assert inside[int(0.4 * HEIGHT), int(0.8 * WIDTH)] and inside[int(0.6 * HEIGHT), int(0.3 * WIDTH)]
