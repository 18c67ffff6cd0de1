"""Conversations about regions, and one answer for each of many regions."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor, tiny_text_config, tiny_tokenizer

from gpt4roi import GPT4RoIProcessor, InputError, RegionChat, RegionSample, Turn
from gpt4roi.generation.batching import BatchingWorker

BOXES = [[5, 5, 40, 30], [30, 10, 90, 60], [50, 2, 70, 62], [2, 40, 30, 60], [60, 30, 95, 63]]
QUESTION = "What is <region1>?"


def make_image(seed: int = 0) -> Image.Image:
    """96 x 64 pixels of coarse noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((96, 64), Image.Resampling.NEAREST)


def chat_with(kind: str = "clip", prompt_format: str = "chat", image: bool = False, **changes: object) -> RegionChat:
    model = tiny_model(kind, **changes)
    with torch.no_grad():  # fresh region embeddings are too faint to change an answer
        for weight in model.region_encoder.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)
    chat = RegionChat(model, tiny_processor(model.config, prompt_format))
    if image:
        chat.set_image(make_image())
    return chat


def fresh_answer(chat: RegionChat, turns, boxes, new_tokens: int = 12) -> str:
    """The plain way: one prompt with the whole history through the model's own generate."""
    batch = chat.processor([RegionSample(make_image(), tuple(turns), np.asarray(boxes))], generation=True)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "boxes")}
    ids = chat.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    return chat.processor.decode(ids[0, batch["input_ids"].shape[1] :])


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["clip", "pyramid"])
@pytest.mark.parametrize("prompt_format", ["chat", "v0", "v1"])
def test_many_regions_are_answered_as_each_by_itself(kind, prompt_format):
    chat = chat_with(kind, prompt_format)

    together = chat.describe(make_image(), BOXES, QUESTION, max_new_tokens=12, batch_size=3)

    assert together == [fresh_answer(chat, [Turn("user", QUESTION)], [box]) for box in BOXES]
    if prompt_format == "chat":  # in the longer prompts these models hardly look at a region
        assert len(set(together)) > 1


def test_permuted_boxes_permute_the_answers():
    chat = chat_with("pyramid")
    order = [3, 0, 4, 1, 2]

    answers = chat.describe(make_image(), BOXES, max_new_tokens=12)

    assert chat.describe(make_image(), [BOXES[i] for i in order], max_new_tokens=12) == [answers[i] for i in order]


def test_no_boxes_have_no_answers():
    assert chat_with().describe(make_image(), []) == []


def test_every_round_is_answered_as_a_fresh_prompt_with_the_same_history():
    chat = chat_with(image=True, prompt_format="v0")
    rounds = [
        ("What is <region1> near <region2>?", BOXES[:2]),
        ("And why <region1>?", None),
        ("What about <region3>, not <region2>?", BOXES[2:3]),
    ]
    for question, boxes in rounds:
        history = [*chat.turns, Turn("user", question)]
        known = [*chat.boxes_px.tolist(), *(boxes or [])]

        answer = chat.ask(question, boxes, max_new_tokens=8)

        assert answer == fresh_answer(chat, history, known, 8)
    assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 3
    assert chat.boxes_px.tolist() == BOXES[:3]


def test_short_mentions_mean_the_same():
    assert chat_with(image=True).ask("What is <1>?", BOXES[:1], max_new_tokens=8) == chat_with(image=True).ask(
        QUESTION, BOXES[:1], max_new_tokens=8
    )


def test_a_question_without_any_box_is_answered():
    chat = chat_with(image=True)

    assert chat.ask("What is this?", max_new_tokens=8) == fresh_answer(chat, [Turn("user", "What is this?")], [], 8)


def test_the_pieces_of_a_stream_join_to_the_answer():
    streamed, asked = chat_with(image=True), chat_with(image=True)

    pieces = list(streamed.stream(QUESTION, BOXES[:1], max_new_tokens=12))

    assert "".join(pieces) == asked.ask(QUESTION, BOXES[:1], max_new_tokens=12)
    assert len(pieces) > 1
    assert streamed.turns == asked.turns


def test_an_abandoned_stream_leaves_the_conversation_as_it_was():
    chat = chat_with(image=True)

    stream = chat.stream(QUESTION, BOXES[:1], max_new_tokens=12)
    next(stream)
    stream.close()

    assert chat.turns == () and len(chat.boxes_px) == 0


