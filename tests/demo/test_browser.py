"""The page in a real browser: boxes, answers, mistakes, keyboard, phone."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.browser

WITHIN_PX = 2.0


@pytest.fixture
def open_page(browser, running):
    """Opens pages, each in a context of its own, and looks at the end whether they complained."""
    from page_driver import Driver

    contexts, drivers = [], []

    def open_one(query: str = "", url: str = "", **options) -> Driver:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        drivers.append(Driver(context.new_page(), url or running.url + query))
        return drivers[-1]

    yield open_one
    complaints = [line for driver in drivers for line in driver.complaints]
    strangers = {address for driver in drivers for address in driver.addresses if not _is_own(address, driver.url)}
    for context in contexts:
        context.close()
    assert complaints == []
    assert strangers == set()


def _is_own(address: str, url: str) -> bool:
    return address.startswith((url, "data:", "blob:"))


def the_session(running, question: str):
    """The session that was asked this question."""
    found = [
        session
        for session, *_ in running.store._sessions.values()
        if any(one.question == question for one in session.rounds)
    ]
    assert len(found) == 1, [one.question for session, *_ in running.store._sessions.values() for one in session.rounds]
    return found[0]


def save_noise(path, size: tuple[int, int]):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(path)
    return path


@pytest.mark.parametrize("size", [(2000, 1500), (120, 90)], ids=["larger than shown", "smaller than shown"])
def test_the_boxes_that_python_receives_are_the_drawn_ones(open_page, running, tmp_path, screenshots, size):
    page = open_page()
    page.upload(save_noise(tmp_path / "noise.png", size))
    shown = page.area()
    assert (shown["width"] < size[0]) == (size[0] == 2000)
    shares = [(0.1, 0.15, 0.45, 0.5), (0.9, 0.95, 0.55, 0.3)]  # the second one is drawn upwards
    for share in shares:
        page.draw(*share)
    page.page.screenshot(path=screenshots / f"boxes_{size[0]}.png")

    question = f"Is <region1> like <region2> on {size[0]}?"
    page.ask(question)

    expected = [[0.1, 0.15, 0.45, 0.5], [0.55, 0.3, 0.9, 0.95]] * np.array([*size, *size])
    received = np.array(the_session(running, question).boxes_px)
    a_screen_pixel = size[0] / shown["width"]
    assert np.abs(received - expected).max() <= max(WITHIN_PX, a_screen_pixel)
    print(f"{size}: largest difference {np.abs(received - expected).max():.2f} px of the image")


def test_two_boxes_a_streamed_answer_then_a_third_box_and_old_ones_again(open_page, running, held_model, screenshots):
    page = open_page()
    page.pick(0)
    page.draw(0.1, 0.2, 0.4, 0.6)
    page.draw(0.5, 0.1, 0.9, 0.7)
    page.type("Which is larger,")
    page.chip(1).click()
    page.page.keyboard.type(" or")
    page.chip(2).click()
    page.wait_for_question("Which is larger, <region1> or <region2>")
    page.page.evaluate(
        "window.seen = []; new MutationObserver(() => window.seen.push("
        "document.querySelector('.round:last-child .answer')?.textContent))"
        ".observe(document.querySelector('.conversation'), {childList: true, subtree: true})"
    )

    page.page.click("#ask")
    page.page.wait_for_selector(".round.pending")
    for shown in range(1, 5):  # the model goes on when the page shows what there is so far
        # Token by token: nobody knows how many make a text, or went into the names before the question was there.
        while page.page.evaluate("new Set(window.seen.filter(text => text && text != '…')).size") < shown:
            held_model.release()
            page.page.wait_for_timeout(50)
    held_model.release(10_000)
    page.wait_for_answers(1)

    first = page.page.locator(".round .answer").last.inner_text()
    seen = [text for text in page.page.evaluate("window.seen") if text and text != "…"]
    assert first.startswith(seen[0][:1])
    page.wait_for_question("")
    assert page.page.locator(".round .figure-box").count() == 2
    page.page.screenshot(path=screenshots / "two_boxes.png")

    page.draw(0.3, 0.3, 0.6, 0.9)
    assert page.chip(3).inner_text() == "<region3>" and page.chip(1).inner_text() == "region1"
    page.type("And")
    page.chip(3).click()
    page.page.keyboard.type(" beside")
    page.chip(1).click()
    page.wait_for_question("And <region3> beside region1")
    page.ask()
    page.ask("Why region2?")

    session = the_session(running, "And <region3> beside region1")
    assert [one.regions for one in session.rounds] == [(1, 2), (3,), ()]
    assert page.page.locator(".figure").count() == 2
    assert page.page.locator(".figure").nth(1).locator(".figure-box").count() == 3
    page.page.screenshot(path=screenshots / "three_rounds.png")


def test_a_region_has_one_colour_in_image_chips_and_conversation(open_page):
    page = open_page()
    page.pick(1)
    page.draw(0.1, 0.1, 0.3, 0.3)
    page.draw(0.4, 0.4, 0.8, 0.8)
    page.ask("Is <region2> below <region1>?")

    def colours(selector: str, kind: str) -> list[str]:
        return page.page.locator(selector).evaluate_all(f"all => all.map(one => getComputedStyle(one).{kind})")

    tags = colours(".stage-region .region-tag", "backgroundColor")
    assert len(set(tags)) == 2
    assert colours(".stage-chips .region-chip", "backgroundColor") == tags
    assert colours(".figure .region-tag", "backgroundColor") == tags
    assert colours(".round .question .region-chip", "backgroundColor") == tags[::-1]


def test_boxes_are_moved_resized_and_deleted_and_numbers_follow(open_page, running):
    page = open_page()
    page.pick(1)  # 600 x 400, shown as it is
    page.draw(0.1, 0.1, 0.3, 0.3)
    page.draw(0.5, 0.5, 0.7, 0.7)
    page.draw(0.6, 0.1, 0.9, 0.4)
    page.type("Is <3> above < Region 2 >, not <region1>?")
    page.page.locator(".chip-delete").first.click()
    page.wait_for_regions(2)
    page.wait_for_question("Is <2> above < Region 1 >, not?")
    page.type("Is <region2> above <region1>?")

    page.page.mouse.click(*page.at(0.6, 0.6))  # inside: selected, which shows its dots
    page.drag(page.at(0.6, 0.5), page.at(0.6, 0.6))  # the dot in the middle of its upper edge
    page.drag(page.at(0.7, 0.7), page.at(0.8, 0.9))  # the dot at its corner
    page.page.mouse.click(*page.at(0.02, 0.02))  # outside: nothing is selected now, so there are no dots
    page.drag(page.at(0.6, 0.6), page.at(0.4, 0.6))  # by its upper edge
    page.drag(page.at(0.9, 0.3), page.at(0.95, 0.5))  # the other one by its right edge
    page.page.keyboard.press("Escape")

    page.ask()
    first, second = the_session(running, "Is <region2> above <region1>?").boxes_px
    size = np.array([600, 400, 600, 400])
    assert np.abs(first - np.array([0.3, 0.6, 0.6, 0.9]) * size).max() <= WITHIN_PX
    assert np.abs(second - np.array([0.65, 0.3, 0.95, 0.6]) * size).max() <= WITHIN_PX


def test_a_drag_begun_outside_a_box_or_ending_outside_the_image_stays_in_it(open_page, running):
    page = open_page()
    page.pick(1)
    start, area = page.at(0.5, 0.5), page.area()
    page.drag(start, (area["x"] + area["width"] + 200, area["y"] - 60))
    page.ask("What is at the edge, <region1>?")
    (box,) = the_session(running, "What is at the edge, <region1>?").boxes_px
    assert np.abs(box - np.array([300, 0, 600, 200])).max() <= WITHIN_PX


def test_the_keyboard_alone_is_enough(open_page, running):
    page = open_page()
    keys = page.page.keyboard
    page.page.locator(".example").nth(1).focus()
    keys.press("Enter")
    page._wait_for_image()
    page.page.locator(".add-box").focus()
    keys.press("Enter")
    keys.press("ArrowRight")
    keys.press("Shift+ArrowDown")
    keys.press("Alt+ArrowUp")
    page.page.locator(".add-box").focus()
    keys.press("Enter")
    keys.press("Delete")
    page.wait_for_regions(1)
    page.page.locator(".stage-region").focus()
    keys.press("Enter")
    page.wait_for_question("<region1>")
    keys.type(": what is it?")
    keys.press("Enter")
    page.wait_for_answers(1)
    (box,) = the_session(running, "<region1>: what is it?").boxes_px
    assert box == [186, 119, 366, 245]
    page.page.locator(".stage-region").focus()
    keys.press("Delete")
    page.wait_for_regions(1)
    assert "part of the conversation" in page.page.inner_text(".stage-note")


def test_clear_all_clears_and_start_over_keeps_the_image(open_page, running):
    page = open_page()
    page.pick(0)
    page.draw(0.1, 0.2, 0.4, 0.6)
    page.ask("What will be cleared, <region1>?")
    session = the_session(running, "What will be cleared, <region1>?")

    page.page.click("#start-over")
    page.page.wait_for_selector(".round", state="detached")
    page.wait_for_regions(0)
    assert page.page.locator(".stage.has-image").count() == 1
    assert session.rounds == [] and session.image is not None

    page.draw(0.1, 0.2, 0.4, 0.6)
    page.type("half a question")
    page.page.click("#clear-all")
    page.page.wait_for_selector(".stage:not(.has-image)")
    page.wait_for_regions(0)
    page.wait_for_question("")
    page.page.wait_for_selector(".figure", state="detached")
    assert session.image is None and session.boxes_px == []
    page.page.wait_for_selector(".stage-chips > *", state="detached")


def test_an_answer_that_does_not_stop_is_said_in_place_by_every_button(open_page, running, monkeypatch):
    from gpt4roi import InputError
    from gpt4roi.demo.session import Session

    page = open_page()
    page.pick(0)
    page.draw(0.1, 0.2, 0.4, 0.6)
    page.ask("What stays here, <region1>?")

    def refuse(session, *_):
        raise InputError(f"the answer of {session.rounds[0].question} does not stop")

    for button, name in (("#start-over", "start_over"), ("#clear-all", "clear")):
        with monkeypatch.context() as patch:
            patch.setattr(Session, name, refuse)
            page.page.click(button)
            page.page.wait_for_selector(".hint:has-text('The answer of What stays here, <region1>? does not stop')")
            assert page.page.locator(".round").count() == 1 and page.page.locator("#ask").is_enabled()
        page.page.click("#ask")  # brings another hint
        page.page.wait_for_selector(".hint:has-text('Ask something, for example')")
    page.page.click("#start-over")
    page.page.wait_for_selector(".round", state="detached")
    page.page.wait_for_selector(".hint", state="detached")


def test_each_mistake_is_a_hint_in_place_and_nothing_typed_is_lost(open_page, running, screenshots):
    page = open_page()
    page.type("What is this?")
    page.page.click("#ask")
    page.wait_for_hints("There is no image yet. Choose one of your own, or click an example.")
    assert page.question() == "What is this?"

    page.pick(1)
    assert page.question() == "What is this?"
    page.draw(0.2, 0.2, 0.6, 0.6)
    page.type("")
    page.page.click("#ask")
    page.wait_for_hints("Ask something, for example: What is <region1>?")
    page.page.click(".hint-fix")
    page.wait_for_question("What is <region1>?")

    page.type("What is <region2>?")
    page.page.click("#ask")
    page.page.wait_for_selector("text=Draw a box for <region2>")
    page.wait_for_question("What is <region2>?")
    page.page.screenshot(path=screenshots / "hint.png")

    page.draw(0.7, 0.2, 0.9, 0.6)
    page.type("What is here?")
    page.page.click("#ask")
    page.page.wait_for_selector("text=<region1> and <region2> are drawn, but the question does not mention them.")
    page.page.click(".hint-fix")
    page.wait_for_question("What is here <region1> <region2>?")
    page.type("What is here, without a box?")
    page.page.click("#ask")
    page.page.wait_for_selector("text=Add them")
    page.page.click(".hint-force")
    page.wait_for_answers(1)
    assert the_session(running, "What is here, without a box?").boxes_px == []
    assert page.regions() == 2  # the boxes stay to be asked about
    page.page.wait_for_selector(".hint", state="detached")


def test_a_question_about_one_of_several_boxes_is_answered_at_once(open_page, running):
    page = open_page()
    page.pick(1)
    page.draw(0.2, 0.2, 0.6, 0.6)
    page.draw(0.7, 0.2, 0.9, 0.6)
    page.ask("What is <region1> alone?")
    assert len(the_session(running, "What is <region1> alone?").boxes_px) == 1
    assert page.chip(1).inner_text() == "region1" and page.chip(2).inner_text() == "<region2>"
    page.ask("And <region2>, at once too?")
    assert [one.regions for one in the_session(running, "And <region2>, at once too?").rounds] == [(1,), (2,)]


def test_a_hint_fixes_the_text_as_they_are_when_it_is_clicked(open_page):
    page = open_page()
    page.pick(1)
    page.draw(0.1, 0.1, 0.3, 0.3)
    page.draw(0.4, 0.1, 0.6, 0.3)
    page.type("Is region 1 left of region2, not of region 12?")
    page.page.click("#ask")
    assert len(page.hints()) == 2
    # By their labels: a late update of the hints may show again the one that was clicked first.
    for region in ("<region1>", "<region2>"):
        page.page.locator(".hint-fix", has_text=f"Write {region}").click()
    page.wait_for_question("Is <region1> left of <region2>, not of region 12?")

    page.type("Is anything here?")
    page.page.click("#ask")
    page.page.wait_for_selector(".hint:has-text('<region1> and <region2> are drawn')")
    page.type("Is anything in <region1> that is not elsewhere?")
    page.page.click(".hint-fix")
    page.wait_for_question("Is anything in <region1> that is not elsewhere <region2>?")

    page.type(" ")
    page.page.click("#ask")
    page.page.wait_for_selector(".hint:has-text('Ask something')")
    page.type("Is it <region1>, <region2>?")
    page.page.click(".hint-fix")
    page.wait_for_question("Is it <region1>, <region2>?")


def test_markup_in_a_question_is_shown_and_not_obeyed(open_page, running):
    page = open_page()
    page.pick(1)
    page.draw(0.2, 0.2, 0.6, 0.6)
    page.ask("<img src=x onerror='window.hurt = 1'><b>What</b> is <region1>?")
    asked = page.page.locator(".round .question").last
    assert asked.inner_text() == "<img src=x onerror='window.hurt = 1'><b>What</b> is region1?"
    assert asked.locator("img, b").count() == 0
    assert page.page.evaluate("window.hurt") is None


def test_a_conversation_that_expired_says_so_and_a_new_one_begins(open_page, running):
    page = open_page()
    page.pick(1)
    page.draw(0.2, 0.2, 0.6, 0.6)
    page.ask("What will expire, <region1>?")
    kept = the_session(running, "What will expire, <region1>?")
    (key,) = [key for key, (session, *_) in running.store._sessions.items() if session is kept]
    for button in ("#save-json", "#save-image", "#start-over", "#ask"):
        running.store.drop(key)
        page.type("And now?")
        page.page.click(button)
        page.page.wait_for_selector(".hint:has-text('expired because it was idle')")
        assert page.page.locator(".round").count() == 1 and page.regions() == 1
        assert page.question() == "And now?"
        page.page.evaluate("document.querySelector('.hint').remove()")
    page.page.click("#ask")
    page.hints()
    page.pick(0)
    page.page.wait_for_selector(".hint", state="detached")
    page.ask()
    assert page.page.locator(".round").count() == 1


def test_a_file_that_is_no_image_or_too_large_is_said_so_on_the_image(open_page, tmp_path):
    page = open_page()
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "words.png").write_text("words")
    save_noise(tmp_path / "wide.png", (3000, 2000))
    (tmp_path / "large.png").write_bytes(bytes(3 * 2**20))
    for name, said in [
        ("words.txt", "“words.txt” is not an image."),
        ("large.png", "“large.png” has 3.0 MB; at most 2.0 are taken."),
        ("words.png", "This is no image that can be read"),
        ("wide.png", "The image has 3000 x 2000 pixels; at most 4,000,000 are taken"),
    ]:
        page.page.set_input_files("#stage input[type=file]", tmp_path / name)
        page.page.wait_for_selector(f".stage-note.wrong:has-text('{said}')")
    page.pick(0)
    page.page.wait_for_function("document.querySelector('.stage-note').textContent === ''")


@pytest.mark.usefixtures("slow_model")
def test_an_answer_is_stopped_and_the_question_comes_back(open_page, running):
    page = open_page()
    page.pick(0)
    page.set_length(1000)
    page.type("Tell a long story.")
    page.page.click("#ask")
    page.page.wait_for_selector(".round.pending")
    page.page.wait_for_function("document.querySelector('.round .answer').textContent.length > 3")
    page.page.click("#stop")
    page.page.wait_for_selector(".round", state="detached")
    page.wait_for_question("Tell a long story.")
    page.set_length(5)
    page.ask()
    assert len(the_session(running, "Tell a long story.").rounds) == 1


@pytest.mark.usefixtures("slow_model")
def test_what_is_drawn_while_an_answer_is_written_stays_when_it_is_whole_or_stopped(open_page, running, pausable_model):
    page = open_page()
    page.pick(1)
    page.draw(0.1, 0.1, 0.3, 0.3)
    page.draw(0.1, 0.5, 0.3, 0.7)
    page.type("What is <region1>, not <region2>, while others are drawn?")
    page.set_length(5)
    pausable_model.clear()
    page.page.click("#ask")
    page.page.wait_for_selector(".round.pending")
    page.page.locator(".chip-delete").first.click()  # too late: it is asked about
    page.draw(0.4, 0.1, 0.6, 0.3)
    page.page.mouse.move(*page.at(0.7, 0.1))
    page.page.mouse.down()
    page.page.mouse.move(*page.at(0.75, 0.2), steps=3)
    pausable_model.set()
    page.page.wait_for_selector(".round:not(.pending)")
    page.page.wait_for_selector(".stage-chips .region-chip:text-is('region2')")
    page.page.mouse.move(*page.at(0.9, 0.3), steps=3)
    page.page.mouse.up()
    labels = page.page.locator(".stage-chips .region-chip").all_inner_texts()
    assert labels == ["region1", "region2", "<region3>", "<region4>"]

    page.type("And <region3> beside <region4>?")
    page.set_length(1000)
    page.page.click("#ask")
    page.page.wait_for_selector(".round.pending")
    page.draw(0.4, 0.6, 0.6, 0.8)
    page.page.click("#stop")
    page.page.wait_for_selector(".round.pending", state="detached")
    assert page.regions() == 5
    page.set_length(5)
    page.ask("And <region3>, <region4>, <region5> beside each other?")
    session = the_session(running, "And <region3>, <region4>, <region5> beside each other?")
    corners = np.array([(0.1, 0.1), (0.1, 0.5), (0.4, 0.1), (0.7, 0.1), (0.4, 0.6)])  # of boxes of one size
    drawn = np.concatenate([corners, corners + 0.2], axis=1) * [600, 400, 600, 400]
    assert np.abs(np.array(session.boxes_px) - drawn).max() <= WITHIN_PX


@pytest.mark.usefixtures("slow_model")
def test_another_image_waits_for_no_answer_and_of_several_the_last_one_stays(open_page, running):
    page = open_page()
    page.pick(0)
    page.draw(0.1, 0.1, 0.5, 0.5)
    page.set_length(1000)
    page.type("What is <region1>, as long as there is time?")
    page.page.click("#ask")
    page.page.wait_for_selector(".round.pending")
    for number in (2, 3, 1):
        page.page.locator(".example").nth(number).click()
    page.page.wait_for_function("document.querySelector('.stage-image').naturalWidth === 600")
    page.page.wait_for_selector(".round", state="detached")
    page.wait_for_regions(0)
    page.wait_for_question("What is <region1>, as long as there is time?")

    page.draw(0.6, 0.6, 0.9, 0.9)
    page.set_length(5)
    page.ask()
    assert the_session(running, "What is <region1>, as long as there is time?").size == (600, 400)
    page.pick(0)
    page.page.wait_for_selector(".round", state="detached")
    page.wait_for_question("")


def test_a_question_during_an_answer_is_told_to_wait_and_stays(open_page, running, pausable_model):
    page = open_page()
    page.pick(0)
    page.set_length(5)
    page.type("Which one is first?")
    pausable_model.clear()
    page.page.click("#ask")
    for _ in range(1200):
        if any(session.answering for session, *_ in running.store._sessions.values()):
            break
        time.sleep(0.05)
    page.wait_for_question("")  # the page takes the first one out of the box
    page.type("Which one is second?")
    page.page.keyboard.press("Enter")
    page.page.wait_for_selector(".hint:has-text('An answer is still being written; wait for it, or stop it')")
    pausable_model.set()
    page.page.wait_for_selector(".round:not(.pending)")
    page.page.wait_for_selector(".hint", state="detached")
    page.wait_for_question("Which one is second?")
    page.ask()
    session = the_session(running, "Which one is second?")
    assert [one.question for one in session.rounds] == ["Which one is first?", "Which one is second?"]


def test_a_question_that_finds_the_queue_full_can_be_asked_again(open_page, running, monkeypatch):
    page = open_page()
    page.pick(0)
    page.set_length(5)
    page.type("Is there room for one more?")
    with monkeypatch.context() as patch:
        patch.setattr(running.page._queue, "max_size", 0)
        page.page.click("#ask")
        page.page.wait_for_selector("text=currently busy")
        page.page.wait_for_selector("#ask:not([disabled])")
    page.wait_for_question("Is there room for one more?")
    assert len(page.complaints) == 1 and "503" in page.complaints.pop()
    page.ask()
    assert len(the_session(running, "Is there room for one more?").rounds) == 1


@pytest.mark.usefixtures("slow_model")
def test_who_waits_sees_the_place_in_the_queue_and_nothing_of_the_others(open_page, running, screenshots, monkeypatch):
    queue = running.page._queue.event_queue_per_concurrency_id["questions"]
    monkeypatch.setattr(queue, "concurrency_limit", 1)
    first, second = open_page(), open_page()
    for page in (first, second):
        page.pick(0)
    first.draw(0.1, 0.1, 0.5, 0.5)
    first.set_length(1000)
    first.type("What is <region1>, at length?")
    first.page.click("#ask")
    first.page.wait_for_selector(".round.pending")
    second.type("And for me?")
    second.page.click("#ask")
    second.page.wait_for_selector("#queue-place :text('queue: 1')")
    second.page.screenshot(path=screenshots / "queue.png")
    assert second.regions() == 0 and second.page.locator(".round:not(.pending)").count() == 0
    second.set_length(5)  # for the question after this one: what was asked keeps its settings
    first.page.click("#stop")
    second.page.wait_for_selector(".round.pending")
    second.page.click("#stop")
    second.page.wait_for_selector(".round", state="detached")
    second.ask()
    assert second.page.locator(".round").count() == 1


def test_a_page_that_is_closed_frees_its_session(open_page, running, monkeypatch):
    page = open_page()
    page.pick(0)
    page.ask("Who will be forgotten?")
    the_session(running, "Who will be forgotten?")
    kept = set(running.page.state_holder.session_data)
    monkeypatch.setattr(running.store, "grace_seconds", 0)
    page.page.close()
    for _ in range(6000):
        running.store.sweep()
        asked = [one.question for session, *_ in running.store._sessions.values() for one in session.rounds]
        if "Who will be forgotten?" not in asked:
            break
        time.sleep(0.1)
    assert "Who will be forgotten?" not in asked
    assert kept - set(running.page.state_holder.session_data)


PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


def test_on_a_phone_one_draws_with_a_finger_and_nothing_is_wider_than_the_screen(open_page, running, screenshots):
    page = open_page(**PHONE)
    page.page.locator(".example").nth(1).tap()
    page._wait_for_image()
    page.touch("touchStart", page.at(0.2, 0.2))
    for step in range(1, 6):
        page.touch("touchMove", page.at(0.2 + 0.1 * step, 0.2 + 0.12 * step))
    page.touch("touchEnd")
    page.wait_for_regions(1)
    page.page.wait_for_timeout(500)  # sooner, the next touch would be half of a double tap
    for _ in range(5):  # a browser that is kept waiting takes a tap for a long press, which is none
        page.chip(1).tap()
        page.page.wait_for_timeout(500)
        if page.question():
            break
    page.wait_for_question("<region1>")
    page.page.keyboard.type(", by finger?")
    page.page.screenshot(path=screenshots / "phone_asking.png")
    page.page.locator("#ask").tap()
    page.wait_for_answers(1)
    (box,) = the_session(running, "<region1>, by finger?").boxes_px
    a_screen_pixel = 600 / page.area()["width"]
    assert np.abs(box - np.array([0.2, 0.2, 0.7, 0.8]) * [600, 400, 600, 400]).max() <= max(2, a_screen_pixel)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 390
    page.page.screenshot(path=screenshots / "phone.png", full_page=True)


def test_two_fingers_magnify_the_image_and_draw_nothing(open_page):
    page = open_page(**PHONE)
    page.page.locator(".example").nth(1).tap()
    page._wait_for_image()
    x, y = page.at(0.5, 0.5)
    page.touch("touchStart", (x - 20, y))
    page.touch("touchMove", (x - 24, y))
    page.touch("touchStart", (x - 24, y), (x + 20, y + 30))
    for step in range(1, 9):
        page.touch("touchMove", (x - 24 - 10 * step, y - 5 * step), (x + 20 + 10 * step, y + 30 + 5 * step))
    page.touch("touchEnd")
    page.page.wait_for_function("window.visualViewport.scale > 1.5")
    assert page.regions() == 0


def test_in_the_dark_words_are_light(open_page, screenshots):
    page = open_page("?__theme=dark")
    page.pick(2)
    page.draw(0.3, 0.2, 0.7, 0.6)
    page.ask("Who is <region1>, in the dark?")
    for selector in (".round .answer", ".stage-help", ".round .question"):
        light = page.page.locator(selector).first.evaluate(
            "node => getComputedStyle(node).color.match(/\\d+/g).slice(0, 3).map(Number)"
        )
        assert sum(light) / 3 > 140, selector
    page.page.screenshot(path=screenshots / "dark.png")


def test_what_is_drawn_is_saved_under_the_name_of_the_photograph(open_page, tmp_path):
    page = open_page()
    page.upload(save_noise(tmp_path / "my cup.png", (600, 400)))
    page.draw(0.2, 0.2, 0.6, 0.6)
    page.ask("What is drawn first, <region1>?")
    page.draw(0.5, 0.5, 0.75, 0.75)
    with page.page.expect_download() as waiting:
        page.page.click("#save-json")
    assert waiting.value.suggested_filename == "my cup.json"
    record = json.loads(waiting.value.path().read_text(encoding="utf-8"))
    boxes = np.array([one["box"] for one in record["regions"]])
    assert np.abs(boxes - [[120, 80, 360, 240], [300, 200, 450, 300]]).max() <= WITHIN_PX
    assert record["rounds"][0]["new_regions"] == [1]
    with page.page.expect_download() as waiting:
        page.page.click("#save-image")
    assert waiting.value.suggested_filename == "my cup-conversation.png"


def names_by_itself(tiny_chat, size: tuple[int, int], boxes) -> list[str]:
    """The tiny model's answers about boxes, in shares, of the second example, as the page shows them."""
    from gpt4roi.demo.examples import shipped_examples
    from gpt4roi.demo.naming import ENDS, MAX_NEW_TOKENS

    drawn = np.round(np.array(boxes) * np.array([*size, *size]), 2)
    return tiny_chat.describe(shipped_examples()["coffee"].open(), drawn, max_new_tokens=MAX_NEW_TOKENS, stop=ENDS)


