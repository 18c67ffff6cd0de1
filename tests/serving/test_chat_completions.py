"""Chat completions through the official client of OpenAI's API: answers are RegionChat's, errors are in its form."""

from __future__ import annotations

import threading
import time

import openai
import pytest
from api_client import post, question
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.model import Model

from gpt4roi import RegionChat

pytestmark = pytest.mark.heavy

BOX, OTHER = [5, 4, 40, 30], [20, 10, 55, 38]
WHAT = "What is <region1>?"


def alone(chat, picture, *rounds, **sampling) -> list[str]:
    """RegionChat's answers to rounds of (question, new boxes)."""
    talk = RegionChat(chat.model, chat.processor)
    talk.set_image(picture)
    return [talk.ask(text, boxes, **sampling) for text, boxes in rounds]


def test_a_question_about_a_box_gets_the_answer_of_region_chat(client, chat, picture, url):
    found = client.chat.completions.create(
        model="tiny", messages=[question(WHAT, url)], max_tokens=12, extra_body={"boxes": [BOX]}
    )
    (expected,) = alone(chat, picture, (WHAT, [BOX]), max_new_tokens=12)

    assert found.choices[0].message.content == expected
    assert ChatCompletion.model_validate(found.model_dump(), strict=False).object == "chat.completion"
    assert found.choices[0].finish_reason == "length" and found.model == "tiny"
    assert found.usage.completion_tokens == 12
    assert found.usage.total_tokens == found.usage.prompt_tokens + 12 > 40


@pytest.mark.parametrize(
    ("text", "extra"),
    [
        (WHAT, {"boxes": [BOX]}),
        (WHAT, {"chat_template_kwargs": {"boxes": [BOX]}}),
        ("What is <box>5,4,40,30</box>?", {}),
        ("What is <box> 5, 4.0, 40,30 </box>?", {}),
    ],
)
def test_every_way_to_write_a_region_means_the_same(client, chat, picture, url, text, extra):
    found = client.chat.completions.create(model="tiny", messages=[question(text, url)], max_tokens=9, extra_body=extra)
    assert [found.choices[0].message.content] == alone(chat, picture, (WHAT, [BOX]), max_new_tokens=9)


def test_boxes_in_the_text_are_numbered_on_after_the_others_and_keep_their_number(client, chat, picture, url):
    text = "Which is larger, <region1> or <box>20,10,55,38</box>, I mean <box>20,10,55,38</box>?"
    found = client.chat.completions.create(
        model="tiny", messages=[question(text, url)], max_tokens=9, extra_body={"boxes": [BOX]}
    )
    same = "Which is larger, <region1> or <region2>, I mean <region2>?"
    assert [found.choices[0].message.content] == alone(chat, picture, (same, [BOX, OTHER]), max_new_tokens=9)


def test_a_conversation_goes_on_as_in_region_chat(client, chat, picture, url):
    rounds = [(WHAT, [BOX]), ("And <region2>?", [OTHER]), ("Is region1 left of region2?", None)]
    expected = alone(chat, picture, *rounds, max_new_tokens=7)
    messages, found = [], []
    for number, (text, _) in enumerate(rounds):
        messages.append(question(text, None if number else url))
        boxes = [BOX, OTHER][: number + 1]
        answer = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=7, extra_body={"boxes": boxes}
        )
        found.append(answer.choices[0].message.content)
        messages.append({"role": "assistant", "content": found[-1]})

    assert found == expected
    assert answer.usage.prompt_tokens_details.cached_tokens > answer.usage.prompt_tokens // 2


def test_a_stream_adds_up_to_the_answer_with_usage_at_its_end(client, chat, picture, url):
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=[question(WHAT, url)],
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"boxes": [BOX]},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    assert [text] == alone(chat, picture, (WHAT, [BOX]), max_new_tokens=24)
    assert len(chunks) > 5 and len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 24 and chunks[-1].choices == []
    assert all(ChatCompletionChunk.model_validate(chunk.model_dump()) for chunk in chunks)


