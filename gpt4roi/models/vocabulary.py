"""Vocabulary of a language model: resizes its embedding tables and initializes rows of added tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from gpt4roi.constants import IMAGE_PATCH_TOKEN


def grow_vocabulary(language_model: PreTrainedModel, size: int) -> None:
    """Resizes the embedding tables to `size` tokens; a larger one keeps all its rows, and no row ever moves."""
    if size > len(embedding_tables(language_model)[0]):
        language_model.resize_token_embeddings(size, mean_resizing=False)


def embedding_tables(language_model: PreTrainedModel) -> list[nn.Parameter]:
    """Returns the input and the output embeddings, float[V, D] each; one table where they are tied."""
    layers = [language_model.get_input_embeddings(), language_model.get_output_embeddings()]
    weights = [cast(nn.Parameter, layer.weight) for layer in layers if layer is not None]
    return weights[:1] if weights[-1] is weights[0] else weights


@torch.no_grad()
def initialize_rows(language_model: PreTrainedModel, added: dict[str, int], pad_token: str | None) -> None:
    """Draws the rows of tokens that were just added, as the original did.

    The padding token starts at the mean of all rows before it and <im_patch> at random; then the other tokens all
    start at the mean of the rows before the first of them.

    Args:
        language_model: Its tables already have the rows.
        added: Id of each new token.
        pad_token: Which of them, if any, is the padding token.
    """
    others = [token_id for token, token_id in added.items() if token not in (pad_token, IMAGE_PATCH_TOKEN)]
    std = getattr(language_model.config, "initializer_range", 0.02)
    for table in embedding_tables(language_model):
        if pad_token in added:
            table[added[pad_token]] = table[: added[pad_token]].float().mean(0).to(table.dtype)
        if IMAGE_PATCH_TOKEN in added:
            table[added[IMAGE_PATCH_TOKEN]].normal_(std=std)
        if others:
            table[others] = table[: min(others)].float().mean(0).to(table.dtype)


def embedding_rms(language_model: PreTrainedModel) -> float:
    """Returns the root mean square of the input embeddings: the scale of the language model."""
    return embedding_tables(language_model)[0].detach().float().pow(2).mean().sqrt().item()


def embed_texts(ids: Sequence[Sequence[int]], embeddings: torch.Tensor, count: int, padding_id: int) -> torch.Tensor:
    """Returns float32[T, count, D], what the input embeddings say of texts in so many tokens.

    One token is the mean of all that a text has, each weighted by 1 / sqrt(document frequency). Several are its first
    ones, filled up with padding. The last is always padding, and left to the position: that would make another word of
    a word, and by itself, without a constant beside it, lose its length in the language model's first norm.

    Args:
        ids: Token ids of each text.
        embeddings: float[V, D].
        count: Tokens of each text.
        padding_id: Of the token that fills up.
    """
    if count > 1:
        padding = [padding_id] * count
        padded = [[*of_text, *padding][: count - 1] for of_text in ids]
        padded = [[*of_text, padding_id] for of_text in padded]
        return embeddings[torch.tensor(padded, device=embeddings.device)].float()
    frequency = Counter(token for of_text in ids for token in set(of_text))
    rows = []
    for of_text in ids:
        weights = torch.tensor([1 / math.sqrt(frequency[token]) for token in of_text])
        rows.append((weights[:, None] * embeddings[of_text].float()).sum(0) / weights.sum())
    return torch.stack(rows)[:, None]
