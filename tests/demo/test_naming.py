"""Names of boxes: the model's answer about each, cancelled with its box, and never before a question."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from gpt4roi import InputError
from gpt4roi.demo.hints import IncompleteQuestionError
from gpt4roi.demo.naming import ENDS, MAX_NEW_TOKENS
from gpt4roi.demo.session import Session
from gpt4roi.generation.sampling import SamplingParams
from gpt4roi.processing.uploads import scaled

BOXES = [(5.0, 5.0, 40.0, 30.0), (30.0, 10.0, 90.0, 60.0), (50.0, 2.0, 70.0, 62.0)]


def image(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((96, 64), Image.Resampling.NEAREST)


@pytest.fixture
def session(worker):
    made = Session(worker)
    made.show(scaled(image()))
    return made


@pytest.fixture
def before_each_token(worker):
    """A list of functions; the model calls the first one, and forgets it, before each token that it computes."""
    calls: list = []

    def call(*_) -> None:
        if calls:
            calls.pop(0)()

    hook = worker._decoder.model.register_forward_pre_hook(call)
    yield calls
    hook.remove()


def wait_until(condition: Callable[[], object]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise TimeoutError


def names_by_itself(chat, seed: int = 0) -> list[str]:
    """The model's answers about the boxes, each asked about alone."""
    said = chat.describe(image(seed), BOXES, max_new_tokens=MAX_NEW_TOKENS, stop=ENDS)
    return [name.strip() for name in said]


@pytest.mark.heavy
def test_each_box_is_named_as_the_model_answers_about_it_alone(tiny_chat, session):
    session.want_names(session.image_id, BOXES[:2], 1)
    assert [len(session.names.known) for _ in session.names.compute()] == [1, 2]
    session.want_names(session.image_id, [list(box) for box in (BOXES[2], BOXES[0])], 2)
    assert len(list(session.names.compute())) == 1  # the other one has its name already
    expected = dict(zip(BOXES, names_by_itself(tiny_chat), strict=True))
    assert len(set(expected.values())) == 3
    assert session.names.known == [(BOXES[2], expected[BOXES[2]]), (BOXES[0], expected[BOXES[0]])]
    assert session.rounds == [] and session.boxes_px == []


def test_a_box_that_is_moved_or_deleted_meanwhile_gets_no_name_and_the_next_one_its_own(
    tiny_chat, session, before_each_token
):
    moved = (6.0, 5.0, 41.0, 30.0)
    before_each_token += [lambda: None, lambda: session.want_names(session.image_id, [moved, BOXES[1]], 2)]
    session.want_names(session.image_id, BOXES[:2], 1)
    list(session.names.compute())
    (said,) = tiny_chat.describe(image(), [moved], max_new_tokens=MAX_NEW_TOKENS, stop=ENDS)
    assert session.names.known == [(moved, said.strip()), (BOXES[1], names_by_itself(tiny_chat)[1])]


@pytest.mark.heavy
def test_no_name_of_one_image_lands_on_another(tiny_chat, worker, session, before_each_token):
    def show_another() -> None:
        session.show(scaled(image(1)))
        session.want_names(session.image_id, BOXES[:1], 2)

    showing = threading.Thread(target=show_another)

    def begin_to_show() -> None:  # the image is encoded by the worker, before its next step
        showing.start()
        wait_until(lambda: worker._jobs)

    before_each_token += [lambda: None, begin_to_show, lambda: showing.join(60)]
    session.want_names(session.image_id, BOXES[:1], 1)
    list(session.names.compute())
    assert session.names.known == [(BOXES[0], names_by_itself(tiny_chat, seed=1)[0])]
    assert names_by_itself(tiny_chat)[0] != names_by_itself(tiny_chat, seed=1)[0]
    session.start_over()
    assert session.names.known == [] and list(session.names.compute()) == []


