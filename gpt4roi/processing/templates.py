"""Prompt templates: render a dialogue as one text, with the spans of it that are supervised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from gpt4roi.constants import IMAGE_TOKEN
from gpt4roi.errors import InputError

Step = tuple[str, str]
"""(role, text); roles are `user` and `assistant`, and what else a template knows."""

Span = tuple[int, int, int | None]
"""(first character, end, limit): the tokens that end inside are supervised, at most the first `limit` of them."""

_SYSTEM = (
    "{%% if messages[0]['role'] == 'system' %%}{{ messages[0]['content'] }}{%% set messages = messages[1:] %%}"
    "{%% else %%}%s{%% endif %%}"
)
"""Jinja that writes the system's message, or the format's own text where there is none."""

_SPEAKERS = {"human": "user", "gpt": "assistant"}


def role_of_speaker(speaker: str) -> str:
    """Names the role of a speaker of the LLaVA format, in any case of letters; unknown speakers stay as they are."""
    return _SPEAKERS.get(speaker.lower(), speaker)


@dataclass(frozen=True)
class Prompt:
    """A rendered dialogue. `<image>` and `<bbox>` stand in the text; the processor expands the former."""

    text: str
    spans: tuple[Span, ...]


class PromptTemplate(Protocol):
    """A prompt format: how to render a dialogue, how an answer begins and what ends it."""

    adds_bos: bool
    piecewise: bool

    @property
    def chat_template(self) -> str | None:
        """The same format in jinja, for messages whose content is text; None where jinja cannot say it."""
        ...

    @property
    def name(self) -> str:
        """Value of prompt_format."""
        ...

    @property
    def answer_prefix(self) -> str:
        """What an answer begins with and is no part of it; may be empty."""
        ...

    def render(self, steps: Sequence[Step], generation: bool = False) -> Prompt:
        """Renders the steps; generation: up to where the model answers, nothing supervised.

        Raises:
            InputError: The format cannot take the order of the roles.
        """
        ...

    def stops(self, eos_token: str | None) -> tuple[str, ...]:
        """Returns the texts that end an answer."""
        ...


@dataclass(frozen=True)
class HeadedTemplate:
    """The v0 format: every step on its own line behind `### Role: `; no end token, the next `###` ends an answer.

    Supervised: every step that is not the user's, heading and line end included, the first two tokens of the user's
    steps (`##`, `#`: they teach when to stop) and the trailing `### `.
    Any order of roles; unknown ones are called `unknown`.
    """

    name: str
    system: str
    user: str = "Human"
    assistant: str = "Assistant"
    mark: str = "###"
    image_first: bool = False
    """Writes `<image>` before the first question with a heading between, as the option sep_image_conv_front did."""

    adds_bos = True
    piecewise = True

    @property
    def answer_prefix(self) -> str:
        """The assistant's heading."""
        return f"{self.assistant}:"

    @property
    def chat_template(self) -> str | None:
        """The format in jinja."""
        if self.image_first:
            return None
        names = f"{{'user': '{self.user}', 'assistant': '{self.assistant}'}}"
        step = f"{self.mark} {{{{ {names}[message['role']] }}}}: {{{{ message['content'] }}}}\n"
        return f"{_SYSTEM % self.system}{{{{ '\n\n' }}}}{{% for message in messages %}}{step}{{% endfor %}}{self.mark} "

    def render(self, steps: Sequence[Step], generation: bool = False) -> Prompt:
        """Renders the steps; takes any order of roles."""
        if self.image_first and steps and IMAGE_TOKEN in steps[0][1]:
            role, text = steps[0]
            text = text.replace(IMAGE_TOKEN, "").strip()
            steps = [(role, f"{IMAGE_TOKEN}{self.mark}{self.user}: {text}"), *steps[1:]]
        names = {"user": self.user, "assistant": self.assistant}
        written = f"{self.system}\n\n"
        spans: list[Span] = []
        for role, text in steps:
            start = len(written)
            written += f"{self.mark} {names.get(role, 'unknown')}: {text}\n"
            spans.append((start, len(written), 2 if role == "user" else None))
        spans.append((len(written), len(written) + len(self.mark) + 1, None))
        written += f"{self.mark} "
        return Prompt(written, () if generation else tuple(spans))

    def stops(self, eos_token: str | None) -> tuple[str, ...]:
        """Returns the text that ends an answer."""
        return (self.mark,)


@dataclass(frozen=True)
class InlineTemplate:
    """The v1 format: one line, `USER: ... ASSISTANT: ...</s>`; supervised are the answers and their end token.

    A dialogue that does not begin with the user loses its first step; roles must alternate. An empty answer is left
    open: nothing follows `ASSISTANT:`.
    """

    name: str
    system: str
    user: str = "USER"
    assistant: str = "ASSISTANT"
    end: str = "</s>"

    adds_bos = True
    piecewise = True

    @property
    def answer_prefix(self) -> str:
        """The assistant's heading."""
        return f"{self.assistant}:"

    @property
    def chat_template(self) -> str:
        """The format in jinja."""
        user, answer = (f"{name}: {{{{ message['content'] }}}}" for name in (self.user, self.assistant))
        step = f"{{% if message['role'] == 'user' %}}{user} {{% else %}}{answer}{self.end}{{% endif %}}"
        heading = f"{{% if add_generation_prompt %}}{self.assistant}:{{% endif %}}"
        return f"{_SYSTEM % self.system} {{% for message in messages %}}{step}{{% endfor %}}{heading}"

    def render(self, steps: Sequence[Step], generation: bool = False) -> Prompt:
        """Renders the steps; raises InputError unless user and assistant alternate."""
        if steps and steps[0][0] != "user":
            steps = steps[1:]
        written = f"{self.system} "
        spans: list[Span] = []
        for index, (role, text) in enumerate(steps):
            expected = ("user", "assistant")[index % 2]
            if role != expected:
                raise InputError(f"the {self.name} format needs user and assistant in turn, step {index} is {role!r}")
            written += f"{self.user if role == 'user' else self.assistant}:"
            if not text:
                continue
            start = len(written)
            written += f" {text}{' ' if role == 'user' else self.end}"
            if role == "assistant":
                spans.append((start, len(written), None))
        if generation:
            return Prompt(f"{written}{self.assistant}:", ())
        return Prompt(written, tuple(spans))

    def stops(self, eos_token: str | None) -> tuple[str, ...]:
        """Returns the text that ends an answer."""
        return (self.end,)


