"""Requests of the API: their fields, checked, and the conversation that a list of chat messages stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from gpt4roi.constants import REGION_TOKEN
from gpt4roi.errors import InputError
from gpt4roi.generation.sampling import SamplingParams
from gpt4roi.processing.mentions import as_plain_text
from gpt4roi.processing.user_input import MAX_BOXES, clean_question, mentioned_regions, validate_regions
from gpt4roi.structures import Regions, RegionSample, Turn

MAX_CHOICES = 16
MAX_STOP = 16
MAX_TOP_LOG_PROBS = 20
MAX_TEXT = 100_000
"""Characters of one message; the model's context holds far fewer."""
MAX_LABELS = 256
MAX_QUESTIONS = 64

_BOX = re.compile(r"<box>([^<]*)</box>")
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Request = TypeVar("Request", bound=BaseModel)


class _Fields(BaseModel):
    """What chat and regions have in common: the model, and how answers are chosen."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Text = ""
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: Text | list[Text] | None = None
    stream: bool | None = False
    user: Any = None

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and len(value) > MAX_STOP:
            raise ValueError(f"expected {MAX_STOP} texts at most")
        return value

    def sampling(self) -> SamplingParams:
        """Returns the sampling parameters; greedy where nothing is said. Raises InputError out of range."""
        given: dict[str, Any] = {"top_p": self.top_p, "temperature": self.temperature, "stop": self.stop}
        given["max_new_tokens"] = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        given["seed"] = None if self.seed is None else self.seed % 2**63  # OpenAI's may be negative
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})


class _ImageUrl(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    url: str
    detail: Any = None


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "image_url"]
    text: Text | None = None
    image_url: _ImageUrl | None = None

    @model_validator(mode="after")
    def _check_content(self) -> _Part:
        other = "image_url" if self.type == "text" else "text"
        if getattr(self, self.type) is None or getattr(self, other) is not None:
            raise ValueError(f"a part of type {self.type} has {self.type}, and no {other}")
        return self


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["user", "assistant", "system", "developer"]
    content: Text | list[_Part] | None = None
    name: Any = None
    refusal: Any = None
    annotations: Any = None
    audio: Literal[None] = None
    tool_calls: Literal[None] = None
    function_call: Literal[None] = None


class _TemplateFields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    boxes: list[Any] | None = None


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = False


class ChatRequest(_Fields):
    """Body of `POST /v1/chat/completions`.

    boxes: boxes of the conversation, xyxy in pixels of the user's own image, or masks, points and strokes, as of
        user_input.validate_regions; the first is `<region1>`.
    """

    messages: list[_Message] = Field(min_length=1, max_length=1000)
    boxes: list[Any] | None = None
    chat_template_kwargs: _TemplateFields | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = 1
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOG_PROBS)] | None = None
    stream_options: _StreamOptions | None = None
    # Without a meaning here; what would change an answer is taken at its neutral value only.
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    frequency_penalty: Literal[0, None] = None
    presence_penalty: Literal[0, None] = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> ChatRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @field_validator("frequency_penalty", "presence_penalty", mode="before")
    @classmethod
    def _as_whole(cls, value: Any) -> Any:
        return 0 if value == 0 and not isinstance(value, bool) else value

    @property
    def num_top(self) -> int | None:
        """How many likely tokens to note with each; None where no log-probabilities are asked for."""
        if not self.logprobs:
            if self.top_logprobs:
                raise InputError("top_logprobs needs logprobs: true")
            return None
        return self.top_logprobs or 0


class RegionsRequest(_Fields):
    """Body of `POST /v1/regions`: questions about each of many regions of one image, by itself.

    Attributes:
        image: A data URL, base64 text, or an https URL of an allowed host.
        boxes: As of ChatRequest.
        question: Mentions `<region1>`; by default "What is <region1>?".
        questions: Several, in place of one.
        choices: Labels whose probabilities are returned instead of a free answer.
        pairs: Numbers of two boxes each: the questions, which mention `<region1>` and `<region2>`, are asked about each
            pair instead of each box.
    """

    image: str
    boxes: list[Any] = Field(min_length=1)
    question: Text | None = None
    questions: list[Text] | None = Field(default=None, min_length=1, max_length=MAX_QUESTIONS)
    choices: list[Text] | None = Field(default=None, max_length=MAX_LABELS)
    pairs: list[Any] | None = None


@dataclass(frozen=True)
class Conversation:
    """Turns that end with a question, the URL of the image that they are about, and the boxes on it."""

    turns: tuple[Turn, ...]
    image_url: str | None = None
    boxes: list[Any] | Regions = field(default_factory=list)


def parse(body: bytes, kind: type[Request]) -> Request:
    """Reads a request. Raises InputError with one line that names the first field which is wrong."""
    try:
        content = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise InputError("the body is not JSON") from None
    return validated(content, kind)


def validated(content: Any, kind: type[Request]) -> Request:
    """Checks the fields of a request, plain JSON. Raises InputError as `parse` does."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        # Of the alternatives of a field, the one that fits furthest.
        first = max(error.errors(include_url=False), key=lambda fault: len(fault["loc"]))
        place = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("list[", "constrained", "_")))
        got = "" if first["type"] in ("missing", "extra_forbidden") else f", got {first['input']!r:.60}"
        what = (
            "is no field of this request"
            if first["type"] == "extra_forbidden"
            else first["msg"].removeprefix("Value error, ")
        )
        raise InputError(f"{place or 'the body'}: {what[:1].lower()}{what[1:]}{got}", code="invalid_field") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def conversation_of(request: ChatRequest) -> Conversation:
    """Returns what a list of messages stands for.

    `<box>x1,y1,x2,y2</box>` in the text of a user is a region, the same one wherever the same numbers are repeated;
    such boxes are numbered on after those of the field `boxes`.

    Raises:
        InputError: Roles do not alternate, there are several images, a box has no four numbers, or boxes were given
            that no text mentions.
    """
    boxes, typed = _given_boxes(request), _TypedBoxes()
    typed.first = len(boxes) + 1
    urls: dict[str, None] = {}
    turns: list[Turn] = []
    for index, message in enumerate(request.messages):
        where = f"messages.{index}"
        parts = message.content if isinstance(message.content, list) else []
        text = message.content if isinstance(message.content, str) else "".join(part.text or "" for part in parts)
        found = [part.image_url.url for part in parts if part.image_url is not None]
        if message.role in ("system", "developer"):
            if text.strip() or found:
                raise InputError(f"{where}: this model takes no system message; write it into the user's first")
            continue
        if found and message.role == "assistant":
            raise InputError(f"{where}: an assistant's message holds no image")
        urls.update(dict.fromkeys(found))
        expected = ("user", "assistant")[len(turns) % 2]
        if message.role != expected:
            raise InputError(f"{where}: user and assistant must alternate; expected {expected}, got {message.role}")
        turns.append(_user_turn(text, typed) if expected == "user" else Turn("assistant", as_plain_text(text)))
    if not turns or turns[-1].role != "user":
        raise InputError("messages: the last message must be the user's question")
    if len(urls) > 1:
        raise InputError(f"messages: a conversation is about one image, got {len(urls)}")
    if boxes and not any(mentioned_regions(turn.text) or REGION_TOKEN in turn.text for turn in turns):
        raise InputError(f"boxes: {len(boxes)} given but no message mentions one; write <region1> where it is meant")
    return Conversation(tuple(turns), next(iter(urls), None), [*boxes, *map(list, typed.boxes)])


