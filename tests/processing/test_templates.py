"""Templates: what they write, what is learnt, and how mentions of regions are written."""

import pytest
from text_samples import CHATML, bytes_tokenizer

from gpt4roi.errors import InputError
from gpt4roi.processing.mentions import as_plain_text, number_boxes, write_mentions
from gpt4roi.processing.templates import V0, V1, ChatTemplate, role_of_speaker

TRIMMING = (
    "{{ '<|im_start|>' }}{% for m in messages %}{{ '[' + m['role'] + ']\n\n' + m['content'] | trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]\n\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}A: {% generation %}{{ m['content'] }}<|im_end|>"
    "{% endgeneration %}{% else %}U: {{ m['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)
DEMANDING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
)

DIALOGUE = [("user", "Hi."), ("assistant", "Hello."), ("user", "Bye."), ("assistant", "So long.")]


def learnt(prompt):
    return [prompt.text[start:end] for start, end, _ in prompt.spans]


def test_v0_learns_answers_with_their_headings_and_two_tokens_of_each_question():
    prompt = V0.render(DIALOGUE[:2])
    assert prompt.text.endswith("\n\n### Human: Hi.\n### Assistant: Hello.\n### ")
    assert learnt(prompt) == ["### Human: Hi.\n", "### Assistant: Hello.\n", "### "]
    assert [limit for *_, limit in prompt.spans] == [2, None, None]


def test_v0_asks_by_ending_with_the_mark():
    prompt = V0.render(DIALOGUE[:1], generation=True)
    assert prompt.text.endswith("### Human: Hi.\n### ") and prompt.spans == ()


def test_v1_learns_answers_and_their_end_token():
    prompt = V1.render(DIALOGUE)
    assert prompt.text.endswith(" USER: Hi. ASSISTANT: Hello.</s>USER: Bye. ASSISTANT: So long.</s>")
    assert learnt(prompt) == [" Hello.</s>", " So long.</s>"]


def test_v1_asks_by_ending_with_the_speaker():
    assert V1.render(DIALOGUE[:3], generation=True).text.endswith("</s>USER: Bye. ASSISTANT:")


def test_v1_leaves_out_a_greeting_before_the_first_question():
    assert V1.render([("assistant", "Welcome."), *DIALOGUE]) == V1.render(DIALOGUE)


@pytest.mark.parametrize("template", [CHATML, TRIMMING, MARKED])
def test_a_chat_template_is_rendered_as_the_tokenizer_does(template):
    tokenizer = bytes_tokenizer(template)
    messages = [{"role": role, "content": text} for role, text in DIALOGUE]
    chat = ChatTemplate(tokenizer)
    assert chat.render(DIALOGUE).text == tokenizer.apply_chat_template(messages, tokenize=False)
    asked = tokenizer.apply_chat_template(messages[:3], tokenize=False, add_generation_prompt=True)
    assert chat.render(DIALOGUE[:3], generation=True).text == asked


@pytest.mark.parametrize("template", [CHATML, TRIMMING, MARKED])
def test_a_chat_template_learns_answers_up_to_the_end_token(template):
    prompt = ChatTemplate(bytes_tokenizer(template)).render(DIALOGUE)
    assert learnt(prompt) == ["Hello.<|im_end|>", "So long.<|im_end|>"]


def test_blanks_around_a_text_are_treated_as_the_chat_template_treats_them():
    steps = [("user", " Hi. "), ("assistant", " Hello.\n")]
    assert learnt(ChatTemplate(bytes_tokenizer(CHATML)).render(steps)) == [" Hello.\n<|im_end|>"]
    assert learnt(ChatTemplate(bytes_tokenizer(TRIMMING)).render(steps)) == ["Hello.<|im_end|>"]


def test_an_answer_that_repeats_the_question_is_found_where_it_stands():
    prompt = ChatTemplate(bytes_tokenizer()).render([("user", "echo"), ("assistant", "echo")])
    assert [prompt.text[:start].count("echo") for start, *_ in prompt.spans] == [1]


def test_a_system_prompt_replaces_the_templates_own():
    prompt = ChatTemplate(bytes_tokenizer(), system_prompt="Be brief.").render(DIALOGUE[:2])
    assert prompt.text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.")


def test_the_token_that_ends_an_answer_stops_it():
    assert ChatTemplate(bytes_tokenizer()).stops("</s>") == ("<|im_end|>", "</s>")


def test_a_template_that_refuses_the_order_of_roles_is_quoted():
    chat = ChatTemplate(bytes_tokenizer(DEMANDING))
    with pytest.raises(InputError, match="refuses user, user: roles must alternate"):
        chat.render([("user", "a"), ("user", "b")])


def test_a_template_without_an_end_token_is_refused():
    endless = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    with pytest.raises(InputError, match=r"ends an answer with '\\n', which holds no special token to stop at"):
        ChatTemplate(bytes_tokenizer(endless))


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(InputError, match="no chat template; choose prompt_format 'v0' or 'v1'"):
        ChatTemplate(bytes_tokenizer(None))


def test_speakers_of_any_case_are_recognised_and_others_kept():
    assert [role_of_speaker(name) for name in ("human", "Human", "GPT", "system")] == [
        "user",
        "user",
        "assistant",
        "system",
    ]


def test_a_region_is_introduced_at_its_first_mention_and_only_named_later():
    texts = ["Compare <region2> with <region1>.", "<region2> is larger.", "And <region1>?"]
    written, boxes = write_mentions(texts, number_boxes(texts, 2))
    assert written == ["Compare region2 <bbox> with region1 <bbox>.", "region2 is larger.", "And region1?"]
    assert boxes == [1, 0]


def test_bare_regions_take_the_boxes_in_order_over_all_turns():
    texts = ["<bbox>", "car", "<bbox> or <bbox>?"]
    assert number_boxes(texts, 3) == [[0], [], [1, 2]]
    assert write_mentions(texts[2:], number_boxes(texts, 3)[2:]) == (["<bbox> or <bbox>?"], [1, 2])


def test_boxes_that_nobody_mentions_are_allowed():
    assert number_boxes(["What is <region2>?"], 7) == [[]]
    assert number_boxes(["What is it?"], 7) == [[]]


@pytest.mark.parametrize(
    ("texts", "boxes", "message"),
    [
        (["What is <region5>?"], 3, "<region5> but 3 boxes in d.json#4"),
        (["What is <region0>?"], 3, "<region0> but 3 boxes in d.json#4; regions are numbered from 1"),
        (["What is <region1>?"], 0, "<region1> but 0 boxes in d.json#4"),
        (["<bbox>", "<bbox>"], 1, "2 <bbox> in the text but 1 box in d.json#4"),
        (["<bbox>"], 2, "1 <bbox> in the text but 2 boxes in d.json#4"),
        (["<bbox> near <region1>"], 2, "by <regionN> or by bare <bbox>, got both in d.json#4"),
    ],
)
def test_references_that_do_not_fit_the_boxes_are_refused(texts, boxes, message):
    with pytest.raises(InputError) as caught:
        number_boxes(texts, boxes, " in d.json#4")
    assert message in str(caught.value)


def test_what_a_model_says_brings_no_box_and_no_image_into_later_prompts():
    said = "like <region7> in <image>, a <bbox> of 2 < 3"

    assert as_plain_text(said) == "like region7 in image, a bbox of 2 < 3"
    assert number_boxes(["What is <region1>?", as_plain_text(said)], 1) == [[], []]