@pytest.mark.heavy
def test_greedy_is_the_default_and_draws_repeat_with_their_seed():
    def ask(**settings):
        return chat_with(image=True).ask(QUESTION, BOXES[:1], max_new_tokens=12, **settings)

    assert ask() == ask(temperature=0)
    assert ask(temperature=2.0, seed=1) == ask(temperature=2.0, seed=1)
    assert len({ask(temperature=2.0, seed=seed) for seed in range(4)}) > 1
    assert ask(temperature=2.0, top_p=1e-9, seed=5) == ask()


def test_the_tower_looks_once_at_an_image_however_much_is_asked():
    chat = chat_with("pyramid")
    looks = []
    chat.model.vision_tower.register_forward_hook(lambda *_: looks.append(1))

    chat.set_image(make_image())
    chat.ask(QUESTION, BOXES[:1], max_new_tokens=2)
    chat.ask("And <region2>?", BOXES[1:2], max_new_tokens=2)
    assert len(looks) == 1
    chat.describe(make_image(), BOXES, max_new_tokens=2)
    assert len(looks) == 2


def test_a_new_image_and_a_reset_begin_a_new_conversation():
    chat = chat_with(image=True)
    first = chat.ask(QUESTION, BOXES[:1], max_new_tokens=8)

    chat.reset()
    assert chat.turns == () and len(chat.boxes_px) == 0
    assert chat.ask(QUESTION, BOXES[:1], max_new_tokens=8) == first
    chat.set_image(make_image(7))
    assert chat.turns == ()


def test_a_later_question_is_asked_after_the_corrected_answer():
    chat = chat_with(image=True)
    chat.ask(QUESTION, BOXES[:1], max_new_tokens=4)
    chat.ask("And <region2>?", BOXES[1:2], max_new_tokens=4)
    chat.correct(1, " a blue cup, not <region2> ")

    assert [turn.text for turn in chat.turns[:2]] == [QUESTION, "a blue cup, not region2"]
    expected = fresh_answer(chat, [*chat.turns, Turn("user", "And why?")], chat.boxes_px.tolist())
    assert chat.ask("And why?", max_new_tokens=12) == expected
    before = chat.turns
    for number, answer, message in [
        (1, " ", "is empty"),
        (4, "a cup", "no round 4 to correct"),
    ]:
        with pytest.raises(InputError, match=message):
            chat.correct(number, answer)
    assert chat.turns == before


def test_a_fork_is_about_the_same_image_and_leaves_the_conversation_as_it_is():
    chat = chat_with("pyramid", image=True)
    looks = []
    chat.model.vision_tower.register_forward_hook(lambda *_: looks.append(1))
    first = chat.ask(QUESTION, BOXES[:1], max_new_tokens=8)
    before = chat.turns, chat.boxes_px.tolist()

    fork = chat.fork()
    assert fork.turns == () and fork.ask(QUESTION, BOXES[:1], max_new_tokens=8) == first
    assert fork.ask(QUESTION.replace("1", "2"), BOXES[1:2], max_new_tokens=8) is not None
    assert (chat.turns, chat.boxes_px.tolist()) == before and looks == []
    with pytest.raises(InputError, match="no image yet"):
        chat_with().fork().ask(QUESTION, BOXES[:1])


@pytest.mark.heavy
def test_a_failed_question_leaves_the_conversation_as_it_was():
    chat = chat_with(image=True)
    chat.ask(QUESTION, BOXES[:1], max_new_tokens=4)
    before = chat.turns, chat.boxes_px.tolist()

    with pytest.raises(InputError, match="<region5> but 2 boxes"):
        chat.ask("What is <region5>?", BOXES[1:2])

    assert (chat.turns, chat.boxes_px.tolist()) == before


def test_images_may_be_paths_bytes_arrays_or_pil(tmp_path):
    chat = chat_with()
    path = tmp_path / "p.png"
    make_image().save(path)
    ways = [path, str(path), path.read_bytes(), np.asarray(make_image()), make_image()]

    answers = [chat.describe(way, BOXES[:2], max_new_tokens=6) for way in ways]

    assert answers == [answers[0]] * len(ways)


