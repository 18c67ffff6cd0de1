"""The processor: samples become ids, labels, boxes and pixels that belong together."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from text_samples import IMAGE, NORMALISED, PATCHES, QUESTIONS, bytes_tokenizer, make, sample, text_of
from transformers import AutoProcessor

from gpt4roi.constants import IGNORE_INDEX
from gpt4roi.processing.processor import GPT4RoIProcessor
from gpt4roi.processing.tokenizer import add_special_tokens, is_llama_style
from gpt4roi.structures import Augmentation, RegionSample, Turn


def learnt(processor, encoded):
    return text_of(processor, encoded["labels"][encoded["labels"] != IGNORE_INDEX])


def test_the_image_is_shown_before_the_first_question_where_no_turn_shows_it():
    processor = make("chat")
    text = text_of(processor, processor.encode(sample(*QUESTIONS[:2]))["input_ids"])
    assert text == (
        f"<|im_start|>user\nThe {PATCHES} provides an overview of the picture.\nWhat is region2 <bbox>?<|im_end|>\n"
        "<|im_start|>assistant\na dog<|im_end|>\n"
    )
    own = text_of(processor, processor.encode(sample("<image>\nWhat is <region2>?", "a dog"))["input_ids"])
    assert own.startswith(f"<|im_start|>user\n{PATCHES}\nWhat is region2 <bbox>?")


def test_boxes_follow_the_regions_of_the_text():
    encoded = make("chat").encode(sample(*QUESTIONS))
    np.testing.assert_allclose(encoded["boxes"], [NORMALISED[1], NORMALISED[0]], atol=1e-7)
    assert int((encoded["input_ids"] == make("chat").region_token_id).sum()) == 2


def test_chat_labels_are_the_answers_with_the_token_that_ends_them():
    processor = make("chat")
    assert learnt(processor, processor.encode(sample(*QUESTIONS))) == "a dog<|im_end|>yes<|im_end|>two<|im_end|>"


def test_chat_ids_are_those_of_the_tokenizers_own_template():
    processor = make("chat")
    messages = [
        {
            "role": "user",
            "content": f"The {PATCHES} provides an overview of the picture.\nWhat is region2 <bbox>, then?",
        },
        {"role": "assistant", "content": "a dog"},
    ]
    expected = processor.tokenizer.apply_chat_template(messages)["input_ids"]
    assert processor.encode(sample("What is <region2>, then?", "a dog"))["input_ids"].tolist() == expected


def test_v0_with_a_tokenizer_of_another_kind_follows_that_tokenizer():
    tokenizer = bytes_tokenizer()
    add_special_tokens(tokenizer)
    assert not is_llama_style(tokenizer)
    processor = GPT4RoIProcessor(tokenizer, image_size=32, image_seq_length=3)
    encoded = processor.encode(sample("Is <region1> , here?", "yes"))
    assert "region1 <bbox> , here?\n### Assistant: yes\n### " in text_of(processor, encoded["input_ids"])
    # "two tokens" of a question are two characters of a tokenizer of bytes
    assert learnt(processor, encoded) == "##### Assistant: yes\n### "


@pytest.mark.parametrize("prompt_format", ["v0", "v1", "chat"])
def test_the_prompt_that_asks_is_the_beginning_of_the_prompt_that_taught(prompt_format):
    processor = make(prompt_format)
    asked = processor.encode(sample(QUESTIONS[0]), generation=True)["input_ids"].tolist()
    taught = processor.encode(sample(*QUESTIONS[:2]))["input_ids"].tolist()
    open_end = 1 if prompt_format == "v0" else 0  # the blank after ### belongs to the answer's heading
    assert taught[: len(asked) - open_end] == asked[: len(asked) - open_end]


@pytest.mark.parametrize("prompt_format", ["v0", "v1", "chat"])
@pytest.mark.parametrize("shown", ["", "<image>\n"])
def test_each_independent_pair_behind_the_shared_ids_is_its_own_prompt(prompt_format, shown):
    processor = make(prompt_format)
    packed = processor.encode(sample(shown + QUESTIONS[0], *QUESTIONS[1:], independent_turns=True))
    ids, labels, segments = packed["input_ids"], packed["labels"], packed["segment_ids"]
    prefix = ids[segments == 0].tolist()
    assert segments.unique().tolist() == [0, 1, 2, 3]
    assert (labels[segments == 0] == IGNORE_INDEX).all()
    assert processor.image_patch_token_id in prefix and processor.region_token_id not in prefix
    for pair in range(3):
        single = processor.encode(sample(shown + QUESTIONS[2 * pair], QUESTIONS[2 * pair + 1]))
        suffix = segments == pair + 1
        end = int((single["labels"] != IGNORE_INDEX).nonzero()[-1]) + 1  # what follows is neither learnt nor seen
        assert prefix + ids[suffix].tolist() == single["input_ids"][:end].tolist()
        assert labels[suffix].tolist() == single["labels"][len(prefix) : end].tolist()
        assert packed["position_ids"][suffix].tolist() == list(range(len(prefix), end))
    assert packed["position_ids"][segments == 0].tolist() == list(range(len(prefix)))


def test_a_region_asked_about_twice_independently_is_introduced_twice():
    packed = make("chat").encode(sample(*QUESTIONS, independent_turns=True))
    np.testing.assert_allclose(packed["boxes"], [NORMALISED[1], NORMALISED[0], NORMALISED[1]], atol=1e-7)
    assert packed["box_indices"].tolist() == [1, 0, 1]


def test_the_shared_ids_end_before_the_question_even_if_all_questions_begin_alike():
    processor = make("chat")
    packed = processor.encode(sample("What is <region1>?", "a", "What is <region2>?", "b", independent_turns=True))
    shared = text_of(processor, packed["input_ids"][packed["segment_ids"] == 0])
    assert shared.endswith("provides an overview of the picture.\n")


def test_of_independent_turns_only_the_last_question_is_asked():
    processor = make("chat")
    asked = processor.encode(sample(*QUESTIONS[:3], independent_turns=True), generation=True)
    alone = processor.encode(sample(QUESTIONS[2]), generation=True)
    assert asked["input_ids"].tolist() == alone["input_ids"].tolist()
    assert "segment_ids" not in asked


def test_independent_pairs_that_do_not_fit_are_left_out_and_counted():
    whole = make("chat").encode(sample(*QUESTIONS, independent_turns=True))
    limit = len(whole["input_ids"]) - 1
    short = make("chat", model_max_length=limit).encode(sample(*QUESTIONS, independent_turns=True))
    assert (short["n_dropped_rounds"], short["segment_ids"].max().item(), len(short["boxes"])) == (1, 2, 3)


def test_training_loses_the_last_rounds_of_a_long_dialogue_with_their_boxes():
    whole = make("chat").encode(sample(*QUESTIONS[:4]))
    short = make("chat", model_max_length=len(whole["input_ids"]) - 1).encode(sample(*QUESTIONS[:4]))
    alone = make("chat").encode(sample(*QUESTIONS[:2]))
    assert short["input_ids"].tolist() == alone["input_ids"].tolist()
    assert (short["n_dropped_rounds"], short["n_cut_answers"], len(short["boxes"])) == (1, 0, 1)


def test_asking_loses_rounds_in_the_middle_and_introduces_their_regions_later():
    turns = ("Look.", "ok", "What is <region1>?", "a dog", "And is <region1> old?")
    whole = make("chat").encode(sample(*turns), generation=True)
    processor = make("chat", model_max_length=len(whole["input_ids"]) - 1)
    short = processor.encode(sample(*turns), generation=True)
    alone = processor.encode(sample(*turns[:2], turns[4]), generation=True)
    assert short["n_dropped_rounds"] == 1
    assert short["input_ids"].tolist() == alone["input_ids"].tolist()
    assert text_of(processor, short["input_ids"]).count("And is region1 <bbox> old?") == 1


def test_an_answer_too_long_by_itself_loses_its_end_only():
    processor = make("chat", model_max_length=150)
    encoded = processor.encode(sample("What is <region1>?", "a very " + "long " * 50 + "tale"))
    assert len(encoded["input_ids"]) == 150
    assert learnt(processor, encoded).startswith("a very long long")
    assert (encoded["n_dropped_rounds"], encoded["n_cut_answers"]) == (0, 1)


def test_a_sample_without_an_image_is_text_alone():
    encoded = make().encode(sample("Hello.", "Hi.", image=None))
    assert "pixel_values" not in encoded and "boxes" not in encoded
    assert "labels" in encoded


def test_a_batch_holds_pixels_and_boxes_of_the_samples_with_an_image():
    batch = make()([sample("Hi.", "Ho.", image=None), sample(*QUESTIONS[:2]), sample("Hi.", "Ho.")])
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert [len(boxes) for boxes in batch["boxes"]] == [1, 0]
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert "segment_ids" not in batch


def test_prompts_that_ask_are_padded_on_the_left():
    batch = make()([sample("Hi.", image=None), sample(QUESTIONS[0])], generation=True)
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    assert batch["attention_mask"][0, 0] == 0 and batch["input_ids"][0, 0] == 600
    assert "labels" not in batch


def test_text_is_encoded_alike_without_opening_the_image():
    processor = make()
    opened = processor.encode(sample(*QUESTIONS))
    unseen = processor.encode_text(sample(*QUESTIONS, image="nowhere.png"), image_size=(40, 80))
    assert "pixel_values" not in unseen
    for key in ("input_ids", "labels", "boxes"):
        assert torch.equal(opened[key], unseen[key])


def test_boxes_in_fractions_need_no_image_size():
    fractions = sample(*QUESTIONS[:2], image="nowhere.png", boxes=NORMALISED, box_frame="unit")
    np.testing.assert_allclose(make().encode_text(fractions)["boxes"], [NORMALISED[1]], atol=1e-7)


def test_boxes_beyond_the_image_are_clipped_only_where_bilinear():
    beyond = [[-8, 4, 88, 20]]
    free = make().encode(sample("<bbox>", "x", boxes=beyond, image_pipeline="dialogue"))["boxes"]
    clipped = make().encode(sample("<bbox>", "x", boxes=beyond, image_pipeline="detection"))["boxes"]
    np.testing.assert_allclose(free, [[-0.1, 0.1, 1.1, 0.5]], atol=1e-7)
    np.testing.assert_allclose(clipped, [[0, 0.1, 1, 0.5]], atol=1e-7)


@pytest.mark.parametrize("pipeline", ["detection", "dialogue"])
@pytest.mark.parametrize("flip", [False, True])
def test_boxes_move_with_the_image(pipeline, flip):
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[16:32, 8:24] = 255
    augmented = sample(
        "<bbox>", "x", image=image, boxes=[[8, 16, 24, 32]], image_pipeline=pipeline,
        augmentation=Augmentation((5, -3), flip),
    )  # fmt: skip
    encoded = make(image_size=64, image_mean=(0, 0, 0), image_std=(1, 1, 1)).encode(augmented)
    x1, y1, x2, y2 = (encoded["boxes"][0] * 64).round().int().tolist()
    assert (y1, y2) == (13, 29) and (x1, x2) == ((35, 51) if flip else (13, 29))
    white = encoded["pixel_values"][0] > 0.5
    assert white[y1:y2, x1:x2].all() and int(white.sum()) == 256


def test_an_answer_is_what_comes_before_the_stop_word_without_the_speaker():
    v0, v1, chat = make("v0"), make("v1"), make("chat")
    encode = v0.tokenizer.encode
    assert v0.decode(encode("Assistant: A dog, #1.\n### Human: So?", add_special_tokens=False)) == "A dog, #1."
    assert v0.decode(torch.tensor(encode("Assistant: A dog.\n##", add_special_tokens=False))) == "A dog.\n##"
    assert v1.decode([*encode("A dog.", add_special_tokens=False), 2, *encode("USER: So?")]) == "A dog."
    assert chat.decode(chat.tokenizer.encode("a red apple<|im_end|>\n<|im_start|>user")) == "a red apple"
    assert chat.decode(chat.tokenizer.encode("é <bbox>ö")) == "é ö"


def test_generation_knows_where_to_stop():
    v0, v1, chat = make("v0"), make("v1"), make("chat")
    assert (v0.stop_strings, v0.stop_token_ids) == (["###"], [2])
    assert (v1.stop_strings, v1.stop_token_ids) == (["</s>"], [2])
    assert chat.stop_strings == ["<|im_end|>"]
    assert chat.stop_token_ids == [chat.tokenizer.convert_tokens_to_ids("<|im_end|>")]


@pytest.mark.parametrize("prompt_format", ["v0", "v1", "chat"])
def test_a_saved_processor_comes_back_through_auto_processor(prompt_format, tmp_path):
    processor = make(prompt_format, image_mean=(0.5, 0.5, 0.5), model_max_length=500, system_prompt="Be brief.")
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, GPT4RoIProcessor)
    assert loaded.to_dict() == processor.to_dict()
    for key in ("input_ids", "labels", "pixel_values"):
        assert torch.equal(loaded.encode(sample(*QUESTIONS))[key], processor.encode(sample(*QUESTIONS))[key])


def test_a_processor_can_be_sent_to_another_process():
    processor = make("chat")
    sent = pickle.loads(pickle.dumps(processor))
    assert torch.equal(sent.encode(sample(*QUESTIONS))["input_ids"], processor.encode(sample(*QUESTIONS))["input_ids"])


def test_added_tokens_keep_their_ids_when_added_again():
    tokenizer = bytes_tokenizer()
    assert add_special_tokens(tokenizer) == 5  # it has a padding token
    ids = tokenizer.convert_tokens_to_ids(["<im_patch>", "<bbox>", "<point>", "<im_start>", "<im_end>"])
    assert ids == [258, 259, 260, 261, 262]
    assert add_special_tokens(tokenizer) == 0
    assert tokenizer.convert_tokens_to_ids("<bbox>") == 259


def test_images_open_as_rgb_of_the_users_size(tmp_path):
    Image.fromarray(IMAGE).convert("L").save(tmp_path / "grey.png")
    image = make().load_image(tmp_path / "grey.png")
    assert (image.size, image.mode) == ((80, 40), "RGB")
    assert make().pixel_values(image).shape == (3, 32, 32)


def test_truncation_switched_on_in_the_tokenizer_does_not_reach_the_processor():
    processor = make("chat")
    before = processor.encode(sample(*QUESTIONS))["input_ids"]
    processor.tokenizer("once", truncation=True, max_length=5, padding="max_length")
    assert torch.equal(make("chat").encode(sample(*QUESTIONS))["input_ids"], before)
    other = processor.encode(sample("Is <region3> red?", "no"))["input_ids"]
    assert torch.equal(make("chat").encode(sample("Is <region3> red?", "no"))["input_ids"], other)


def test_an_encoded_sample_is_written_in_passages_with_what_is_learnt(pyramid_processor):
    turns = (Turn("user", "What is <region1>?"), Turn("assistant", "a cat"))
    encoded = pyramid_processor.encode_text(RegionSample("a.png", turns, np.ones((1, 4))), image_size=(8, 8))
    passages = pyramid_processor.supervision_spans(encoded["input_ids"], encoded["labels"])
    assert [text for text, learnt in passages if learnt] == ["a cat<|end|>"]
    assert [text for text, _ in passages][1] == f"[{pyramid_processor.image_seq_length} image tokens]"
    assert "What is region1 <bbox>?" in passages[2][0]


def test_independent_pairs_are_written_as_conversations_of_their_own(pyramid_processor):
    turns = [Turn("user", "What is <region1>?"), Turn("assistant", "a cat")]
    turns += [Turn("user", "What is <region2>?"), Turn("assistant", "a dog")]
    pairs = RegionSample("a.png", tuple(turns), np.ones((2, 4)), independent_turns=True)
    single = RegionSample("a.png", tuple(turns[2:]), np.ones((2, 4)))
    encoded = pyramid_processor.encode_text(pairs, image_size=(8, 8))
    alone = pyramid_processor.encode_text(single, image_size=(8, 8))

    spans = pyramid_processor.supervision_spans(encoded["input_ids"], encoded["labels"], encoded["segment_ids"])
    first, second = "".join(text for text, _ in spans).split("\n— conversation 2 of 2, which sees no other —\n")
    assert first.startswith("— conversation 1 of 2, which sees no other —\n") and "a dog" not in first
    whole = "".join(text for text, _ in pyramid_processor.supervision_spans(alone["input_ids"], alone["labels"]))
    assert second == whole.rstrip("\n")
    assert [text for text, learnt in spans if learnt] == ["a cat<|end|>", "a dog<|end|>"]


def test_the_processor_shows_transparency_as_the_sample_says():
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    turns = (Turn("user", "What?"), Turn("assistant", "Nothing"))
    white, black = (make("chat").encode(RegionSample(image, turns, ignore_alpha=hidden)) for hidden in (False, True))
    assert white["pixel_values"].min() > 1 and black["pixel_values"].max() < 0