def drawn_boxes(page) -> list[list[float]]:
    """The boxes on the page, in shares of the image."""
    return page.page.locator(".stage-region").evaluate_all(
        "all => all.map(({style}) => [parseFloat(style.left), parseFloat(style.top), parseFloat(style.left) + "
        "parseFloat(style.width), parseFloat(style.top) + parseFloat(style.height)].map(share => share / 100))"
    )


def test_a_box_is_named_as_it_is_drawn_and_again_where_it_is_moved(open_page, tiny_chat, screenshots):
    page = open_page()
    page.pick(1)
    page.draw(0.1, 0.1, 0.3, 0.3)
    page.draw(0.5, 0.5, 0.7, 0.7)
    page.draw(0.6, 0.1, 0.9, 0.4)

    def wait_for_names() -> list[str]:
        page.wait_for_names()
        said = names_by_itself(tiny_chat, (600, 400), drawn_boxes(page))
        shown = page.page.locator(".chip-name").all_text_contents()
        assert [text.split() for text in shown] == [(text.strip() or "✎").split() for text in said]
        return shown

    first = wait_for_names()
    assert len(set(first)) == 3
    page.page.screenshot(path=screenshots / "names.png")
    page.page.locator(".chip-delete").first.click()
    page.wait_for_regions(2)
    assert page.page.locator(".chip-name").all_text_contents() == first[1:]
    page.page.mouse.click(*page.at(0.02, 0.02))
    page.drag(page.at(0.6, 0.5), page.at(0.3, 0.6))
    assert page.page.locator(".chip-name").first.text_content() != first[1]
    assert wait_for_names()[1] == first[2]