def test_boxes_are_in_pixels_of_the_image_as_people_see_it():
    chat = chat_with()
    turned = make_image().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    packed = io.BytesIO()
    turned.save(packed, "PNG", exif=exif)

    answers = chat.describe(packed.getvalue(), BOXES, max_new_tokens=6)

    assert answers == chat.describe(make_image(), BOXES, max_new_tokens=6)


@pytest.mark.heavy
def test_threads_with_a_chat_each_do_not_mix_over_one_model():
    model = tiny_model("pyramid")
    processor = tiny_processor(model.config)
    expected = [RegionChat(model, processor).describe(make_image(i), BOXES, max_new_tokens=8) for i in range(4)]
    found = [None] * 4

    def work(index: int) -> None:
        chat = RegionChat(model, processor)
        chat.set_image(make_image(index))
        answers = []
        for box in BOXES:
            chat.reset()
            answers.append(chat.ask(QUESTION, [box], max_new_tokens=8))
        found[index] = answers

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == expected


def test_conversations_of_several_rounds_stream_side_by_side():
    model = tiny_model("pyramid")
    processor = tiny_processor(model.config)

    def talk(index: int) -> tuple:
        chat = RegionChat(model, processor)
        chat.set_image(make_image(index))
        for number, box in enumerate(BOXES[:3], start=1):
            list(chat.stream(f"What is <region{number}>?", [box], max_new_tokens=6, temperature=1.0, seed=index))
        return chat.turns

    expected = [talk(index) for index in range(3)]
    found = [None] * 3
    threads = [threading.Thread(target=lambda index=index: found.__setitem__(index, talk(index))) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == expected
    assert len(set(expected)) == 3


def test_a_conversation_that_outgrows_the_context_says_so():
    model = tiny_model()
    settings = {"image_size": 32, "image_seq_length": 16, "prompt_format": "chat", "model_max_length": 200}
    chat = RegionChat(model, GPT4RoIProcessor(tiny_tokenizer(), **settings))
    chat.set_image(make_image())
    chat.ask("What is it, in a few words?", max_new_tokens=2)
    chat.ask("And what else may be seen here?", max_new_tokens=2)

    with pytest.raises(InputError, match="no longer fits into the model's 200 tokens"):
        chat.ask("And what else may be seen here?")


def test_the_oldest_rounds_after_the_first_are_dropped_where_that_is_asked_for():
    model = tiny_model()
    settings = {"image_size": 32, "image_seq_length": 16, "prompt_format": "chat", "model_max_length": 200}
    processor = GPT4RoIProcessor(tiny_tokenizer(), **settings)
    chat = RegionChat(model, processor, long_history="drop")
    chat.set_image(make_image())
    questions = ["What is it, in a few words?", "And what else may be seen here?", "And what is that, <region1>?"]
    for question in questions[:2]:
        chat.ask(question, max_new_tokens=2)

    answer = chat.ask(questions[2], BOXES[:1], max_new_tokens=4)

    assert chat.dropped_rounds == 1 and len(chat.turns) == 6
    kept = RegionChat(model, processor)
    kept.set_image(make_image())
    kept.ask(questions[0], max_new_tokens=2)
    assert kept.ask(questions[2], BOXES[:1], max_new_tokens=4) == answer


def test_an_answer_ends_where_the_positions_of_the_language_model_do():
    text_config = tiny_text_config(max_position_embeddings=100)
    model = tiny_model(text_config=text_config)
    chat = RegionChat(model, tiny_processor(model.config))
    chat.set_image(make_image())
    prompt_tokens = len(chat._prepare("Go on", None)[2]().input_ids)

    chat.ask("Go on", max_new_tokens=256, temperature=5.0, seed=1)

    assert len(chat._dialogue.cache) <= 100
    with pytest.raises(InputError, match=r"the prompt has \d+ tokens and the language model 100 positions"):
        chat.ask("x" * (100 - prompt_tokens))


def test_stop_texts_end_an_answer_before_them():
    chat = chat_with(image=True)
    whole = chat.ask(QUESTION, BOXES[:1], max_new_tokens=12)
    stop = whole[3:5]
    expected = whole.partition(stop)[0].strip()

    for answer in (
        chat_with(image=True).ask(QUESTION, BOXES[:1], max_new_tokens=12, stop=[stop]),
        "".join(chat_with(image=True).stream(QUESTION, BOXES[:1], max_new_tokens=12, stop=[stop])),
        chat.describe(make_image(), BOXES[:1], max_new_tokens=12, stop=stop)[0],
    ):
        assert answer == expected


@pytest.mark.parametrize("prompt_format", ["chat", "v0", "v1"])
def test_an_empty_answer_does_not_stop_the_conversation(prompt_format):
    chat = chat_with(prompt_format=prompt_format, image=True)
    first = chat.ask(QUESTION, BOXES[:1], max_new_tokens=4)[0]
    chat.reset()

    assert chat.ask(QUESTION, BOXES[:1], max_new_tokens=4, stop=[first]) == ""
    second = chat.ask("And now?", max_new_tokens=12)

    asked = [Turn("user", QUESTION), Turn("assistant", ""), Turn("user", "And now?")]
    assert second == fresh_answer(chat, asked, BOXES[:1])
    assert chat.turns == (*asked, Turn("assistant", second))


def test_an_answer_that_names_a_box_of_its_own_does_not_stop_the_conversation(monkeypatch):
    chat = chat_with(image=True)
    monkeypatch.setattr(chat.processor, "decode", lambda ids: "as <region9> of <image>")
    said = chat.ask(QUESTION, BOXES[:1], max_new_tokens=4)
    monkeypatch.undo()

    chat.ask("And region1 again?", max_new_tokens=4)

    assert said == "as <region9> of <image>"
    assert chat.turns[1] == Turn("assistant", "as region9 of image")


@pytest.mark.parametrize("prompt_format", ["chat", "v0", "v1"])
def test_an_answer_without_a_word_does_not_stop_the_conversation(prompt_format, monkeypatch):
    chat = chat_with(image=True, prompt_format=prompt_format)
    monkeypatch.setattr(chat.processor, "decode", lambda ids: "")
    said = chat.ask(QUESTION, BOXES[:1], max_new_tokens=4)
    monkeypatch.undo()
    history = [Turn("user", QUESTION), Turn("assistant", ""), Turn("user", "And region1 again?")]

    assert chat.ask("And region1 again?", max_new_tokens=8) == fresh_answer(chat, history, BOXES[:1], 8)
    assert said == "" and len(chat.turns) == 4


def test_an_image_set_while_an_answer_comes_begins_a_conversation_of_its_own():
    chat = chat_with(image=True)
    pieces = chat.stream(QUESTION, BOXES[:1], max_new_tokens=12)
    next(pieces)

    chat.set_image(make_image(7))
    list(pieces)

    assert chat.turns == () and len(chat.boxes_px) == 0


def test_wrong_input_of_a_stream_raises_before_the_first_piece():
    with pytest.raises(InputError, match="<region2> but 1 box"):
        chat_with(image=True).stream("What is <region2>?", BOXES[:1])


def test_closing_a_stream_ends_the_computation():
    chat = chat_with(image=True)
    steps = []
    chat.model.language_model.register_forward_hook(lambda *_: steps.append(1))
    pieces = chat.stream(QUESTION, BOXES[:1], max_new_tokens=200)
    next(pieces)
    taken = len(steps)

    pieces.close()

    assert len(steps) == taken < 200
    assert chat.ask(QUESTION, BOXES[:1], max_new_tokens=8) == chat_with(image=True).ask(
        QUESTION, BOXES[:1], max_new_tokens=8
    )


def test_a_question_before_any_image_says_what_to_do():
    with pytest.raises(InputError, match="call set_image first"):
        chat_with().ask("What is this?")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([40, 5, 5, 30], r"box 2 \(40,5,5,30\): corners are exchanged"),
        ([5, 5, 5, 30], r"box 2 \(5,5,5,30\): has no area"),
        ([float("nan"), 5, 40, 30], "box 2: expected finite numbers"),
        ([200, 5, 240, 30], "reaches outside the image, which is 96x64"),
        ([5, -20, 40, 30], "reaches outside the image"),
        ([0.1, 0.1, 0.5, 0.9], "looks like fractions; give pixels"),
        ([1, 2, 3], "box 2: expected four numbers x1, y1, x2, y2, got 3"),
        (["a", 2, 3, 4], "box 2: expected four numbers"),
        (7, "box 2: expected four numbers"),
    ],
)
def test_a_wrong_box_is_named(box, message):
    with pytest.raises(InputError, match=message):
        chat_with().describe(make_image(), [BOXES[0], box])


