"""A conversation as plain data, the store of many, and the sheet that one is saved as."""

from __future__ import annotations

import json
import threading
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from tiny import region_sensitive_chat, tiny_model, tiny_processor

from gpt4roi import InputError, RegionChat
from gpt4roi.demo.export import LINE, conversation_image, pieces_of
from gpt4roi.demo.hints import IncompleteQuestionError
from gpt4roi.demo.session import MAX_BOXES, Round, Session
from gpt4roi.demo.store import SessionStore
from gpt4roi.generation.batching import BatchingWorker
from gpt4roi.generation.sampling import SamplingParams
from gpt4roi.geometry.masks import to_pixels, to_raster, to_runs
from gpt4roi.processing.uploads import scaled
from gpt4roi.report.drawing import region_color

BOXES = [[5, 5, 40, 30], [30, 10, 90, 60], [50, 2, 70, 62]]
SHORT = SamplingParams(max_new_tokens=8)


@pytest.fixture(scope="module")
def parts():
    chat = region_sensitive_chat()
    return chat.model, chat.processor


@pytest.fixture(scope="module")
def worker(parts):
    made = BatchingWorker(*parts)
    yield made
    made.close()


def image(seed: int = 0, size: tuple[int, int] = (96, 64)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


@pytest.fixture
def session(worker):
    made = Session(worker)
    made.show(scaled(image()))
    return made


def answer(session: Session, *args, **more) -> str:
    *_, last = session.ask(*args, **more)
    return last


def test_a_question_about_an_image_that_is_replaced_meanwhile_is_not_put_to_the_other(session, monkeypatch):
    check = session.check

    def check_slowly(*args):
        drawn = check(*args)
        session.show(scaled(image(1)))
        return drawn

    monkeypatch.setattr(session, "check", check_slowly)
    with pytest.raises(InputError, match="changed while this was asked"):
        answer(session, "What is <region1>?", BOXES[:1], SHORT)
    monkeypatch.undo()

    assert not session.rounds and not session.boxes_px
    assert answer(session, "What is <region1>?", BOXES[:1], SHORT) == session.rounds[0].answer


def test_a_session_answers_as_region_chat_does(parts, session):
    chat = RegionChat(*parts)
    chat.set_image(image())

    said = [
        answer(session, "What is <region1> beside <2>?", BOXES[:2], SHORT),
        answer(session, "And <region3>, not region1?", BOXES[2:], SHORT),
    ]

    assert said == [
        chat.ask("What is <region1> beside <2>?", BOXES[:2], max_new_tokens=8),
        chat.ask("And <region3>, not region1?", BOXES[2:], max_new_tokens=8),
    ]
    assert session.rounds == [
        Round("What is <region1> beside <region2>?", said[0], (1, 2)),
        Round("And <region3>, not region1?", said[1], (3,)),
    ]
    assert session.boxes_px == BOXES


def test_the_answer_grows_until_it_is_whole(session):
    grown = list(session.ask("What is <region1>?", BOXES[:1], SamplingParams(max_new_tokens=24)))
    assert len(grown) > 2
    assert all(later.startswith(earlier) for earlier, later in pairwise(grown))
    assert session.rounds[0].answer == grown[-1]


@pytest.mark.heavy
def test_boxes_are_in_pixels_of_the_persons_own_image(worker):
    large = scaled(image(size=(4096, 2048)))
    session = Session(worker)
    session.show(large)
    box = [1024, 512, 3072, 1536]
    answer(session, "What is <region1>?", [box], SHORT)
    assert session.boxes_px == [box]
    assert session.boxes_in_stored_image().tolist() == [[512, 256, 1536, 768]]
    assert session.as_record()["picture"] == {"width": 4096, "height": 2048}


def test_boxes_after_the_last_one_mentioned_are_left_for_later(session):
    with pytest.raises(IncompleteQuestionError, match="<region1> and <region2> are drawn"):
        answer(session, "What is this?", BOXES[:2], SHORT)
    answer(session, "What is <region1>?", BOXES[:2], SHORT)
    assert session.boxes_px == BOXES[:1]
    answer(session, "And <region2>?", BOXES[1:2], SHORT)
    assert session.boxes_px == BOXES[:2] and session.introduced == {1, 2}


def test_nothing_changes_where_a_question_is_unclear_or_wrong(session):
    answer(session, "What is <region1>?", BOXES[:1], SHORT)
    before = session.as_record()
    for question, boxes, error in [
        ("", [], IncompleteQuestionError),
        ("What is <region3>?", BOXES[1:2], IncompleteQuestionError),
        ("What is <region2>?", [[1, 2, 3]], InputError),
        ("What is <region2>?", [[1, 2, 3, float("nan")]], InputError),
        ("What is <region2>?", [[0, 0, 500, 500]], InputError),
        ("What is <region2>?", "boxes", InputError),
        ("x" * 5000, [], InputError),
        ("What is <region2>?", BOXES * MAX_BOXES, InputError),
        (None, [], InputError),
    ]:
        with pytest.raises(error):
            answer(session, question, boxes, SHORT)
        assert session.as_record() == before
    assert answer(session, "And region1?", [], SHORT) is not None


def test_without_an_image_the_hint_says_so(worker):
    with pytest.raises(IncompleteQuestionError, match="There is no image yet"):
        answer(Session(worker), "What is this?")


def test_a_stopped_answer_leaves_the_conversation_as_it_was(session):
    answers = session.ask("What is <region1>?", BOXES[:1], SamplingParams(max_new_tokens=200))
    next(answers)
    assert session.asking == "What is <region1>?"
    with pytest.raises(InputError, match="still being written"):
        next(session.ask("And now?", []))
    session.stop()
    assert list(answers) == []
    assert session.rounds == [] and session.boxes_px == []
    assert session.asking == "What is <region1>?"  # to be put back where it was typed
    assert answer(session, "What is <region1>?", BOXES[:1], SHORT)


def test_an_abandoned_answer_frees_the_session(session):
    answers = session.ask("What is <region1>?", BOXES[:1], SamplingParams(max_new_tokens=200))
    next(answers)
    answers.close()
    assert session.rounds == []
    assert answer(session, "What is <region1>?", BOXES[:1], SHORT)


def test_a_new_image_stops_the_answer_about_the_old_one(session):
    answers = session.ask("What is <region1>?", BOXES[:1], SamplingParams(max_new_tokens=200))
    next(answers)
    clearing = threading.Thread(target=session.show, args=(scaled(image(3)),))
    clearing.start()
    while clearing.is_alive():
        next(answers, None)
    assert session.rounds == [] and session.boxes_px == []
    assert session.asking == "What is <region1>?"  # to be put back where it was typed
    assert answer(session, "What is <region1>?", BOXES[:1], SHORT)
    assert len(session.rounds) == 1 and session.asking == ""


def test_starting_over_keeps_the_image_and_clearing_does_not(session):
    first = answer(session, "What is <region1>?", BOXES[:1], SHORT)
    session.start_over()
    assert session.rounds == [] and session.boxes_px == [] and session.image is not None
    assert answer(session, "What is <region1>?", BOXES[:1], SHORT) == first
    session.clear()
    assert session.image is None and session.as_record() == {"picture": None, "regions": [], "rounds": []}


def test_a_record_is_json(session):
    said = answer(session, "What is <region1>?", BOXES[:1], SHORT)
    record = json.loads(json.dumps(session.as_record()))
    assert record["regions"] == [{"region": 1, "box": BOXES[0]}]
    assert record["rounds"] == [{"question": "What is <region1>?", "answer": said, "new_regions": [1]}]


def test_a_record_has_the_boxes_that_were_not_asked_about_too(session):
    answer(session, "What is <region1>?", BOXES[:2], SHORT)
    record = session.as_record(BOXES[1:])
    assert record["regions"] == [{"region": number, "box": box} for number, box in enumerate(BOXES, start=1)]
    assert len(record["rounds"]) == 1 and session.boxes_px == BOXES[:1]
    with pytest.raises(InputError, match="reaches outside"):
        session.as_record([[0, 0, 500, 500]])


def test_a_corrected_answer_is_the_conversation_s_and_the_model_s_own_is_remembered(session):
    said = answer(session, "What is <region1>?", BOXES[:1], SHORT)
    session.correct(session.image_id, 0, "a cup")
    session.correct(session.image_id, 0, "a blue cup")
    assert session.rounds == [Round("What is <region1>?", "a blue cup", (1,), model_answer=said)]
    assert session.as_record()["rounds"][0]["answer"] == "a blue cup"
    assert session.as_record()["rounds"][0]["model_answer"] == said
    assert session._chat.turns[1].text == "a blue cup"
    before = session.as_record()
    for image_id, index, text, message in [
        ("another", 0, "a cup", "expired"),
        (session.image_id, 1, "a cup", "no round 2 to correct"),
        (session.image_id, -1, "a cup", "no round 0 to correct"),
        (session.image_id, "0", "a cup", "is a whole number, got '0'"),
        (session.image_id, 0, "", "is empty"),
        (session.image_id, 0, None, "an answer is text"),
        (session.image_id, 0, "x" * 5000, "at most 4000 characters"),
    ]:
        with pytest.raises(InputError, match=message):
            session.correct(image_id, index, text)
    answers = session.ask("And region1?", [], SHORT)
    next(answers)
    with pytest.raises(InputError, match="still being written"):
        session.correct(session.image_id, 0, "a cup")
    answers.close()
    assert session.as_record() == before


def test_the_sheet_has_the_boxes_and_the_chips_in_their_colours(session):
    session.boxes_px = BOXES[:2]
    session.rounds = [Round("Which is larger, <region1> or <region2>?", "region 2 " + "and so on " * 40, (1, 2))]
    sheet = np.asarray(conversation_image(session))
    colours = {tuple(pixel) for pixel in sheet.reshape(-1, 3)[::3]}
    for index in (0, 1):
        color = region_color(index)
        assert tuple(int(color[place : place + 2], 16) for place in (1, 3, 5)) in colours
    shorter = session.rounds[0].question
    session.rounds = [Round(shorter, "region 2", (1, 2))]
    assert conversation_image(session).height < sheet.shape[0]


def test_only_mentions_of_boxes_that_there_are_become_chips():
    found = [(piece.text, piece.number) for piece in pieces_of("Is region 2 <region1>, not region7?", 2)]
    assert found == [("Is", 0), ("region2", 2), ("region1", 1), (",", 0), ("not", 0), ("region7?", 0)]


def test_a_number_of_absurdly_many_digits_is_plain_text_or_refused_in_one_line(session):
    long = "9" * 5000
    assert [piece.number for piece in pieces_of(f"It is <region{long}>, region {long}, of region 1", 1)][-2:] == [0, 1]
    assert session.hints(f"What is <region1>, not region {long}?", BOXES[:1]) == []
    for question in (f"What is <region{long[:3000]}>?", f"What is <{long[:3000]}>?"):
        with pytest.raises(InputError, match="has a number of 3000 digits"):
            answer(session, question, BOXES[:1], SHORT)


def test_a_question_keeps_its_lines_on_the_sheet(session):
    heights = []
    for question in ("What is it?", "What is it?\n\nSay why."):
        session.rounds = [Round(question, "a cat")]
        heights.append(conversation_image(session).height)
    assert heights[1] - heights[0] == 2 * LINE


def test_a_word_wider_than_the_sheet_is_cut(session):
    session.rounds = [Round("What?", "x" * 500)]
    assert conversation_image(session).width == 960


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_store_keeps_sessions_apart_bounded_and_not_for_ever(worker):
    clock = FakeClock()
    store = SessionStore(lambda: Session(worker), max_sessions=3, idle_seconds=60, clock=clock)
    dropped: list[str] = []
    store.on_drop = dropped.append
    first = store.get("a")
    assert store.get("a") is first and store.get("b") is not first
    store.get("c"), store.get("a"), store.get("d")
    assert len(store) == 3
    assert store.get("a") is first
    assert len(store) == 3

    clock.now = 59
    store.get("a")
    clock.now = 61
    assert store.sweep() == 2 and len(store) == 1
    store.drop("a")
    store.drop("a")
    store.leave("a")
    assert len(store) == 0 and dropped == ["b", "c", "d", "a"]


def test_a_session_that_was_left_is_kept_for_a_while_and_longer_if_it_comes_back(worker):
    clock = FakeClock()
    store = SessionStore(lambda: Session(worker), idle_seconds=1000, grace_seconds=60, clock=clock)
    gone, back = store.get("gone"), store.get("back")
    store.leave("gone")
    store.leave("back")
    clock.now = 59
    assert store.sweep() == 0 and store.get("back") is back
    clock.now = 61
    assert store.sweep() == 1
    assert store.get("back") is back and store.get("gone") is not gone


def test_the_store_stops_an_answer_whose_session_is_dropped(worker):
    store = SessionStore(lambda: Session(worker))
    session = store.get("a")
    session.show(scaled(image()))
    answers = session.ask("What is <region1>?", BOXES[:1], SamplingParams(max_new_tokens=200))
    next(answers)
    store.drop("a")
    assert list(answers) == []


def test_what_is_used_while_others_are_swept_is_not_swept():
    """The sweeper is held at the first session it stops; meanwhile somebody comes back to the second."""
    sweeping, came_back = threading.Event(), threading.Event()

    class Resting:
        answering = stopped = False

        def stop(self):
            self.stopped = True
            sweeping.set()
            assert came_back.wait(600)

    clock = FakeClock()
    store = SessionStore(Resting, idle_seconds=60, clock=clock)
    forgotten: list[str] = []
    store.on_drop = forgotten.append
    store.get("first"), store.get("second")
    clock.now = 61
    sweeper = threading.Thread(target=store.sweep)
    sweeper.start()
    assert sweeping.wait(600)
    used = store.get("second")
    seen = list(forgotten)
    came_back.set()
    sweeper.join(600)

    assert not sweeper.is_alive()
    assert not used.stopped and store.get("second") is used
    assert forgotten == seen, "what belongs to the key is not forgotten once it is used anew"


def test_a_session_whose_answer_is_being_written_is_not_swept_unless_its_page_was_left(worker):
    clock = FakeClock()
    store = SessionStore(lambda: Session(worker), idle_seconds=60, grace_seconds=10, clock=clock)
    session = store.get("a")
    session.show(scaled(image()))
    answers = session.ask("What is <region1>?", BOXES[:1], SamplingParams(max_new_tokens=200))
    next(answers)
    clock.now = 61
    assert store.sweep() == 0 and next(answers)

    store.leave("a")
    clock.now = 72
    assert store.sweep() == 1 and list(answers) == []

    session = store.get("a")
    session.show(scaled(image()))
    answer(session, "What is <region1>?", BOXES[:1], SHORT)
    clock.now = 133
    assert store.sweep() == 1, "an answer that is whole does not hold its session"


def test_a_sweeper_runs_by_itself(worker):
    store, gone = SessionStore(lambda: Session(worker), idle_seconds=0.01), threading.Event()
    store.on_drop = lambda key: gone.set()
    store.get("a")
    ended = store.start_sweeper(every_seconds=0.02)
    assert gone.wait(600)
    ended.set()
    assert len(store) == 0


def test_a_painted_region_keeps_its_shape_in_question_record_and_sheet():
    model = tiny_model("pyramid", region_shape="mask")
    worker = BatchingWorker(model, tiny_processor(model.config))
    try:
        session = Session(worker)
        session.show(scaled(image()))
        mask = np.zeros((32, 48), dtype=np.uint8)  # at half of the image's size
        mask[5:15, 5:20] = 1
        mask[5:10, 10:20] = 0
        painted = {"box": [10, 10, 40, 30], "mask": to_runs(mask)}
        answer(session, "Is <region1> left of <region2>?", [painted, BOXES[1]], sampling=SHORT)

        regions = session._chat.regions
        assert regions.boxes_px.tolist() == [[10, 10, 40, 30], BOXES[1]] and regions.masks[1] is None
        assert np.array_equal(regions.masks[0], to_raster(mask, [5, 5, 20, 15]))
        first, second, third = session.as_record([painted])["regions"]
        assert first["mask"] == third["mask"] and "mask" not in second
        assert np.array_equal(to_pixels(first["mask"], (64, 96)), mask.repeat(2, 0).repeat(2, 1))
        photograph = np.asarray(conversation_image(session))
        polygon = [[10.0, 10.0, 40.0, 10.0, 10.0, 30.0]]
        drawn = {"box": [10, 10, 40, 30], "mask": polygon}
        assert session.as_record([drawn])["regions"][2]["mask"] == polygon
        assert session.regions(np.asarray([[10, 10, 40, 30]]), [polygon]).masks[0].mean() == pytest.approx(
            0.5, abs=0.02
        )
        session.masks[0] = polygon
        assert (photograph != np.asarray(conversation_image(session))).any(2).sum() > 100
        for wrong in ("all of it", [[0, 1, 1], [1, 0, 1]], [[10, 10, 40, 10]]):
            with pytest.raises(InputError, match=r"run lengths .* or polygons|a polygon needs three corners"):
                session.as_record([{"box": [10, 10, 40, 30], "mask": wrong}])
        session.masks[0] = None
        assert (photograph != np.asarray(conversation_image(session))).any(2).sum() > 100
        with pytest.raises(InputError, match="the mask is empty"):
            answer(session, "What is <region3>?", [{"box": [60, 50, 70, 60], "mask": to_runs(mask)}])
    finally:
        worker.close()
