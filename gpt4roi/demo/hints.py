"""Hints: what a question still lacks before the model can answer it, with a one-click fix for each."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from gpt4roi.constants import REGION_TOKEN
from gpt4roi.errors import InputError
from gpt4roi.processing.mentions import MAX_DIGITS
from gpt4roi.processing.user_input import mentioned_regions, typed_box

_LOOSE_MENTION = re.compile(r"<\s*(?:region)?\s*(\d+)\s*>", re.IGNORECASE)
_PLAIN_MENTION = re.compile(rf"\bregion\s*(\d{{1,{MAX_DIGITS}}})\b(?!\s*>)", re.IGNORECASE)


@dataclass(frozen=True)
class Hint:
    """One sentence about what is missing; where `label` is given, a click puts `question` in.

    Attributes:
        force: The question may also be asked as it is.
        changes: (before, after) replacements, applied to text that was edited since; an empty `before` appends.
    """

    text: str
    label: str = ""
    question: str = ""
    force: bool = False
    changes: tuple[tuple[str, str], ...] = ()


class IncompleteQuestionError(InputError):
    """A question that cannot be asked yet; `hints` say why. Nothing was changed."""

    def __init__(self, hints: Collection[Hint]) -> None:
        self.hints = tuple(hints)
        super().__init__(" ".join(hint.text for hint in self.hints))


def normalize_mentions(question: str) -> str:
    """Returns the question with its mentions as the model expects them: `<1>`, `< Region 1 >` become `<region1>`."""
    return _LOOSE_MENTION.sub(r"<region\1>", question.strip())


def find_hints(
    question: str,
    num_boxes: int,
    introduced: Collection[int] = (),
    num_known: int = 0,
    default_question: str = "What is <region1>?",
    force: bool = False,
) -> list[Hint]:
    """Looks for what a question with normalized mentions lacks.

    Args:
        question: The text.
        num_boxes: Boxes there are, the first `num_known` of them from earlier rounds.
        introduced: Numbers already brought in by `<regionN>`.
        num_known: Boxes of earlier rounds.
        default_question: What to suggest about the first new box.
        force: The user has seen that no box is mentioned.
    """
    new = [number for number in range(num_known + 1, num_boxes + 1) if number not in introduced]
    if not question:
        suggestion = suggest(default_question, new)
        return [Hint(f"Ask something, for example: {suggestion}", "Use this question", suggestion)]
    mentioned = mentioned_regions(question)
    hints = [_without_box(number, num_boxes) for number in mentioned if not 1 <= number <= num_boxes]
    hints += _bare_boxes(question, new)
    plain = {int(number) for number in _PLAIN_MENTION.findall(question)} & set(range(1, num_boxes + 1))
    hints += [_not_introduced(question, number) for number in sorted(plain - set(introduced) - set(mentioned))]
    if hints or force:
        return hints
    typed = typed_box(question)
    if typed:
        text = f"The model reads {typed} as text: draw that box, and write its number, as in <region1>, in its place."
        hints.append(Hint(text, force=True))
    # A question about some of the boxes leaves the others for later; one about none of them may have forgotten them.
    return hints if mentioned or plain or not new else [*hints, _not_mentioned(question, new)]


def suggest(default_question: str, new: Collection[int]) -> str:
    """Returns a question about the first new box, or about the whole image where there is none."""
    if not new:
        return "What is in this image?"
    return default_question.replace("<region1>", f"<region{min(new)}>")


def _without_box(number: int, num_boxes: int) -> Hint:
    if number == num_boxes + 1:
        return Hint(f"Draw a box for <region{number}>: there is none yet.")
    there = "There is no box yet" if not num_boxes else f"The boxes go up to <region{num_boxes}>"
    return Hint(f"<region{number}> has no box. {there}; boxes are numbered in the order in which they are drawn.")


def _bare_boxes(question: str, new: list[int]) -> list[Hint]:
    if REGION_TOKEN not in question:
        return []
    text = f"Write the number of the box, as in <region1>, where {REGION_TOKEN} stands."
    count = question.count(REGION_TOKEN)
    if count > len(new):
        return [Hint(text)]
    changes = tuple((REGION_TOKEN, f"<region{number}>") for number in new[:count])
    written = question
    for bare, numbered in changes:
        written = written.replace(bare, numbered, 1)
    return [Hint(text, "Write the numbers", written, changes=changes)]


def _not_introduced(question: str, number: int) -> Hint:
    written = f"<region{number}>"
    plain = re.search(rf"\bregion\s*{number}\b(?!\s*>)", question, flags=re.IGNORECASE)
    assert plain is not None
    return Hint(
        f"A box is introduced as {written}; plain “region {number}” is for later questions.",
        f"Write {written}",
        question[: plain.start()] + written + question[plain.end() :],
        changes=((plain.group(), written),),
    )


def _not_mentioned(question: str, numbers: list[int]) -> Hint:
    end = question[-1:] if question[-1:] in ".?!" else ""
    body = question[: len(question) - len(end)].rstrip()
    names = [f"<region{number}>" for number in numbers]
    if len(names) == 1:
        text, label = f"{names[0]} is drawn, but the question does not mention it.", f"Add {names[0]}"
    else:
        listed = f"{', '.join(names[:-1])} and {names[-1]}"
        text, label = f"{listed} are drawn, but the question does not mention them.", "Add them"
    added = tuple(("", name) for name in names)
    return Hint(text, label, f"{body} {' '.join(names)}{end}", force=True, changes=added)