def test_a_box_that_reaches_a_fraction_over_the_border_is_taken():
    assert len(chat_with().describe(make_image(), [[0, 0, 96.4, 64.2]], max_new_tokens=2)) == 1


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "the question is empty"),
        ("What is it?", "mentions no region"),
        ("Is <region1> left of <region2>?", "mentions <region1>, <region2>, expected one"),
        ("What is <region2>?", "mentions <region2>, but each box is asked about by itself, as <region1>"),
    ],
)
def test_describe_wants_a_question_about_one_region(question, message):
    with pytest.raises(InputError, match=message):
        chat_with().describe(make_image(), BOXES[:1], question)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.jpg", "not found"),
        (b"no image", "not an image file"),
        (np.zeros((4, 4, 3)), "uint8"),
        (3, "got int"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(InputError, match=message):
        chat_with().set_image(image)


@pytest.mark.heavy
def test_a_saved_model_opens_with_its_processor_and_answers_the_same(tmp_path):
    chat = chat_with("pyramid")
    chat.model.save_pretrained(tmp_path)
    chat.processor.save_pretrained(tmp_path)

    opened = RegionChat.from_pretrained(tmp_path, device="cpu", dtype="float32")

    assert opened.describe(make_image(), BOXES, max_new_tokens=8) == chat.describe(
        make_image(), BOXES, max_new_tokens=8
    )
    assert RegionChat.from_pretrained(tmp_path, "cpu", torch.bfloat16).model.language_model.dtype == torch.bfloat16


def test_an_unknown_device_or_dtype_is_refused(tmp_path):
    with pytest.raises(InputError, match="long_history must be 'refuse' or 'drop', got 'forget'"):
        RegionChat(*[None] * 2, long_history="forget")
    with pytest.raises(InputError, match="device 'abacus'"):
        RegionChat.from_pretrained(tmp_path, device="abacus")
    with pytest.raises(InputError, match="dtype 'int3'"):
        RegionChat.from_pretrained(tmp_path, device="cpu", dtype="int3")


def test_coordinates_typed_into_a_question_get_a_hint(caplog):
    chat_with(image=True).ask("What is at [5, 5, 40, 30]?", max_new_tokens=1)
    assert "as --box 5,5,40,30 (in Python: boxes_px) and write <region1>" in caplog.text


def test_scores_are_the_mean_probabilities_of_an_answers_tokens():
    chat = chat_with("pyramid", image=True)

    found = chat.describe(None, BOXES[:2], max_new_tokens=5, scores=True)

    assert [one.text for one in found] == chat.describe(None, BOXES[:2], max_new_tokens=5)
    for box, (_, score) in zip(BOXES, found, strict=False):
        batch = chat.processor(
            [RegionSample(make_image(), (Turn("user", QUESTION),), np.array([box]))], generation=True
        )
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "boxes")}
        made = chat.model.generate(
            **inputs, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        log_probs = torch.stack(made.logits).log_softmax(dim=-1).max(dim=-1).values
        assert score == pytest.approx(float(log_probs.exp().mean()), abs=1e-4)


def test_labels_get_the_probabilities_that_their_likelihoods_say():
    chat = chat_with("pyramid", image=True)
    labels = ["a cat", "a dog", "grass"]

    found = chat.classify(BOXES[:2], labels)

    for box, shares in zip(BOXES, found, strict=False):
        totals = []
        for label in labels:
            turns = (Turn("user", QUESTION), Turn("assistant", label))
            batch = chat.processor([RegionSample(make_image(), turns, np.array([box]))])
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "boxes")}
            rows = chat.model(**inputs).logits[0, :-1].log_softmax(dim=-1)
            wanted = batch["labels"][0, 1:]
            kept = wanted != -100
            totals.append(float(rows[kept].detach().gather(1, wanted[kept][:, None]).sum()))
        expected = torch.tensor(totals).softmax(dim=0).tolist()
        assert list(shares) == labels and list(shares.values()) == pytest.approx(expected, abs=1e-3)
    assert chat.classify(BOXES[:2], labels, image=make_image()) == found
    with pytest.raises(InputError, match="expected at least two labels, none empty or given twice"):
        chat.classify(BOXES[:1], ["cat"])
    with pytest.raises(InputError, match="labels are a list of texts, got 'cat,dog'"):
        chat.classify(BOXES[:1], "cat,dog")


