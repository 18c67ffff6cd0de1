"""Records the images of the page that the README shows, from the real page in a real browser.

    python scripts/record_page.py --model exp/quickstart/stage2 [--out figs]

Serves the page, draws with the mouse on photographs that scikit-image carries, asks, and writes demo1.gif (one
region), demo2.gif (several regions), fig1.png (several rounds) and parts.png (the parts of the page, numbered); with a
model that reads masks, only masks.jpg: a brushed region, where its answer looked, a polygon and one being clicked.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw
from playwright.sync_api import Page, sync_playwright

SIZE = {"width": 1120, "height": 720}
GIF_WIDTH = 800
COLORS = 200
POINTER = ((0, 0), (0, 17), (4, 13), (7, 20), (10, 19), (7, 12), (12, 12))

Box = tuple[float, float, float, float]


class Recorder:
    """Does what a person does, slowly, and keeps a frame after every step."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.frames: list[tuple[Image.Image, int]] = []
        self.pointer = (560.0, 560.0)
        page.goto(url)
        page.wait_for_selector(".example")
        page.add_style_tag(content="footer { display: none !important; }")

    def keep(self, milliseconds: int) -> None:
        """Keeps what the page shows now, for so long."""
        packed = io.BytesIO(self.page.screenshot())
        frame = Image.open(packed).convert("RGB")
        shape = [(self.pointer[0] + x, self.pointer[1] + y) for x, y in POINTER]
        ImageDraw.Draw(frame).polygon(shape, fill="black", outline="white")
        self.frames.append((frame, milliseconds))

    def go_to(self, x: float, y: float) -> None:
        """Moves the mouse."""
        self.page.mouse.move(x, y)
        self.pointer = (x, y)

    def click(self, selector: str, number: int = 0) -> None:
        """Moves the mouse to the middle of a part of the page and clicks."""
        part = self.page.locator(selector).nth(number)
        part.scroll_into_view_if_needed()
        area = part.bounding_box()
        self.go_to(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)
        self.keep(250)
        self.page.mouse.click(*self.pointer)

    def pick(self, title: str) -> None:
        """Chooses an example."""
        self.keep(700)
        self.click(f'.example[title*="{title}"]')
        self.page.wait_for_selector(".stage.has-image")
        self.page.wait_for_function("document.querySelector('.stage-image').complete")
        area = None
        while area != (area := self.page.locator(".stage-image").bounding_box()):  # until the page stands still
            self.page.wait_for_timeout(500)
        self.keep(600)

    def draw(self, box: Box) -> None:
        """Draws a box, in shares of the image."""
        area = self.page.locator(".stage-image").bounding_box()
        x1, y1, x2, y2 = box
        mouse = self.page.mouse
        self.go_to(area["x"] + x1 * area["width"], area["y"] + y1 * area["height"])
        mouse.down()
        for step in (0.25, 0.5, 0.75, 1.0):
            x, y = x1 + step * (x2 - x1), y1 + step * (y2 - y1)
            self.go_to(area["x"] + x * area["width"], area["y"] + y * area["height"])
            self.keep(140)
        mouse.up()
        self.keep(400)
        self.page.wait_for_timeout(300)  # until a name is asked for
        self.page.wait_for_function(
            "![...document.querySelectorAll('.chip-name')].some(one => one.textContent === '…')"
        )
        self.keep(700)

    def tool(self, name: str) -> None:
        """Chooses what is drawn."""
        self.page.check(f".stage-paint input[value={name}]")

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the place on the screen of a place in the image, in shares."""
        area = self.page.locator(".stage-image").bounding_box()
        return area["x"] + x * area["width"], area["y"] + y * area["height"]

    def type(self, question: str) -> None:
        """Types a question; each <regionN> is put in by a click on its chip."""
        self.page.focus("#question textarea")
        for word in question.split():
            if word.startswith(("<region", "region")):
                number = int("".join(letter for letter in word if letter.isdigit()))
                self.click(".stage-chips .region-chip", number - 1)
                self.page.keyboard.type("".join(letter for letter in word if letter in ",?"))
            else:
                if self.page.input_value("#question textarea"):
                    self.page.keyboard.type(" ")
                self.page.keyboard.type(word)
            self.keep(160)

    def ask(self) -> str:
        """Asks and keeps the answer as it grows."""
        rounds = self.page.locator(".round:not(.pending)").count()
        self.click("#ask")
        while self.page.locator(".round:not(.pending)").count() <= rounds:
            self.keep(120)
        self.page.wait_for_timeout(600)
        self.keep(1800)
        return self.page.locator(".round .answer").last.inner_text()

    def save_gif(self, path: Path) -> None:
        """Writes the frames as a GIF; equal ones become one that stays longer."""
        kept: list[tuple[Image.Image, int]] = []
        for frame, milliseconds in self.frames:
            small = frame.resize((GIF_WIDTH, round(frame.height * GIF_WIDTH / frame.width)), Image.Resampling.LANCZOS)
            if kept and kept[-1][0].tobytes() == small.tobytes():
                kept[-1] = (small, kept[-1][1] + milliseconds)
            else:
                kept.append((small, milliseconds))
        palette = kept[-1][0].quantize(COLORS, dither=Image.Dither.NONE)
        images = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame, _ in kept]
        durations = [milliseconds for _, milliseconds in kept]
        images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True)


def one_region(page: Recorder) -> str:
    """Asks about one box."""
    page.pick("cat")
    page.draw((0.02, 0.01, 0.86, 0.99))
    page.type("What is <region1>?")
    return page.ask()


def several_regions(page: Recorder) -> str:
    """Asks about two boxes at once: a motorcycle and its front wheel."""
    page.pick("motorcycle")
    page.draw((0.16, 0.14, 0.93, 0.93))
    page.draw((0.675, 0.52, 0.918, 0.91))
    page.type("Which is larger, <region1> or <region2>?")
    return page.ask()


def several_rounds(page: Recorder) -> str:
    """Asks about old boxes and a new one: a motorcycle, the door behind it and the shelf beside that."""
    page.pick("motorcycle")
    page.draw((0.16, 0.14, 0.93, 0.93))
    page.draw((0.27, 0.0, 0.405, 0.3))
    page.type("What is <region2>?")
    first = page.ask()
    page.draw((0.78, 0.18, 0.99, 0.5))
    page.type("Is <region3> left of region2?")
    return f"{first}; {page.ask()}"


PARTS = (".stage-image", ".stage-chips", ".stage-tools", ".example", "#question", "#ask", "#start-over", "#save-json")
"""The parts of the page, in the order of their numbers on docs/demo.md."""


def parts(page: Recorder) -> str:
    """Draws two boxes, types a question and puts a number on each part of the page; asks nothing."""
    page.pick("cat")
    page.draw((0.02, 0.01, 0.86, 0.99))
    page.draw((0.3, 0.28, 0.48, 0.5))
    page.type("Is <region1> above <region2>?")
    for number, selector in enumerate(PARTS, start=1):
        area = page.page.locator(selector).first.bounding_box()
        page.page.evaluate(
            """([x, y, number]) => {
                const mark = document.createElement("div");
                mark.textContent = number;
                mark.style = `position:absolute; left:${x}px; top:${y}px; width:26px; height:26px; z-index:9999;
                    border-radius:50%; background:#111; color:#fff; font:bold 15px/26px sans-serif; text-align:center`;
                document.body.append(mark);
            }""",
            [max(area["x"] - 30, 2), area["y"] - 6, number],
        )
    return "numbers"


BRUSHED = ((0.52, 0.80), (0.57, 0.86), (0.63, 0.80), (0.58, 0.80))
CLICKED = ((0.66, 0.47), (0.70, 0.37), (0.79, 0.35), (0.83, 0.45), (0.78, 0.55), (0.70, 0.56))
OTHER_EYE = ((0.31, 0.35), (0.36, 0.28), (0.44, 0.33), (0.47, 0.46))
"""The nose and the eyes of the cat, in shares of the image."""


def masks(page: Recorder) -> str:
    """Paints a nose, asks, shows where the answer looked, and clicks a polygon around an eye and half of another."""
    page.pick("cat")
    page.tool("brush")
    page.page.mouse.move(*page.at(*BRUSHED[0]))
    page.page.mouse.down()
    for place in BRUSHED[1:]:
        page.page.mouse.move(*page.at(*place), steps=6)
    page.page.mouse.up()
    page.type("What is <region1>?")
    said = page.ask()
    page.click("#explain")
    page.page.wait_for_selector("#explained img", timeout=600_000)
    page.page.locator(".stage-image").scroll_into_view_if_needed()
    page.tool("polygon")
    for place in (*CLICKED, CLICKED[-1], *OTHER_EYE):
        page.page.mouse.click(*page.at(*place))
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="exp/quickstart/stage2", metavar="DIR")
    parser.add_argument("--only", metavar="NAME", help="record one of the files, such as parts.png")
    parser.add_argument("--out", type=Path, default=Path("figs"), metavar="DIR")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    from gpt4roi import RegionChat
    from gpt4roi.demo.server import ServerOptions, serve
    from gpt4roi.models.model_card import limitations

    options = ServerOptions(limitations=limitations(Path(args.model)))
    chat = RegionChat.from_pretrained(args.model)
    running = serve(chat, Path(args.model).name, options)
    plays: dict[str, Callable[[Recorder], str]] = {
        "demo1.gif": one_region,
        "demo2.gif": several_regions,
        "fig1.png": several_rounds,
        "parts.png": parts,
    }
    if chat.processor.region_shape == "mask":
        plays = {"masks.jpg": masks}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, play in plays.items():
            if args.only not in (None, name):
                continue
            recorder = Recorder(browser.new_page(viewport=SIZE), running.url)
            said = play(recorder)
            path = args.out / name
            if path.suffix == ".gif":
                recorder.save_gif(path)
            else:
                recorder.page.add_style_tag(content=".conversation { max-height: none !important; }")
                recorder.page.screenshot(path=path, full_page=True)
            sys.stdout.write(f"{path}: {path.stat().st_size / 2**20:.2f} MB; said: {said}\n")
            recorder.page.close()
        browser.close()
    running.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