def test_a_question_is_answered_before_the_names_of_boxes(open_page, running, held_model):
    from gpt4roi.demo.naming import MAX_NEW_TOKENS

    page = open_page()
    page.pick(1)
    page.set_length(8)
    page.draw(0.1, 0.1, 0.3, 0.3)
    page.page.wait_for_selector(".chip-name:text-is('…')")
    page.type("What is <region1>, before it is named?")
    page.page.click("#ask")
    page.page.wait_for_selector(".round.pending")
    # All of the answer, and what the name takes until the question is there: fewer than it needs to be complete.
    held_model.release(MAX_NEW_TOKENS - 1)
    page.wait_for_answers(1)
    assert page.page.locator(".chip-name").text_content() == "…"
    held_model.release(10_000)
    page.wait_for_names()
    assert page.page.locator(".chip-name").text_content() != "✎"
    assert len(the_session(running, "What is <region1>, before it is named?").rounds) == 1


def test_naming_is_switched_off_and_stays_off(open_page, running):
    page = open_page()
    page.pick(1)
    page.page.get_by_label("Name boxes as they are drawn").uncheck()
    page.draw(0.1, 0.1, 0.3, 0.3)
    page.ask("What is <region1>, unnamed?")
    assert page.page.locator(".chip-name").all_inner_texts() == ["✎"]
    page.page.reload()
    page.page.wait_for_selector(".example")
    page.pick(1)
    assert not page.page.get_by_label("Name boxes as they are drawn").is_checked()
    page.draw(0.1, 0.1, 0.3, 0.3)
    page.page.get_by_label("Name boxes as they are drawn").check()
    page.wait_for_names()
    assert page.page.locator(".chip-name").text_content() != "✎"