V0 = HeadedTemplate(
    name="v0",
    system="A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the human's questions.",
)
V1 = InlineTemplate(
    name="v1",
    system="A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions.",
)
LLAVA_V1 = InlineTemplate(
    name="llava_v1",
    system="You are LLaVA, a large language and vision assistant trained by UW Madison WAIV Lab."
    "You are able to understand the visual content that the user provides, and assist the user with a variety of tasks "
    "using natural language.Follow the instructions carefully and explain your answers in detail.",
)
TEMPLATES: dict[str, PromptTemplate] = {template.name: template for template in (V0, V1, LLAVA_V1)}

_TEXT_MARK = "\ue000{}\ue001"
"""Stands for the text of a step while the template is rendered; private-use characters occur in no template."""


class ChatTemplate:
    """Renders with the tokenizer's chat template; supervised are the answers and the token that ends them.

    The template is rendered once per order of roles with placeholders, into which the texts are then written, so it
    needs no marks for the answers, and rendering costs nothing.

    Args:
        tokenizer: With a chat template.
        system_prompt: Given to the template as a system step; None leaves the template's own.
    """

    name = "chat"
    answer_prefix = ""
    adds_bos = False
    piecewise = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None = None) -> None:
        if not tokenizer.chat_template:
            raise InputError("the tokenizer has no chat template; choose prompt_format 'v0' or 'v1'")
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self._skeletons: dict[tuple[tuple[str, ...], bool], tuple[list[str], bool]] = {}
        self.end = self._find_end()

    @property
    def chat_template(self) -> str:
        """The tokenizer's."""
        return str(self.tokenizer.chat_template)

    def render(self, steps: Sequence[Step], generation: bool = False) -> Prompt:
        """Renders the steps; raises InputError where the template refuses the order of the roles."""
        key = tuple(role for role, _ in steps), generation
        if key not in self._skeletons:
            self._skeletons[key] = self._skeleton(*key)
        literals, keeps_blanks = self._skeletons[key]
        written = literals[0]
        spans: list[Span] = []
        for (role, text), literal in zip(steps, literals[1:], strict=True):
            start = len(written)
            written += text if keeps_blanks else text.strip()
            if role == "assistant" and not generation:
                spans.append((start, len(written) + len(self.end), None))
            written += literal
        return Prompt(written, tuple(spans))

    def stops(self, eos_token: str | None) -> tuple[str, ...]:
        """Returns the token that ends an answer and the tokenizer's end token."""
        return tuple(dict.fromkeys(token for token in (self.end.strip(), eos_token) if token))

    def _skeleton(self, roles: tuple[str, ...], generation: bool) -> tuple[list[str], bool]:
        """Returns what the template writes before, between and after the texts, and whether it keeps their blanks."""
        marks = [_TEXT_MARK.format(index) for index in range(len(roles))]
        written = self._apply(roles, [f" {mark} " for mark in marks], generation)
        keeps_blanks = all(f" {mark} " in written for mark in marks)
        literals = []
        for mark in marks:
            before, found, written = written.partition(f" {mark} " if keeps_blanks else mark)
            if not found:
                raise InputError(f"the chat template leaves out or reorders texts of {', '.join(roles)}")
            literals.append(before)
        return [*literals, written], keeps_blanks

    def _apply(self, roles: tuple[str, ...], texts: list[str], generation: bool) -> str:
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        if self.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))
        except TemplateError as error:
            raise InputError(f"the chat template refuses {', '.join(roles)}: {error}") from error

    def _find_end(self) -> str:
        """Returns what follows an answer up to the end of the first special token there."""
        after = self._skeleton(("user", "assistant"), False)[0][2]
        added = {*self.tokenizer.get_added_vocab(), *self.tokenizer.all_special_tokens}
        ends = [after.index(token) + len(token) for token in added if token in after]
        if not ends:
            raise InputError(
                f"the chat template ends an answer with {after!r}, which holds no special token to stop at; "
                "choose prompt_format 'v0' or give the tokenizer another chat template"
            )
        return after[: min(ends)]


def user_heading(template: PromptTemplate) -> str:
    """Returns what a format writes before every question, without outer blanks; it tells a prompt from a question."""
    first, answer, second = (_TEXT_MARK.format(index) for index in range(3))
    text = template.render([("user", first), ("assistant", answer), ("user", second)]).text
    before, between = text.partition(first)[0], text.partition(answer)[2].partition(second)[0]
    return next(between[start:] for start in range(len(between) + 1) if before.endswith(between[start:])).strip()