def test_n_answers_with_a_seed_are_the_same_again_and_differ(client, chat, picture, url):
    def ask(**options):
        found = client.chat.completions.create(
            model="tiny", messages=[question(WHAT, url)], max_tokens=10, temperature=1.5, seed=5,
            extra_body={"boxes": [BOX]}, **options,
        )  # fmt: skip
        return [choice.message.content for choice in found.choices]

    three = ask(n=3)
    assert three == ask(n=3) and len(set(three)) == 3
    assert three[:1] == alone(chat, picture, (WHAT, [BOX]), max_new_tokens=10, temperature=1.5, seed=5)
    chunks = client.chat.completions.create(
        model="tiny", messages=[question(WHAT, url)], max_tokens=10, temperature=1.5, seed=5, n=3, stream=True,
        extra_body={"boxes": [BOX]},
    )  # fmt: skip
    streamed = ["", "", ""]
    for chunk in chunks:
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == three


def test_log_probabilities_come_with_the_tokens_that_make_up_the_text(client, url):
    asked = {"model": "tiny", "messages": [question(WHAT, url)], "max_tokens": 6, "logprobs": True, "top_logprobs": 2}
    found = client.chat.completions.create(**asked, extra_body={"boxes": [BOX]})
    content = found.choices[0].logprobs.content

    assert len(content) == 6
    assert all(one.logprob <= 0 and one.top_logprobs[0].logprob == one.logprob for one in content), "greedy"
    assert all(len(one.top_logprobs) == 2 for one in content)
    chunks = list(client.chat.completions.create(**asked, stream=True, extra_body={"boxes": [BOX]}))
    streamed = [one for c in chunks if c.choices[0].logprobs for one in c.choices[0].logprobs.content]
    assert [one.token for one in streamed] == [one.token for one in content]


def test_a_stop_string_ends_the_answer_before_it(client, chat, picture, url):
    (whole,) = alone(chat, picture, (WHAT, [BOX]), max_new_tokens=20)
    stop = whole[4:6]
    found = client.chat.completions.create(
        model="tiny", messages=[question(WHAT, url)], max_tokens=20, stop=[stop], extra_body={"boxes": [BOX]}
    )
    assert found.choices[0].message.content == whole.partition(stop)[0].strip()
    assert found.choices[0].finish_reason == "stop"


def test_a_question_without_an_image_is_one_about_text(client):
    found = client.chat.completions.create(model="tiny", messages=[question("Hello?")], max_tokens=3)
    assert found.usage.completion_tokens == 3


def test_many_clients_at_once_get_their_own_answers(client, chat, picture, url):
    boxes = [[x, y, x + 20, y + 15] for x in (0, 12, 25, 38) for y in (0, 9, 20)]
    expected = [alone(chat, picture, (WHAT, [box]), max_new_tokens=10)[0] for box in boxes]
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        answer = client.chat.completions.create(
            model="tiny", messages=[question(WHAT, url)], max_tokens=10, extra_body={"boxes": [boxes[number]]}
        )
        found[number] = answer.choices[0].message.content

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(boxes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(boxes))] == expected
    assert len(set(expected)) > 3


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_whose_client_has_gone_leaves_the_batch(api, client, url, stream):
    before = api.worker.counts["cancelled"]
    asked = {"model": "tiny", "messages": [question(WHAT, url)], "max_tokens": 3000, "extra_body": {"boxes": [BOX]}}
    if stream:
        slow = api.worker._decoder.model.register_forward_pre_hook(lambda *_: time.sleep(0.05))
        with client.chat.completions.create(**asked, stream=True) as chunks:
            next(iter(chunks))
    else:
        hold = threading.Event()
        api.worker.call(lambda: hold.wait(30))
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=2).chat.completions.create(**asked)
        hold.set()
    deadline = time.monotonic() + 30
    while api.worker.counts["cancelled"] == before and time.monotonic() < deadline:
        time.sleep(0.05)
    if stream:
        slow.remove()
    assert api.worker.counts["cancelled"] == before + 1 and api.worker.num_running == 0