def test_a_server_that_names_no_boxes_offers_no_switch_and_takes_names_from_the_user(open_page, tiny_chat):
    from gpt4roi.demo.server import ServerOptions, serve

    silent = serve(tiny_chat, "silent", ServerOptions(name_boxes=False))
    try:
        page = open_page(url=silent.url)
        page.pick(1)
        page.draw(0.1, 0.1, 0.3, 0.3)
        assert not page.page.get_by_label("Name boxes as they are drawn").is_visible()
        page.ask("What is <region1>?")
        page.rename(1, "a cup")
        assert page.page.locator(".chip-name").all_inner_texts() == ["a cup"]
    finally:
        silent.close()


def test_a_corrected_name_stays_with_its_box_and_becomes_the_training_text(open_page, tmp_path):
    from gpt4roi.cli import main

    page = open_page()
    page.upload(save_noise(tmp_path / "cup.png", (600, 400)))
    page.draw(0.1, 0.1, 0.3, 0.3)
    page.draw(0.5, 0.5, 0.7, 0.7)
    page.wait_for_names()
    page.rename(2, "nothing that", key="Escape")
    assert page.page.locator(".chip-name.corrected").count() == 0
    page.rename(2, "a blue cup <b>")
    page.page.mouse.click(*page.at(0.02, 0.02))
    page.drag(page.at(0.6, 0.5), page.at(0.6, 0.6))
    page.wait_for_names()
    assert page.page.locator(".chip-name.corrected").all_inner_texts() == ["a blue cup <b>"]
    page.rename(1, "")  # and no name: not to be trained on
    with page.page.expect_download() as waiting:
        page.page.click("#save-json")
    (tmp_path / "saved").mkdir()
    waiting.value.save_as(tmp_path / "saved" / waiting.value.suggested_filename)
    arguments = ["data", "convert", tmp_path / "saved", tmp_path / "train.jsonl", "--from", "page"]
    assert main([*map(str, arguments), "--img-prefix", str(tmp_path)]) == 0
    (line,) = (tmp_path / "train.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert [turn["value"] for turn in entry["conversations"]] == ["What is <region1>?", "a blue cup <b>"]
    assert np.abs(np.array(entry["boxes"]) - [[300, 240, 420, 320]]).max() <= WITHIN_PX and entry["image"] == "cup.png"


def test_an_answer_is_corrected_in_the_page_and_the_corrected_one_is_trained_on(open_page, running, tmp_path):
    from playwright.sync_api import expect

    from gpt4roi.cli import main

    page = open_page()
    page.upload(save_noise(tmp_path / "cup.png", (600, 400)))
    page.draw(0.1, 0.1, 0.3, 0.3)
    said = page.ask("What is wrong with <region1>?")
    page.correct(1, "nothing", key="Escape")
    assert page.page.locator(".round .answer").inner_text() == said
    page.correct(1, "<b>its</b> handle")
    expect(page.page.locator(".round .answer")).to_have_text("<b>its</b> handle")
    expect(page.page.locator(".round .correct")).to_have_text("✎ corrected")
    page.correct(1, " ")
    page.wait_for_hints("The corrected answer is empty; write one, or leave the answer as it is")
    page.ask("And region1 now?")
    session = the_session(running, "And region1 now?")
    assert session.rounds[0].answer == session._chat.turns[1].text == "<b>its</b> handle"

    with page.page.expect_download() as waiting:
        page.page.click("#save-json")
    waiting.value.save_as(tmp_path / "saved" / "cup.json")
    arguments = ["data", "convert", tmp_path / "saved", tmp_path / "train.jsonl", "--from", "page"]
    assert main([*map(str, arguments), "--img-prefix", str(tmp_path)]) == 0
    conversation = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])["conversations"]
    assert [turn["value"] for turn in conversation][:3] == [
        "What is wrong with <region1>?", "<b>its</b> handle", "And region1 now?"]  # fmt: skip


