"""Answers to many prompts at once: what prompts about an image share is computed once, the rest in batches.

Prompts about one image begin alike (instructions, image tokens, the preamble). That beginning goes through the
language model once for each image; its keys and values are then handed to every prompt about the image. What
remains is batched with prompts of the same length, so nothing is padded and no answer depends on its neighbours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from gpt4roi.errors import InputError
from gpt4roi.generation.prompt_cache import Recall
from gpt4roi.generation.sampling import Choose, Decoding
from gpt4roi.models.compat import CACHE


@dataclass(frozen=True)
class Prompt:
    """A prompt and the embeddings that belong at its placeholder tokens.

    input_ids: int64[T]. image: which image it is about; prompts of one image share their beginning.
    image_features: float[P, D], or None without an image. region_features: float[M, D], row k for the k-th `<bbox>`.
    """

    input_ids: torch.Tensor
    image: int = 0
    image_features: torch.Tensor | None = None
    region_features: torch.Tensor | None = None


Ended = Callable[[list[int]], bool]
"""Tells from the new tokens of an answer whether it is complete."""


@torch.inference_mode()
def generate(
    model: Any, prompts: Sequence[Prompt], decoding: Decoding, ended: Ended, batch_size: int = 64
) -> list[list[int]]:
    """Answers every prompt and returns the new tokens of each, in the order of the prompts.

    The answer to a prompt does not depend on the others (up to rounding); batch_size bounds the memory.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    for batch, tokens in generate_batches(model, prompts, decoding, ended, batch_size):
        for index, said in zip(batch, tokens, strict=True):
            answers[index] = said
    return answers


