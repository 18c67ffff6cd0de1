"""Dialogue builders for the readers of the original's data sets: mentions, drawn questions, rounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt4roi.constants import REGION_TOKEN
from gpt4roi.processing.prompts import IMAGE_PREAMBLE
from gpt4roi.structures import Turn


def mention(number: int) -> str:
    """Writes the mention of a region; number: from 1."""
    return f"<region{number}>"


def draw(bank: Sequence[str], rng: np.random.Generator) -> str:
    """Draws one text of a bank."""
    return bank[int(rng.integers(len(bank)))]


def region_rounds(bank: Sequence[str], answers: Sequence[str], rng: np.random.Generator) -> list[Turn]:
    """Asks about region 1, 2, … in turn, each with a question drawn from the bank; the first shows the image."""
    turns = []
    drawn = rng.integers(len(bank), size=len(answers)).tolist()
    for number, (question, answer) in enumerate(zip(drawn, answers, strict=True), start=1):
        turns += [Turn("user", bank[question].format(region=mention(number))), Turn("assistant", answer)]
    return with_image_preamble(turns)


def bare_rounds(instruction: str, answers: Sequence[str]) -> list[Turn]:
    """Asks with a bare `<bbox>` for each box; the first question shows the image and says what to do."""
    turns = [turn for answer in answers for turn in (Turn("user", REGION_TOKEN), Turn("assistant", answer))]
    return with_image_preamble([Turn("user", instruction + turns[0].text), *turns[1:]])


def with_image_preamble(turns: list[Turn]) -> list[Turn]:
    """Puts the sentence that shows the image before the first question."""
    return [Turn("user", IMAGE_PREAMBLE + turns[0].text), *turns[1:]]
