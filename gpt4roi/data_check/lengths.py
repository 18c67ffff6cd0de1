"""Prompt lengths in tokens: counted with the tokenizer of a model, or estimated where there is none."""

from __future__ import annotations

from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gpt4roi.checkpoint.loading import load_processor, load_tokenizer, warn_of_prompts, with_settings
from gpt4roi.constants import IGNORE_INDEX
from gpt4roi.io.model_folders import ADAPTER, DELTA, UNFINISHED, identify
from gpt4roi.processing.processor import GPT4RoIProcessor
from gpt4roi.processing.tokenizer import add_special_tokens
from gpt4roi.structures import RegionSample

UNLIMITED = 10**9
DEFAULT_LIMIT = 2048
BYTES_PER_TOKEN = 4.0
"""English text has about this many bytes a token in the vocabularies of LLaMA and its like."""


class Measure(NamedTuple):
    """One prompt: its length, how much of it is supervised, its rounds, and what would be dropped."""

    tokens: int
    supervised: int
    rounds: int
    rounds_lost: int
    answers_cut: int


class LengthEstimator:
    """Measures prompts with a processor.

    Args:
        processor: Encodes them.
        limit: The longest prompt in tokens.
        bytes_per_token: Set where the processor counts bytes, for want of a tokenizer; lengths are then estimates.
    """

    def __init__(self, processor: GPT4RoIProcessor, limit: int, bytes_per_token: float | None = None) -> None:
        self.limit, self.bytes_per_token = limit, bytes_per_token
        self.side = processor.image_size
        self.processor = with_settings(processor, model_max_length=limit)
        self._unlimited = with_settings(processor, model_max_length=UNLIMITED)

    def measure(self, sample: RegionSample, image_size: tuple[int, int]) -> Measure:
        """Encodes a sample's text; raises InputError as the processor does."""
        encoded = self._unlimited.encode_text(sample, image_size=image_size)
        ids, labels = encoded["input_ids"], encoded["labels"]
        rounds = sum(turn.role == "user" for turn in sample.turns)
        tokens = self._tokens(ids)
        supervised = self._tokens(ids[labels != IGNORE_INDEX])
        if tokens <= self.limit:
            return Measure(tokens, supervised, rounds, 0, 0)
        if self.bytes_per_token is not None:  # how much is lost depends on where the tokens end
            return Measure(tokens, supervised, rounds, int(rounds > 1), int(rounds == 1))
        cut = self.processor.encode_text(sample, image_size=image_size)
        return Measure(tokens, supervised, rounds, cut["n_dropped_rounds"], cut["n_cut_answers"])

    def _tokens(self, ids: torch.Tensor) -> int:
        if self.bytes_per_token is None:
            return len(ids)
        added = self.processor.image_patch_token_id
        patches = int((ids == added).sum())
        return patches + round((len(ids) - patches) / self.bytes_per_token)


def open_length_estimator(model: str | None, limit: int | None = None, prompt_format: str = "v0") -> LengthEstimator:
    """Returns an estimator for a model: a folder of ours, an adapter's with its base, or a language model to train.

    Args:
        model: None estimates lengths from bytes.
        limit: The model's own, or 2048, where it is None.
        prompt_format: For a language model.

    Raises:
        InputError: There is no tokenizer.
    """
    if model is None:
        byte_processor = GPT4RoIProcessor(_byte_tokenizer(), prompt_format=prompt_format)
        return LengthEstimator(byte_processor, limit or DEFAULT_LIMIT, BYTES_PER_TOKEN)
    found = identify(model)
    if found.kind in (DELTA, UNFINISHED):
        found.require_model()
    if found.is_model or found.kind == ADAPTER:
        processor = load_processor(model)
        return LengthEstimator(processor, limit or processor.model_max_length)
    tokenizer = load_tokenizer(model)
    warn_of_prompts(model, tokenizer, prompt_format)
    add_special_tokens(tokenizer)
    return LengthEstimator(GPT4RoIProcessor(tokenizer, prompt_format=prompt_format), limit or DEFAULT_LIMIT)


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """Builds a tokenizer with one token for each byte."""
    special = ["<pad>", "<s>", "</s>"]
    vocabulary = {
        token: number for number, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    add_special_tokens(fast)
    return fast