def encode_conversation(
    processor: Any, conversation: Conversation, image_size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Encodes a conversation up to the next answer, as GPT4RoIProcessor.encode_text does.

    image_size: (height, width) of its image, in whose pixels the boxes are; None where it has none.

    Raises:
        InputError: Boxes and text do not fit together, or it has become too long.
    """
    if image_size is None:
        if conversation.boxes:
            raise InputError("boxes: there is no image that they could be on")
        encoded = processor.encode_text(RegionSample(None, conversation.turns, source="the request"), generation=True)
    else:
        regions = validate_regions(conversation.boxes, image_size, region_shape=processor.region_shape)
        sample = RegionSample("the image", conversation.turns, regions.boxes_px, masks=regions.masks)
        encoded = processor.encode_text(sample, generation=True, image_size=image_size)
    if encoded["n_dropped_rounds"]:
        raise InputError(
            f"the conversation no longer fits into the model's {processor.model_max_length} tokens; begin a new one",
            code="context_length_exceeded",
        )
    return encoded


def _given_boxes(request: ChatRequest) -> list[Any]:
    template = request.chat_template_kwargs
    inner = template.boxes if template is not None else None
    if request.boxes is not None and inner is not None:
        raise InputError("boxes: given twice, also in chat_template_kwargs; give them once")
    return list(request.boxes or inner or [])


class _TypedBoxes:
    """Boxes written in texts, numbered in the order of their first mention."""

    def __init__(self) -> None:
        self.first, self.boxes = 1, dict[tuple[float, ...], int]()

    def number(self, text: str) -> int:
        box: tuple[float, ...]
        try:
            box = tuple(float(part) for part in text.split(","))
        except ValueError:
            box = ()
        if len(box) != 4:
            raise InputError(f"<box> holds four numbers x1,y1,x2,y2 in pixels of the image, got {text!r:.60}")
        if len(self.boxes) > MAX_BOXES:
            raise InputError(f"more than {MAX_BOXES} boxes in the text")
        return self.first + self.boxes.setdefault(box, len(self.boxes))


def _user_turn(text: str, typed: _TypedBoxes) -> Turn:
    written = _BOX.sub(lambda found: f"<region{typed.number(found[1])}>", text)
    if "<box>" in written or "</box>" in written:
        raise InputError("a region in the text is <box>x1,y1,x2,y2</box>, got only one end of it")
    return Turn("user", clean_question(written))


def questions_of(request: RegionsRequest, default: str) -> Sequence[str]:
    """Returns the questions that are asked about each region."""
    if request.question is not None and request.questions is not None:
        raise InputError("questions: give question or questions, not both")
    return request.questions or [default if request.question is None else request.question]
