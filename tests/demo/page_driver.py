"""A page as a person uses it: draw, type, click, read."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import CDPSession, Page, expect

QUESTION = "#question textarea"
PATIENCE = 300_000  # milliseconds; the machine may be busy

expect.set_options(timeout=PATIENCE)


class Driver:
    """Wraps one browser page; drawing is in shares of the image, 0 to 1."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url.partition("?")[0]
        self._fingers: CDPSession | None = None
        self.complaints: list[str] = []
        self.addresses: list[str] = []
        page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.addresses.append(request.url))
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        page.wait_for_selector(".example")

    def pick(self, number: int) -> None:
        """Clicks an example and waits until the image is there."""
        self.page.locator(".example").nth(number).click()
        self._wait_for_image()

    def upload(self, path: Path) -> None:
        """Chooses a file and waits until the image is there."""
        self.page.set_input_files("#stage input[type=file]", path)
        self._wait_for_image()

    def _wait_for_image(self) -> None:
        self.page.wait_for_selector(".stage.has-image")
        self.page.wait_for_function("document.querySelector('.stage-image').complete")

    def area(self) -> dict:
        """Returns where the image is on the screen."""
        self.page.locator(".stage-image").scroll_into_view_if_needed()
        return self.page.locator(".stage-image").bounding_box()

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the place on the screen of a place in the image."""
        area = self.area()
        return area["x"] + x * area["width"], area["y"] + y * area["height"]

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drags the mouse from place to place on the screen."""
        mouse = self.page.mouse
        mouse.move(*start)
        mouse.down()
        mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, steps=3)
        mouse.move(*end, steps=3)
        mouse.up()

    def draw(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Draws a box with the mouse."""
        before = self.regions()
        self.drag(self.at(x1, y1), self.at(x2, y2))
        self.wait_for_regions(before + 1)

    def touch(self, kind: str, *places: tuple[float, float]) -> None:
        """Tells the browser of fingers at these places on the screen: touchStart, touchMove; of none: touchEnd."""
        self._fingers = self._fingers or self.page.context.new_cdp_session(self.page)
        points = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(places)]
        self._fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def regions(self) -> int:
        """Returns how many boxes are on the image."""
        return self.page.locator(".stage-region").count()

    def wait_for_regions(self, count: int) -> None:
        """Waits until so many boxes are on the image."""
        expect(self.page.locator(".stage-region")).to_have_count(count)

    def chip(self, number: int):
        """Returns the chip of a region under the image."""
        return self.page.locator(".stage-chips .region-chip").nth(number - 1)

    def type(self, text: str) -> None:
        """Types a question."""
        self.page.fill(QUESTION, text)

    def question(self) -> str:
        """Returns what is in the question box."""
        return self.page.input_value(QUESTION)

    def wait_for_question(self, text: str) -> None:
        """Waits until this is in the question box."""
        expect(self.page.locator(QUESTION)).to_have_value(text)

    def ask(self, text: str | None = None) -> str:
        """Asks, waits until the answer is whole, and returns it."""
        rounds = self.page.locator(".round").count()
        if text is not None:
            self.type(text)
        self.page.click("#ask")
        self.wait_for_answers(rounds + 1)
        return self.page.locator(".round .answer").last.inner_text()

    def wait_for_answers(self, count: int) -> None:
        """Waits until there are so many answers, and the next question may be asked."""
        expect(self.page.locator(".round:not(.pending)")).to_have_count(count)
        expect(self.page.locator("#ask")).to_be_enabled()

    def wait_for_names(self) -> None:
        """Waits until no box waits for its name."""
        waiting = self.page.locator(".chip-name", has_text="…")
        while True:
            self.page.wait_for_timeout(300)  # until they were asked for
            expect(waiting).to_have_count(0)
            self.page.wait_for_timeout(700)  # on a busy machine one is asked for later
            if waiting.count() == 0:
                return

    def rename(self, number: int, name: str, key: str = "Enter") -> None:
        """Writes what a box is."""
        self.page.locator(".chip-name").nth(number - 1).click()
        self.page.fill(".chip-input", name)
        self.page.keyboard.press(key)
        expect(self.page.locator(".chip-input")).to_have_count(0)

    def correct(self, number: int, answer: str, key: str = "Enter") -> None:
        """Corrects the answer of a round."""
        self.page.locator(".round .correct").nth(number - 1).click()
        self.page.fill(".correction textarea", answer)
        self.page.keyboard.press(key)
        expect(self.page.locator(".correction")).to_have_count(0)

    def hints(self) -> list[str]:
        """Returns the hints shown, once there are some."""
        self.page.wait_for_selector(".hint")
        return self.page.locator(".hint > span").all_inner_texts()

    def wait_for_hints(self, *texts: str) -> None:
        """Waits until these are the hints."""
        expect(self.page.locator(".hint > span")).to_have_text(texts)

    def set_length(self, tokens: int) -> None:
        """Opens the settings and sets the longest answer."""
        if not self.page.get_by_label("Temperature").first.is_visible():
            self.page.get_by_text("Settings", exact=True).first.click()
        self.page.get_by_label(re.compile("number input for Longest answer")).fill(str(tokens))
        self.page.keyboard.press("Tab")