def test_an_example_of_a_file_comes_with_its_boxes_named_and_the_model_s_limits_are_said(
    open_page, tiny_chat, tmp_path, screenshots
):
    from gpt4roi.demo.examples import read_examples
    from gpt4roi.demo.server import ServerOptions, serve

    save_noise(tmp_path / "my cup.png", (600, 400))
    entry = {"image": "my cup.png", "title": "two cups", "boxes": [[60, 40, 180, 120], [300, 200, 450, 300]]}
    (tmp_path / "examples.json").write_text(json.dumps([entry]))
    limits = "It names <cups>. It cannot read."
    served = serve(tiny_chat, "cups", ServerOptions(examples=read_examples(tmp_path), limitations=limits))
    try:
        page = open_page(url=served.url, **PHONE)
        assert page.page.get_by_text(limits).is_visible()
        page.page.locator(".example").tap()
        page._wait_for_image()
        page.wait_for_regions(2)
        page.wait_for_names()
        said = tiny_chat.describe(tmp_path / "my cup.png", entry["boxes"], max_new_tokens=32, stop=("\n", ". "))
        shown = page.page.locator(".chip-name").all_text_contents()
        assert [text.split() for text in shown] == [(text.strip() or "✎").split() for text in said]
        assert page.page.evaluate("document.documentElement.scrollWidth") <= 390
        page.rename(2, "a cup that has quite a long name, which is longer than the screen of a phone is wide")
        assert page.page.evaluate("document.documentElement.scrollWidth") <= 390
        page.page.screenshot(path=screenshots / "phone_names.png", full_page=True)
        page.page.locator(".chip-delete").first.tap()
        page.wait_for_regions(1)
    finally:
        served.close()


