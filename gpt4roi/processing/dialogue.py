"""Dialogue encoding: mentions, template, tokens and labels, image expansion, and truncation by complete rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpt4roi.constants import IGNORE_INDEX, IMAGE_TOKEN
from gpt4roi.errors import InputError
from gpt4roi.processing.mentions import write_mentions
from gpt4roi.processing.templates import Prompt, PromptTemplate
from gpt4roi.processing.tokenizer import TextEncoder, supervised_labels


@dataclass(frozen=True)
class DialogueStep:
    """One turn before it is rendered.

    Attributes:
        text: May begin with `preamble` characters that show the image.
        bare: The 0-based boxes of its bare `<bbox>`.
    """

    role: str
    text: str
    bare: Sequence[int] = ()
    preamble: int = 0


@dataclass(frozen=True)
class Encoded:
    """A sample's encoded text.

    Attributes:
        ids: int64[T].
        labels: int64[T].
        boxes: The 0-based box of each region mentioned, in order; k `<bbox>` ids stand for each.
        segment_ids: int64[T] where it consists of independent conversations, else None.
        position_ids: Likewise.
        dropped: Question-answer rounds that were left out.
        cut: Whether the only answer left lost its end.
    """

    ids: np.ndarray
    labels: np.ndarray
    boxes: list[int]
    segment_ids: np.ndarray | None = None
    position_ids: np.ndarray | None = None
    dropped: int = 0
    cut: bool = False


class DialogueEncoder:
    """Encodes dialogues in one format, with one tokenizer and its limits.

    `image_text` is what `<image>` is written as, with one patch token that becomes image_seq_length of them, as one
    `<bbox>` becomes tokens_per_region.
    """

    def __init__(
        self,
        template: PromptTemplate,
        text_encoder: TextEncoder,
        image_text: str,
        patch_id: int,
        region_id: int,
        image_seq_length: int,
        max_length: int,
        tokens_per_region: int = 1,
    ) -> None:
        self.template = template
        self.text_encoder = text_encoder
        self.image_text = image_text
        self.patch_id, self.region_id = patch_id, region_id
        self.image_seq_length, self.max_length = image_seq_length, max_length
        self.tokens_per_region = tokens_per_region

    def dialogue(self, steps: Sequence[DialogueStep], generation: bool, where: str) -> Encoded:
        """Encodes one conversation, without its last rounds where it is too long.

        A question that is to be answered stays, and so does the first round, which shows the image: then the rounds
        after the first go. Raises InputError where even the shortest form is too long.
        """
        rounds = _rounds(steps)
        for dropped in range(max(len(rounds) - 1, 1)):
            left = rounds[:1] + rounds[1 + dropped :] if generation else rounds[: len(rounds) - dropped]
            encoded, _ = self._encode([step for one in left for step in one], generation, where)
            if len(encoded.ids) <= self.max_length:
                return replace(encoded, dropped=dropped)
        if not generation:
            encoded, _ = self._encode(rounds[0], False, where)
            dropped = len(rounds) - 1
            if len(encoded.ids) <= self.max_length:
                return replace(encoded, dropped=dropped)
            return replace(self._cut(encoded, where), dropped=dropped, cut=True)
        raise self._too_long(len(encoded.ids), where)

    def independent(self, steps: Sequence[DialogueStep], where: str) -> Encoded:
        """Encodes every question-answer pair as a conversation of its own behind what all of them begin with.

        The shared ids (segment 0) end before the first question; in them nothing is supervised. Pair k has segment k,
        ends with its last supervised id, and its positions continue where the shared ids end. Pairs that do not fit any
        more are left out from the end.
        """
        pairs = _rounds(steps)
        if any([step.role for step in pair] != ["user", "assistant"] for pair in pairs):
            raise InputError(f"independent turns must be pairs of a question and an answer{where}")
        singles = [self._encode(pair, False, where) for pair in pairs]
        shared = common_prefix_length([single.ids[:limit] for single, limit in singles])
        prefix = singles[0][0].ids[:shared]
        ids, labels = [prefix], [np.full_like(prefix, IGNORE_INDEX)]
        segments, positions = [np.zeros_like(prefix)], [np.arange(shared)]
        boxes: list[int] = []
        total = shared
        for number, (single, _) in enumerate(singles, start=1):
            # Nothing is supervised after the end of the answer, and no other pair can see what stands there.
            end = int(np.flatnonzero(single.labels != IGNORE_INDEX)[-1]) + 1
            total += end - shared
            if total > self.max_length:
                if number == 1:
                    raise self._too_long(total, where)
                break
            ids.append(single.ids[shared:end])
            labels.append(single.labels[shared:end])
            segments.append(np.full(end - shared, number))
            positions.append(np.arange(shared, end))
            boxes.extend(single.boxes)
        return Encoded(
            np.concatenate(ids),
            np.concatenate(labels),
            boxes,
            segment_ids=np.concatenate(segments).astype(np.int64),
            position_ids=np.concatenate(positions).astype(np.int64),
            dropped=len(pairs) - (len(ids) - 1),
        )

    def _encode(self, steps: Sequence[DialogueStep], generation: bool, where: str) -> tuple[Encoded, int]:
        """Encodes one complete conversation; also returns how many ids come before the first question."""
        texts, boxes = write_mentions([step.text for step in steps], [step.bare for step in steps])
        written = [(step.role, text) for step, text in zip(steps, texts, strict=True)]
        try:
            prompt = self.template.render(written, generation)
        except InputError as error:
            raise InputError(f"{error}{where}") from error
        question = max(prompt.text.find(texts[0].strip()), 0) + steps[0].preamble
        return self._encode_prompt(prompt, boxes, where, question)

    def prompt(self, text: str, bare: Sequence[int]) -> Encoded:
        """Encodes a complete prompt, in which `<image>`, `<region1>` and `<bbox>` stand; bare: as of DialogueStep."""
        (written,), boxes = write_mentions([text], [bare])
        return self._encode_prompt(Prompt(written, ()), boxes, "")[0]

    def _encode_prompt(self, prompt: Prompt, boxes: list[int], where: str, question: int = 0) -> tuple[Encoded, int]:
        """Encodes a rendered conversation; also returns how many ids come before the character `question`."""
        text, spans = prompt.text, prompt.spans
        image_at = text.find(IMAGE_TOKEN)
        if image_at >= 0:
            text = text[:image_at] + self.image_text + text[image_at + len(IMAGE_TOKEN) :]
            longer = len(self.image_text) - len(IMAGE_TOKEN)
            spans = tuple((s + longer * (s > image_at), e + longer * (e > image_at), limit) for s, e, limit in spans)
            question += longer * (question > image_at)
        ids, last_chars = self.text_encoder.encode(text)
        labels = supervised_labels(ids, last_chars, spans)
        shared = int(np.searchsorted(last_chars, question))
        regions = ids == self.region_id
        if regions.sum() != len(boxes):
            raise InputError(f"{regions.sum()} <bbox> tokens but {len(boxes)} boxes{where}")
        repeats = np.where(regions, self.tokens_per_region, 1)
        if image_at >= 0:
            repeats[np.flatnonzero(ids == self.patch_id)[0]] = self.image_seq_length
        if self.tokens_per_region > 1:
            # A model writes one `<bbox>` for a region, never all that it reads for one.
            labels[regions] = IGNORE_INDEX
        return Encoded(np.repeat(ids, repeats), np.repeat(labels, repeats), boxes), int(repeats[:shared].sum())

    def _cut(self, encoded: Encoded, where: str) -> Encoded:
        """Shortens the only answer; the question, the image and every `<bbox>` must stay."""
        ids, labels = encoded.ids[: self.max_length], encoded.labels[: self.max_length]
        lost = encoded.ids[self.max_length :]
        if labels[-1] == IGNORE_INDEX or np.isin(lost, (self.region_id, self.patch_id)).any():
            raise self._too_long(len(encoded.ids), where)
        return Encoded(ids, labels, encoded.boxes)

    def _too_long(self, length: int, where: str) -> InputError:
        return InputError(
            f"the shortest prompt has {length} tokens but model_max_length is {self.max_length}{where}; "
            "shorten the text, or raise model_max_length (in training --model_max_length)"
        )


def _rounds(steps: Sequence[DialogueStep]) -> list[list[DialogueStep]]:
    """Groups steps: a round begins with each question that follows an answer."""
    rounds: list[list[DialogueStep]] = []
    for index, step in enumerate(steps):
        if index == 0 or (step.role == "user" and steps[index - 1].role != "user"):
            rounds.append([])
        rounds[-1].append(step)
    return rounds


def common_prefix_length(rows: list[np.ndarray]) -> int:
    """Returns how many ids all rows begin with alike."""
    length = min(len(row) for row in rows)
    differs = np.zeros(length, dtype=bool)
    for row in rows[1:]:
        differs |= row[:length] != rows[0][:length]
    return int(differs.argmax()) if differs.any() else length