@torch.inference_mode()
def generate_batches(
    model: Any,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    ended: Ended,
    batch_size: int = 64,
    wanted: Callable[[list[int]], bool] = lambda batch: True,
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Yields the indices of each batch of prompts with the new tokens of each, as generate answers them.

    wanted: asked about each batch in turn, tells whether it is to be answered; which prompts stand together does not
    depend on it, so a batch gets the same answers whatever became of the others.
    """
    choose = decoding.chooser()
    shared = shared_length(model, prompts)
    # Images are taken in turns small enough that the kept beginnings stay within the batch size too.
    for members in _by_image(prompts, batch_size):
        batches = [batch for batch in _equal_lengths(prompts, members, batch_size) if wanted(batch)]
        if not batches:
            continue
        cache, row_of_image = _prefill_beginnings(model, prompts, members, shared)
        for batch in batches:
            suffixes = torch.stack([embed_prompt(model, prompts[index])[shared:] for index in batch])
            branch = branched(model, cache, [row_of_image[prompts[index].image] for index in batch])
            most = room_for_answer(model, shared + suffixes.shape[1], decoding.max_new_tokens)
            said: list[list[int]] = [[] for _ in batch]
            for steps in _continue(model, suffixes, branch, choose, most, ended, batch):
                for row, token in steps:
                    said[row].append(token)
            yield batch, said


@torch.inference_mode()
def stream(model: Any, prompt: Prompt, decoding: Decoding, ended: Ended, recall: Recall | None = None) -> Iterator[int]:
    """Yields the tokens of one answer as they come.

    recall: what was read before; it is changed: afterwards it holds this prompt and its answer.
    """
    recall = Recall(model) if recall is None else recall
    most = room_for_answer(model, len(prompt.input_ids), decoding.max_new_tokens)
    embeddings = embed_prompt(model, prompt)[None, recall.turn_to(prompt) :]
    for steps in _continue(model, embeddings, recall.cache, decoding.chooser(), most, ended, [0]):
        recall.said(steps[0][1])
        yield steps[0][1]


def room_for_answer(model: Any, prompt_tokens: int, wanted: int) -> int:
    """Returns how many tokens an answer may have at most: as wanted, or as many positions as the model has left.

    Raises InputError where the prompt leaves none.
    """
    positions = getattr(model.language_model.config, "max_position_embeddings", None)
    if positions is None:
        return wanted
    if prompt_tokens >= positions:
        raise InputError(
            f"the prompt has {prompt_tokens} tokens and the language model {positions} positions, which leaves none "
            "for an answer; begin a new conversation or ask a shorter question"
        )
    return min(wanted, positions - prompt_tokens)


def shared_length(model: Any, prompts: Sequence[Prompt]) -> int:
    """Returns how many first tokens all prompts have in common, before any `<bbox>`.

    0 where no two prompts are about the same image: then there is nothing to save.
    """
    if len({prompt.image for prompt in prompts}) == len(prompts):
        return 0
    first = prompts[0].input_ids
    length = min(len(prompt.input_ids) for prompt in prompts) - 1
    regions = (first == model.config.region_token_id).nonzero()
    length = min(length, int(regions[0])) if len(regions) else length
    for prompt in prompts[1:]:
        different = (prompt.input_ids[:length] != first[:length]).nonzero()
        length = int(different[0]) if len(different) else length
    return length


def _by_image(prompts: Sequence[Prompt], most_images: int) -> Iterator[list[int]]:
    """Yields indices of prompts, whole images at a time."""
    of_image: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        of_image.setdefault(prompt.image, []).append(index)
    groups = list(of_image.values())
    for start in range(0, len(groups), most_images):
        yield [index for group in groups[start : start + most_images] for index in group]


def _equal_lengths(prompts: Sequence[Prompt], members: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yields batches of indices whose prompts have the same length; what no batch fills is not padded up."""
    of_length: dict[int, list[int]] = {}
    for index in members:
        of_length.setdefault(len(prompts[index].input_ids), []).append(index)
    for _, group in sorted(of_length.items()):
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def embed_prompt(model: Any, prompt: Prompt) -> torch.Tensor:
    """Returns float[T, D]: token embeddings with the image and the regions in their places."""
    ids = prompt.input_ids.to(model.device)
    embeddings = model.get_input_embeddings()(ids)
    for token, features in (
        (model.config.image_token_id, prompt.image_features),
        (model.config.region_token_id, prompt.region_features),
    ):
        places = ids == token
        wanted, given = int(places.sum()), 0 if features is None else len(features)
        if wanted != given:
            raise ValueError(f"the prompt has {wanted} tokens {token} but {given} embeddings for them")
        if wanted:
            embeddings = embeddings.clone()
            embeddings[places] = features.to(embeddings)
    return embeddings


def _empty_cache(model: Any) -> DynamicCache:
    return DynamicCache(config=model.language_model.config)


def _prefill_beginnings(
    model: Any, prompts: Sequence[Prompt], members: Sequence[int], shared: int
) -> tuple[DynamicCache, dict[int, int]]:
    """Runs the shared beginning once for each image; returns the cache and the row of each image in it."""
    first_of = {prompts[index].image: index for index in reversed(members)}
    cache = _empty_cache(model)
    if shared:
        beginnings = torch.stack([embed_prompt(model, prompts[index])[:shared] for index in first_of.values()])
        model.language_model(inputs_embeds=beginnings, use_cache=True, logits_to_keep=1, **{CACHE: cache})
    return cache, {image: row for row, image in enumerate(first_of)}


def branched(model: Any, cache: DynamicCache, rows: list[int]) -> DynamicCache:
    """Copies rows of a cache into one that may grow; the first stays as it is."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    branch.batch_select_indices(torch.tensor(rows, device=model.device))
    return branch


def _continue(
    model: Any,
    embeddings: torch.Tensor,
    cache: DynamicCache,
    choose: Choose,
    max_new_tokens: int,
    ended: Ended,
    numbers: Sequence[int],
) -> Iterator[list[tuple[int, int]]]:
    """Yields, step by step, (row, token) for every row that still goes on; complete rows leave the batch.

    embeddings: float[R, T, D], what follows the cache's content; numbers: of the R prompts.
    """
    said: list[list[int]] = [[] for _ in embeddings]
    rows = list(range(len(embeddings)))
    embed = model.get_input_embeddings()
    for _ in range(max_new_tokens):
        output = model.language_model(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1, **{CACHE: cache})
        tokens = choose(output.logits[:, -1], [numbers[row] for row in rows])
        steps = list(zip(rows, tokens.tolist(), strict=True))
        for row, token in steps:
            said[row].append(token)
        yield steps
        going = [place for place, row in enumerate(rows) if not ended(said[row])]
        if not going:
            return
        if len(going) < len(rows):
            keep = torch.tensor(going, device=tokens.device)
            cache.batch_select_indices(keep)
            tokens, rows = tokens[keep], [rows[place] for place in going]
        embeddings = embed(tokens)[:, None]