def test_a_name_waits_from_one_token_to_the_next_while_a_question_is_answered(
    tiny_chat, worker, session, before_each_token
):
    other, order = Session(worker), []
    other.show(scaled(image(1)))

    def ask() -> None:
        list(other.ask("What is this?", sampling=SamplingParams(max_new_tokens=8)))
        order.append("answer")

    def ask_and_wait() -> None:
        asking.start()
        wait_until(lambda: worker.num_waiting)

    asking = threading.Thread(target=ask)
    tokens = worker.counts["generated_tokens"]
    before_each_token += [lambda: None, ask_and_wait]
    before_each_token += [lambda: None] * 8 + [lambda: order.append(worker.counts["generated_tokens"] - tokens)]
    session.want_names(session.image_id, BOXES[:1], 1)
    for _ in session.names.compute():
        order.append("name")
    asking.join(60)
    # Two steps of the name, all of the answer, and then the rest of the name.
    assert sorted(order, key=str) == [10, "answer", "name"] and order[-1] == "name"
    assert session.names.known == [(BOXES[0], names_by_itself(tiny_chat)[0])]


def test_a_name_that_waits_for_a_question_is_given_up_with_its_box(worker, session):
    other = Session(worker)
    other.show(scaled(image(1)))
    answer = other.ask("What is this?", sampling=SamplingParams(max_new_tokens=3000))
    next(answer)
    session.want_names(session.image_id, BOXES[:1], 1)
    naming = threading.Thread(target=lambda: list(session.names.compute()))
    naming.start()
    wait_until(lambda: worker.num_waiting)
    session.want_names(session.image_id, [], 2)
    naming.join(60)
    assert not naming.is_alive() and session.names.known == []
    assert worker.num_running == 1, "the question is still being answered"
    answer.close()


def test_a_request_that_comes_late_does_not_bring_back_a_deleted_box(session):
    session.want_names(session.image_id, BOXES[1:2], 5)
    session.want_names(session.image_id, BOXES[:2], 4)
    list(session.names.compute())
    assert [box for box, _ in session.names.known] == [BOXES[1]]


def test_a_box_that_cannot_be_named_is_tried_once(session, monkeypatch, caplog):
    monkeypatch.setattr(session._worker.model.language_model.config, "max_position_embeddings", 8)
    session.want_names(session.image_id, BOXES[:1], 1)
    assert len(list(session.names.compute())) == 1
    assert session.names.known == [(BOXES[0], "")]
    assert "a box could not be named: " in caplog.text


@pytest.mark.parametrize(
    ("boxes", "order", "message"),
    [
        ([[0, 0, 500, 500]], 1, "reaches outside"),
        ("boxes", 1, "boxes are a list"),
        ([[1, 2, 3]], 1, "box"),
        ([[1, 2, 3, 4]] * 51, 1, "at most 50 boxes"),
        ([[1, 2, 30, 40]], "1", "is a whole number, got '1'"),
    ],
)
def test_wrong_requests_are_refused(session, boxes, order, message):
    with pytest.raises(InputError, match=message):
        session.want_names(session.image_id, boxes, order)
    assert session.names.known == [] and list(session.names.compute()) == []


def test_a_request_about_an_image_that_is_gone_says_so(session):
    with pytest.raises(IncompleteQuestionError, match="expired"):
        session.want_names("another", BOXES, 1)


def test_a_record_has_the_names_and_says_which_are_the_users(session):
    list(session.ask("What is <region1>?", BOXES[:1], SamplingParams(max_new_tokens=2)))
    names = {BOXES[0]: ("a cup", True), BOXES[1]: ("a spoon", False), BOXES[2]: ("", True)}
    record = session.as_record(BOXES[1:], names)
    assert [region.get("name") for region in record["regions"]] == ["a cup", "a spoon", None]
    assert [region.get("corrected") for region in record["regions"]] == [True, False, None]
    assert record["name_question"] == "What is <region1>?"


@pytest.mark.parametrize("names", [[None], [{"text": 1, "corrected": True}], [{"corrected": True}], ["a"], 3])
def test_names_that_fit_no_boxes_are_refused(names):
    from gpt4roi.demo.page_values import names_of

    assert names_of({"boxes": [[1, 2, 3, 4]], "names": [None]}) == names_of(None) == {}
    said = [{"text": " a cup ", "corrected": True}]
    assert names_of({"boxes": [[1, 2, 3, 4]], "names": said}) == {(1.0, 2.0, 3.0, 4.0): ("a cup", True)}
    boxes = [] if names == [None] else [[1, 2, 3, 4]]
    with pytest.raises(InputError, match="names that fit no boxes"):
        names_of({"boxes": boxes, "names": names})