FAULTS = [
    ({"boxes": [[40, 4, 5, 30]]}, WHAT, r"box 1 \(40,4,5,30\): corners are exchanged", "box_inverted"),
    ({"boxes": [[5, 4, 400, 30]]}, WHAT, "box 1 .*reaches outside the image, which is 60x40 pixels", None),
    ({"boxes": [BOX]}, "What is <region2>?", "<region2> but 1 box in the image|<region2> but 1 box", None),
    ({"boxes": [BOX]}, "What is it?", "boxes: 1 given but no message mentions one; write <region1>", None),
    ({}, "What is <box>1,2,3</box>?", "<box> holds four numbers x1,y1,x2,y2 in pixels of the image, got '1,2,3'", None),
    ({}, "What is <box>1,2,3,4?", "a region in the text is <box>x1,y1,x2,y2</box>, got only one end of it", None),
    ({}, "What is 1,2,3,4</box>?", "a region in the text is <box>x1,y1,x2,y2</box>, got only one end of it", None),
    ({}, "   ", "the question is empty", None),
    ({"boxes": [BOX], "boxs": []}, WHAT, "boxs: is no field of this request", "invalid_field"),
    ({"boxes": [BOX], "chat_template_kwargs": {"boxes": [BOX]}}, WHAT, "boxes: given twice", None),
    ({"boxes": [BOX], "temperature": -1}, WHAT, "temperature must be 0", None),
    ({"boxes": [BOX], "temperature": "hot"}, WHAT, "temperature: input should be a valid number, got 'hot'", None),
    ({"boxes": [BOX], "max_tokens": 0}, WHAT, "max_new_tokens must be at least 1, got 0", None),
    ({"boxes": [BOX], "n": 99}, WHAT, "n: input should be less than or equal to 16, got 99", None),
    ({"boxes": [BOX], "tools": [{}]}, WHAT, "tools: is no field of this request", None),
    ({"boxes": [BOX], "frequency_penalty": 1.0}, WHAT, "frequency_penalty: input should be", None),
    ({"boxes": [BOX], "max_tokens": 10**6}, "word " * 2000 + WHAT, "too long|no longer fits|shortest prompt", None),
]


@pytest.mark.parametrize(("extra", "text", "message", "code"), FAULTS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_a_request_is_a_bad_request_with_our_one_line(client, url, extra, text, message, code, stream):
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        client.chat.completions.create(model="tiny", messages=[question(text, url)], stream=stream, extra_body=extra)
    assert refused.value.type == "invalid_request_error"
    assert code is None or refused.value.code == code
    assert "\n" not in refused.value.body["message"]


def test_faults_of_messages_are_named(client, url):
    def refusal(*messages) -> str:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="tiny", messages=list(messages))
        return refused.value.body["message"]

    def part(**content) -> dict:
        return {"role": "user", "content": [{"type": "text", "text": "Hello?"}, content]}

    answer = {"role": "assistant", "content": "yes"}
    assert "takes no system message" in refusal({"role": "system", "content": "Be brief."}, question("Hi?"))
    assert "messages.1: user and assistant must alternate; expected assistant" in refusal(
        question("a?"), question("b?")
    )
    assert "the last message must be the user's question" in refusal(question("a?"), answer)
    other = url.replace("AAAA", "AAAB", 1)
    assert "about one image, got 2" in refusal(question("a?", url), answer, question("b?", other))
    assert "messages.0.role: input should be 'user'" in refusal({"role": "tool", "content": "x"})
    assert "messages.0.content.0.type: input should be 'text' or 'image_url'" in refusal(
        {"role": "user", "content": [{"type": "input_audio", "text": "x"}]}
    )
    one_kind = "messages.0.content.1: a part of type image_url has image_url, and no text"
    assert one_kind in refusal(part(type="image_url"))
    assert one_kind in refusal(part(type="image_url", image_url={"url": url}, text="Hello?"))
    assert "takes no system message" in refusal({**part(type="image_url", image_url={"url": url}), "role": "system"})


def test_stream_options_without_a_stream_are_refused(api):
    body = {"messages": [question("Hello?")], "stream_options": {"include_usage": True}}
    status, found, _ = post(api, "/v1/chat/completions", body)
    assert status == 400 and found["error"]["message"].startswith("the body: stream_options needs stream: true")


def test_models_are_listed_and_others_are_not_found(client):
    assert [Model.model_validate(one.model_dump()).id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "gpt4roi"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'; it is 'tiny'"):
        client.chat.completions.create(model="gpt-4", messages=[question("Hello?")])


def test_only_a_known_key_lets_a_client_in(client):
    with pytest.raises(openai.AuthenticationError, match="asks for an API key") as refused:
        client.with_options(api_key="sk-wrong").models.list()
    assert refused.value.code == "invalid_api_key"
    assert client.with_options(api_key="sk-other").models.list().data
