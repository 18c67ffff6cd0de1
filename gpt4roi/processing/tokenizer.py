"""Tokenizer: adds the special tokens, and encodes text with character offsets as the released models were trained."""

from __future__ import annotations

import re

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerBase

from gpt4roi.constants import ADDED_TOKENS, IGNORE_INDEX, PAD_TOKEN

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