def test_the_conversation_is_saved_as_json_and_as_an_image(open_page, tmp_path):
    page = open_page()
    page.page.click("#save-json")
    assert "There is no image yet" in page.hints()[0]
    page.pick(1)
    page.draw(0.2, 0.2, 0.6, 0.6)
    said = page.ask("What is saved of <region1>?")
    with page.page.expect_download() as waiting:
        page.page.click("#save-json")
    record = json.loads(waiting.value.path().read_text(encoding="utf-8"))
    assert record["picture"] == {"width": 600, "height": 400} and len(record["regions"]) == 1
    assert record["rounds"][0]["question"] == "What is saved of <region1>?"
    assert record["rounds"][0]["answer"].split() == said.split()
    with page.page.expect_download() as waiting:
        page.page.click("#save-image")
    with Image.open(waiting.value.path()) as sheet:
        assert sheet.format == "PNG" and sheet.width == 960


def test_where_the_last_answer_looked_is_shown_below_until_the_conversation_ends(open_page):
    page = open_page()
    page.page.click("#explain")
    assert "There is no image yet" in page.hints()[0]
    page.pick(1)
    page.draw(0.2, 0.2, 0.6, 0.6)
    page.ask("What is seen in <region1>?")
    page.page.click("#explain")
    shown = page.page.locator("#explained img")
    shown.wait_for()
    assert "What is seen in <region1>?" in shown.get_attribute("alt")
    page.page.click("#start-over")
    shown.wait_for(state="detached")
