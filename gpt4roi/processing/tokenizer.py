"""Tokenizer: special tokens, text with character offsets, and dialogues as ids and labels, cut by complete rounds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerBase

from gpt4roi.constants import ADDED_TOKENS, IGNORE_INDEX, IMAGE_TOKEN, PAD_TOKEN
from gpt4roi.errors import InputError
from gpt4roi.processing.mentions import write_mentions
from gpt4roi.processing.templates import Prompt, PromptTemplate

WORD_START = "▁"
CACHED_PIECES = 8192


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, pad_with_unknown: bool = False) -> int:
    """Adds the padding, image and region tokens that the tokenizer lacks, and returns how many were added.

    They are added in the order of released checkpoints: PAD_TOKEN first, where the tokenizer has no padding token,
    then ADDED_TOKENS. Tokens that are already there keep their ids, so a second call adds nothing.
    pad_with_unknown: pads with the tokenizer's unknown token instead, as models of the v1 format do.
    """
    known = len(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": tokenizer.unk_token if pad_with_unknown else PAD_TOKEN})
    vocabulary = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in ADDED_TOKENS if token not in vocabulary], special_tokens=True)
    return len(tokenizer) - known


def is_llama_style(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tells whether the tokenizer is LLaMA's kind: byte-fallback BPE whose pieces mark the start of a word."""
    model = tokenizer.backend_tokenizer.model
    vocabulary = tokenizer.get_vocab()
    return isinstance(model, models.BPE) and model.byte_fallback and WORD_START in vocabulary and "<s>" in vocabulary


class TextEncoder:
    """Encodes text as ids with, for every id, the character of the text it ends with.

    Args:
        tokenizer: It is not changed.
        piecewise: White space around added tokens is dropped, and each piece between them is tokenized by itself with
            its own word start, as the tokenizer of the released models did. Today's tokenizers do neither. Otherwise
            the tokenizer's own rules hold.
        add_bos: Puts the tokenizer's begin token first, where it has one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, piecewise: bool, add_bos: bool) -> None:
        self.tokenizer = tokenizer
        self.piecewise = piecewise
        self.bos = [tokenizer.bos_token_id] if add_bos and tokenizer.bos_token_id is not None else []
        self.added = dict(tokenizer.get_added_vocab())
        sentence_tokens = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token} - {None}
        self.added.update({token: tokenizer.convert_tokens_to_ids(token) for token in sentence_tokens})
        # The begin, end and unknown token keep the blanks around them, whichever of them serve as such.
        self.keeps_blanks = self.added.keys() & {"<s>", "</s>", "<unk>", *sentence_tokens}
        longest_first = sorted(self.added, key=len, reverse=True)
        self.splitter = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self.pieces = _piece_tokenizer(tokenizer) if piecewise else _own_copy(tokenizer)
        self._cache: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids int64[T] and, for each, the index of its last character in the text (-1 for the begin token)."""
        parts = self._encode_pieces(text) if self.piecewise else [self._encode_piece(text)]
        bos = np.asarray(self.bos, dtype=np.int64)
        ids = np.concatenate([bos, *(ids for ids, _ in parts)])
        return ids, np.concatenate([np.full_like(bos, -1), *(chars for _, chars in parts)])

    def _encode_pieces(self, text: str) -> list[tuple[np.ndarray, np.ndarray]]:
        parts = self.splitter.split(text)  # text, added token, text, added token, ..., text
        encoded: list[tuple[np.ndarray, np.ndarray]] = []
        end = 0
        for index, piece in enumerate(parts):
            end += len(piece)
            if index % 2:
                encoded.append((np.asarray([self.added[piece]]), np.asarray([end - 1])))
                continue
            if index > 0 and parts[index - 1] not in self.keeps_blanks:
                piece = piece.lstrip()
            start = end - len(piece)
            if index + 1 < len(parts) and parts[index + 1] not in self.keeps_blanks:
                piece = piece.rstrip()
            if piece:
                ids, chars = self._encode_piece(piece)
                encoded.append((ids, chars + start))
        return encoded

    def _encode_piece(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        found = self._cache.get(text)
        if found is None:
            encoding = self.pieces.encode(text, add_special_tokens=False)
            # A word start that stands alone covers no character of the text; it belongs to the one after it.
            spans = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            found = np.asarray(encoding.ids, dtype=np.int64), np.maximum(spans[:, 0], spans[:, 1] - 1)
            if len(self._cache) >= CACHED_PIECES:
                self._cache.clear()
            self._cache[text] = found
        return found

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Joins ids to text; added tokens stand between blanks where tokenization is piecewise.

        skip_special_tokens: leaves out the begin, end, unknown and padding tokens, not the image and region tokens.
        """
        skipped = set(self.tokenizer.all_special_ids) if skip_special_tokens else set()
        kept = [int(token) for token in ids if int(token) not in skipped]
        if not self.piecewise:
            return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        texts: list[str] = []
        run: list[str] = []
        sentence_ids = {self.added[token] for token in self.keeps_blanks}
        of_id = {token_id: token for token, token_id in self.added.items()}
        for token in kept:
            if token in of_id and token not in sentence_ids:
                texts += [self._join(run), of_id[token]]
                run = []
            else:
                run.append(str(self.tokenizer.convert_ids_to_tokens(token)))
        texts.append(self._join(run))
        return " ".join(text for text in texts if text)

    def _join(self, tokens: list[str]) -> str:
        """Joins the pieces of one run; sentence tokens stay as they are, and the blank of a run's word start goes."""
        text, run = "", list[str]()
        for token in [*tokens, None]:
            if token is None or token in self.keeps_blanks:
                text += _PIECE_DECODER.decode(run) if run else ""
                text, run = text + (token or ""), []
            else:
                run.append(token)
        return text


_PIECE_DECODER = decoders.Sequence(
    [decoders.Replace(WORD_START, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


def _piece_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Builds the merges of the tokenizer with SentencePiece's rule for blanks and no added tokens."""
    pieces = Tokenizer(tokenizer.backend_tokenizer.model)
    pieces.normalizer = normalizers.Sequence([normalizers.Prepend(WORD_START), normalizers.Replace(" ", WORD_START)])
    return pieces


def _own_copy(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Copies the tokenizer, because others may switch truncation and padding on in the original."""
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def supervised_labels(
    ids: np.ndarray, last_chars: np.ndarray, spans: tuple[tuple[int, int, int | None], ...]
) -> np.ndarray:
    """Returns labels int64[T]: the id where it is supervised, IGNORE_INDEX elsewhere; spans: as templates.Span."""
    labels = np.full_like(ids, IGNORE_INDEX)
    for start, end, limit in spans:
        inside = np.flatnonzero((last_chars >= start) & (last_chars < end))[:limit]
        labels[inside] = ids[inside]
    return labels


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


@dataclass(frozen=True)
class DialogueEncoder:
    """Encodes dialogues in one format, with one tokenizer and its limits.

    `image_text` is what `<image>` is written as, with one patch token that becomes image_seq_length of them, as one
    `<bbox>` becomes tokens_per_region.
    """

    template: PromptTemplate
    text_encoder: TextEncoder
    image_text: str
    patch_id: int
    region_id: int
    image_seq_length: int
    max_length: int
    tokens_per_region: int = 1

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
