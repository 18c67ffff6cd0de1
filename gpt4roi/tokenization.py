"""What the package needs of a tokenizer: its added tokens, and ids of a text as the released models were trained on."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from gpt4roi.constants import ADDED_TOKENS, PAD_TOKEN


def add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Adds the padding, image and region tokens that the tokenizer lacks, and returns how many were added.

    They are added in the order of released checkpoints: PAD_TOKEN first, where the tokenizer has no padding token,
    then ADDED_TOKENS. Tokens that are already there keep their ids, so a second call adds nothing.
    """
    known = len(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    vocabulary = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in ADDED_TOKENS if token not in vocabulary], special_tokens=True)
    return len(tokenizer) - known