def test_chats_over_one_worker_answer_as_each_by_itself():
    own = chat_with("pyramid", image=True)
    rounds = [(QUESTION, BOXES[:1]), ("And <region2>?", BOXES[1:2])]
    expected = [own.ask(question, boxes, max_new_tokens=8) for question, boxes in rounds]
    worker = BatchingWorker(own.model, own.processor)
    found: list[list[str]] = [[], [], []]

    def talk(answers: list[str]) -> None:
        chat = RegionChat(own.model, own.processor, worker=worker)
        chat.set_image(make_image())
        for question, boxes in rounds:
            answers.append("".join(chat.stream(question, boxes, max_new_tokens=8)))

    threads = [threading.Thread(target=talk, args=(answers,)) for answers in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.close()
    assert found == [expected] * 3
    assert worker.counts["answers"] == 6


def test_several_questions_about_the_same_boxes_compute_the_image_once():
    chat, looks = chat_with("pyramid"), []
    questions = [QUESTION, "Which colour is <region1>?"]
    expected = [chat.describe(make_image(), BOXES, one, max_new_tokens=6) for one in questions]
    chat.model.vision_tower.register_forward_hook(lambda *_: looks.append(1))
    found = chat.describe(make_image(), BOXES, questions, max_new_tokens=6)
    assert found == [list(answers) for answers in zip(*expected, strict=True)] and looks == [1]


def test_a_pair_of_boxes_is_asked_about_as_a_conversation_with_these_two():
    chat = chat_with("pyramid", image=True)
    question, pairs = "Is <region1> left of <region2>?", [(1, 2), (2, 1), (5, 3)]
    found = chat.describe(None, BOXES, question, pairs=pairs, max_new_tokens=8, batch_size=2, scores=True)
    turns = [Turn("user", question)]
    assert [one.text for one in found] == [fresh_answer(chat, turns, [BOXES[a - 1], BOXES[b - 1]], 8) for a, b in pairs]
    assert len({one.score for one in found}) == 3
    other = "Why <region2>, <region1>?"
    both = chat.describe(None, BOXES, [question, other], pairs=pairs, max_new_tokens=8)
    second = chat.describe(None, BOXES, other, pairs=pairs, max_new_tokens=8)
    assert both == [[one.text, answer] for one, answer in zip(found, second, strict=True)]
    there, back = chat.classify(BOXES, ["yes", "no"], question, pairs=pairs[:2])
    assert there["yes"] != back["yes"] and sum(there.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("pairs", "question", "message"),
    [
        (
            [(1, 2), (1, 6)],
            "<region1> <region2>?",
            r"pair 2: expected the numbers of two different regions, from 1 to 5",
        ),
        ([(2, 2)], "<region1> <region2>?", r"pair 1: .* got \(2, 2\)"),
        ([(1, True)], "<region1> <region2>?", "pair 1: "),
        ([(1, 2, 3)], "<region1> <region2>?", "pair 1: "),
        ("12", "<region1> <region2>?", "pairs are a list of at most 1000 pairs of numbers, got '12'"),
        ([(1, 2)], QUESTION, "a question about pairs mentions <region1> and <region2>"),
        ([(1, 2)], "<region1> <region2> <region3>?", "and no other region; got"),
    ],
)
def test_what_is_no_pair_is_refused(pairs, question, message):
    with pytest.raises(InputError, match=message):
        chat_with("pyramid", image=True).describe(None, BOXES, question, pairs=pairs)


def test_an_answer_is_cancelled_from_another_thread_and_is_no_turn():
    own = chat_with("pyramid", image=True)
    worker = BatchingWorker(own.model, own.processor)
    chat = RegionChat(own.model, own.processor, worker=worker)
    chat.cancel()
    chat.set_image(make_image())
    pieces = chat.stream(QUESTION, BOXES[:1], max_new_tokens=3000)
    threading.Timer(0.05, chat.cancel).start()
    with pytest.raises(InputError, match="the answer was cancelled") as raised:
        list(pieces)
    assert raised.value.code == "cancelled" and chat.turns == ()
    assert chat.ask(QUESTION, BOXES[:1], max_new_tokens=8) == own.ask(QUESTION, BOXES[:1], max_new_tokens=8)
    worker.close()
