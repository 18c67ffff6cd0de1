"""Multiple choice: which letter an answer means, and which choice a model finds likeliest."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from gpt4roi.evaluation.metrics import exact_match, words

LETTERS = "ABCDEFGHIJ"
_IN_BRACKETS = re.compile(r"[(\[]\s*([A-Ja-j])\s*[)\]]")
_AT_THE_START = re.compile(
    r"\s*(?:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)\s*(?:is|:)?\s*)?([A-J])\b(?![’'])", re.I
)


def write_options(options: Sequence[str]) -> str:
    """Returns `(A) first` and so on, one a line."""
    return "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))


_OPTION_FORMS = (
    re.compile(r"\(([A-J])\)\s*(.+?)[ ,;]*(?=\([A-J]\)|\n|$)"),
    re.compile(r"^\s*([A-J])[.):]\s+(.+?)\s*$", re.M),
)


def read_options(question: str) -> tuple[str, ...]:
    """Returns the options that a question lists as `(A) first`, or as `A. first` one a line; none where it does not."""
    for form in _OPTION_FORMS:
        found = form.findall(question)
        if len(found) > 1 and "".join(letter for letter, _ in found) == LETTERS[: len(found)]:
            return tuple(text.strip() for _, text in found)
    return ()


def written_like(answer: str, options: Sequence[str], label: int) -> tuple[str, ...]:
    """Returns each option in the form in which an answer names the one with the label; none where that is unclear."""
    if exact_match(answer, options[label]):
        return tuple(options)
    with_letter = [
        re.sub(rf"\b{LETTERS[label]}\b", letter, answer, count=1).replace(options[label], option)
        for letter, option in zip(LETTERS, options, strict=False)
    ]
    return tuple(with_letter) if len(set(with_letter)) == len(options) else ()


def letters(count: int) -> tuple[str, ...]:
    """Returns the answers `(A)`, `(B)`, … that a model may give."""
    return tuple(f"({letter})" for letter in LETTERS[:count])


def parse_choice(answer: str, options: Sequence[str]) -> int | None:
    """Returns the index of the option that an answer names, or None where it names none or several.

    Looked for in this order: a letter in brackets; a letter alone at the start (`A`, `B.`, `Answer: c`); the option's
    own words and nothing else; the option whose words the answer holds, if there is just one.
    """
    bracketed = {letter.upper() for letter in _IN_BRACKETS.findall(answer)}
    if bracketed:
        return _index(bracketed.pop(), options) if len(bracketed) == 1 else None
    start = _AT_THE_START.match(answer)
    if start and (start[1].isupper() or len(words(answer)) == 1) and not _is_article(start[1], answer):
        return _index(start[1].upper(), options)
    same = [index for index, option in enumerate(options) if exact_match(answer, option)]
    if len(same) == 1:
        return same[0]
    text = f" {' '.join(words(answer))} "
    contained = [index for index, option in enumerate(options) if f" {' '.join(words(option))} " in text]
    return contained[0] if len(contained) == 1 else None


def _is_article(letter: str, answer: str) -> bool:
    """Tells whether an `A` at the start is the article of a phrase, as in `A red ball`."""
    return letter in "Aa" and re.match(r"\s*a\s+\w", answer, re.I) is not None


def _index(letter: str, options: Sequence[str]) -> int | None:
    index = LETTERS.index(letter)
    return index if index < len(options) else None


def likeliest(likelihoods: Sequence[float]) -> int:
    """Returns the index of the greatest log-likelihood; the first of several equal ones."""
    return int(np.argmax(likelihoods))
