"""The processor as any other of transformers: images=, text=, boxes=, chat messages, decoding, saving."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor, tiny_tokenizer
from transformers import AutoProcessor, BatchFeature

from gpt4roi.errors import InputError
from gpt4roi.processing.processor import GPT4RoIProcessor
from gpt4roi.structures import RegionSample, Turn

FORMATS = ("chat", "v0", "v1", "llava_v1")
BOXES = [[2, 3, 20, 25], [10, 10, 30, 31]]
QUESTION = "What is <region2> beside <region1>?"


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def processors():
    config = tiny_model().config
    return {name: tiny_processor(config, name) for name in FORMATS}


def present_path(processor, image, question=QUESTION, boxes=BOXES, more=()):
    return processor(RegionSample(image, (Turn("user", question), *more), boxes), generation=True)


def assert_equal(batch, expected):
    assert isinstance(batch, BatchFeature) and set(batch) == set(expected)
    for name, value in expected.items():
        rows = zip(batch[name], value, strict=True)
        assert all(torch.equal(one, other) for one, other in rows), name


@pytest.mark.parametrize("name", FORMATS)
def test_a_question_an_image_and_boxes_are_encoded_as_the_sample_of_them(processors, image, name):
    processor = processors[name]
    expected = present_path(processor, image)
    assert_equal(processor(images=image, text=QUESTION, boxes=BOXES, return_tensors="pt"), expected)
    assert_equal(processor(images=[image], text=[QUESTION], boxes=[BOXES]), expected)
    assert expected["boxes"][0][0].tolist() == pytest.approx([10 / 40, 10 / 32, 30 / 40, 31 / 32])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("answered", [False, True])
def test_a_chat_is_written_and_encoded_as_the_sample_of_it(processors, image, name, answered):
    processor = processors[name]
    talk = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]}]
    more = ()
    if answered:
        talk += [{"role": "assistant", "content": "A hen."}, {"role": "user", "content": "And <region1>?"}]
        more = (Turn("assistant", "A hen."), Turn("user", "And <region1>?"))
    expected = present_path(processor, image, more=more)
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    assert_equal(processor.apply_chat_template(talk, boxes=BOXES, **options), expected)
    written = processor.apply_chat_template(talk, add_generation_prompt=True)
    assert isinstance(written, str) and "<region2>" in written and written.count("<image>") == 1
    assert_equal(processor(images=image, text=written, boxes=BOXES), expected)
    talk[0]["content"][0]["boxes"] = BOXES
    assert_equal(processor.apply_chat_template(talk, processor_kwargs={"padding": True}, **options), expected)
    assert torch.equal(
        processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True), expected["input_ids"]
    )


@pytest.mark.parametrize("name", FORMATS)
def test_the_chat_template_in_jinja_writes_the_prompt_format(processors, name):
    processor = processors[name]
    talk = [("user", "What?"), ("assistant", "A hen."), ("user", "Where?")]
    messages = [{"role": role, "content": text} for role, text in talk]
    for generation, steps in ((True, messages), (False, messages[:2])):
        for system in ([], [{"role": "system", "content": "Be brief."}]):
            written = processor.tokenizer.apply_chat_template(
                system + steps, chat_template=processor.chat_template, tokenize=False, add_generation_prompt=generation
            )
            assert written == processor.apply_chat_template(system + steps, add_generation_prompt=generation)
            assert bool(system) == ("Be brief." in written)


def test_the_last_message_is_gone_on_with(processors):
    talk = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A red"}]
    assert processors["chat"].apply_chat_template(talk, continue_final_message=True).endswith("assistant\nA red")
    assert processors["v0"].apply_chat_template(talk, continue_final_message=True).endswith("### Assistant: A red")


def test_several_texts_are_padded_left_and_those_without_an_image_have_none(processors, image):
    processor = processors["chat"]
    texts = [QUESTION, "And you?", "Is this <region1>?"]
    boxes = [BOXES, [], BOXES[:1]]
    batch = processor(images=[image, None, image], text=texts, boxes=boxes, padding=True, return_tensors="pt")
    singles = [processor(images=one, text=text, boxes=rows or None) for one, text, rows in
               zip([image, None, image], texts, boxes, strict=True)]  # fmt: skip
    for row, single in enumerate(singles):
        ids = single["input_ids"][0]
        assert torch.equal(batch["input_ids"][row, -len(ids) :], ids) and batch["attention_mask"][row].sum() == len(ids)
    assert len(batch["boxes"]) == len(batch["pixel_values"]) == 2
    nested = processor(images=[[image], [], [image]], text=texts, boxes=[BOXES, BOXES[:1]])
    assert_equal(nested, batch)
    right = processor(text=[*texts[1:2], "No."], padding_side="right")
    assert right["attention_mask"][1].tolist() == sorted(right["attention_mask"][1].tolist(), reverse=True)


def test_the_image_token_may_stand_in_a_text_once_or_as_often_as_among_the_ids(processors, image):
    processor = processors["chat"]
    expected = present_path(processor, image, "<image>\nWhat is <region1>?", BOXES[:1])
    for token in ("<image>", processor.image_token, f"<im_start>{processor.image_token * 16}<im_end>"):
        assert_equal(processor(images=image, text=f"{token}\nWhat is <region1>?", boxes=BOXES[:1]), expected)
    assert (expected["input_ids"] == processor.image_token_id).sum() == processor.image_seq_length
    assert processor.tokenizer.convert_tokens_to_ids(processor.image_token) == processor.image_token_id
    counted = processor._get_num_multimodal_tokens(image_sizes=[(32, 40), (8, 8)])
    assert counted.num_image_tokens == [16, 16]
    marked = processor(images=image, text="What is <region1>?", boxes=BOXES[:1], return_mm_token_type_ids=True)
    assert marked["mm_token_type_ids"].sum() == 16


def test_images_come_as_files_bytes_arrays_and_base64_upright(processors, image, tmp_path):
    processor = processors["chat"]
    turned = image.copy()
    turned.getexif()[0x0112] = 6
    file = io.BytesIO()
    turned.save(file, "PNG", exif=turned.getexif())
    (tmp_path / "photo.png").write_bytes(file.getvalue())
    upright = image.transpose(Image.Transpose.ROTATE_270)
    expected = present_path(processor, upright, "What is <region1>?", BOXES[:1])
    for given in (str(tmp_path / "photo.png"), file.getvalue(), np.asarray(upright)):
        assert_equal(processor(images=given, text="What is <region1>?", boxes=BOXES[:1]), expected)
    block = {"type": "image", "base64": base64.b64encode(file.getvalue()).decode(), "boxes": BOXES[:1]}
    talk = [{"role": "user", "content": [block, {"type": "text", "text": "What is <region1>?"}]}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    assert_equal(processor.apply_chat_template([talk], **options), expected)
    assert torch.equal(processor.image_processor(upright)["pixel_values"], expected["pixel_values"])
    assert processor.image_processor.size == {"height": 32, "width": 32}


def test_a_batch_moves_to_another_dtype_without_its_boxes(processors, image):
    batch = processors["chat"](images=image, text=QUESTION, boxes=BOXES).to("cpu", torch.bfloat16)
    assert (batch.pixel_values.dtype, batch.boxes[0].dtype) == (torch.bfloat16, torch.float32)
    assert list(batch) == [*processors["chat"].model_input_names]
    assert processors["chat"](images=image, text=QUESTION, boxes=BOXES).to("meta").boxes[0].device.type == "meta"


def test_decoding_takes_the_arguments_of_a_tokenizer(processors):
    processor = processors["chat"]
    ids = processor.tokenizer("a hen<|end|>").input_ids
    assert processor.decode(ids) == processor.decode(ids, skip_special_tokens=True) == "a hen"
    assert processor.decode(ids, skip_special_tokens=False) == "a hen<|end|>"
    assert processor.batch_decode([ids, ids], skip_special_tokens=True) == ["a hen"] * 2
    assert processor.post_process_image_text_to_text(torch.tensor([ids])) == ["a hen"]


@pytest.mark.parametrize("name", ["chat", "v0"])
def test_it_is_saved_and_opened_with_the_tokenizer_s_own_chat_template(processors, image, name, tmp_path):
    processor = processors[name]
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is GPT4RoIProcessor and again.tokenizer.chat_template == tiny_tokenizer().chat_template
    assert again.to_dict() == processor.to_dict()
    assert_equal(again(images=image, text=QUESTION, boxes=BOXES), present_path(processor, image))
    again.tokenizer.chat_template = None
    assert name == "chat" or again.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / "chat_template.jinja").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": QUESTION, "boxes": BOXES}, "the text refers to regions but there is no image|<region2> but 0 boxes"),
        ({"images": "image", "text": QUESTION, "boxes": BOXES[:1]}, "<region2> but 1 box"),
        ({"images": "image", "text": ["a", "b", "c"]}, "1 images for 3 texts, 0 of which show an image"),
        ({"images": ["image", "image"], "text": "a"}, "2 images for 1 texts"),
        ({"images": [["image", "image"]], "text": ["a"]}, "2 images for one text"),
        ({"images": "image"}, "give text, or samples"),
        ({"text": "a", "return_tensors": "np"}, "PyTorch tensors only"),
        ({"text": "a", "padding": "max_length"}, "padded to their longest sample only"),
        ({"text": "a", "videos": ["film"]}, "the processor has no argument 'videos'"),
        ({"text": "abc", "truncation": True, "max_length": 3}, "tokens, of which 3 are allowed"),
        ({"images": "image", "text": "<|start|>user\nWhat?<|end|>\n"}, "0 <image> in the prompt but 1 image"),
        ({"images": "image", "text": QUESTION, "boxes": BOXES[0]}, "expected a list of boxes, got one box"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(processors, image, arguments, message):
    def put(value):
        return image if value == "image" else [put(one) for one in value] if isinstance(value, list) else value

    given = {name: put(value) if name == "images" else value for name, value in arguments.items()}
    with pytest.raises(InputError, match=message):
        processors["chat"](**given)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "video"}], "must be of type text or image"),
        ([{"type": "image"}, {"type": "image"}], "2 images in one conversation"),
        (None, "content must be text or a list of blocks"),
        ([{"type": "image", "base64": "!"}], "base64 cannot be decoded"),
    ],
)
def test_a_message_of_another_form_is_refused(processors, content, message):
    with pytest.raises(InputError, match=message):
        processors["chat"].apply_chat_template([{"role": "user", "content": content}])


def test_a_chat_template_or_a_role_of_others_is_refused(processors):
    for talk, options, message in (
        ([{"role": "tool", "content": "a"}], {}, "is of role 'tool'"),
        ([{"role": "user", "content": "a"}], {"chat_template": "{{ messages }}"}, "belongs to the weights"),
        ([{"role": "system", "content": "a"}], {}, "no message of a user"),
    ):
        with pytest.raises(InputError, match=message):
            processors["chat"].apply_chat_template(talk, **options)
