"""Generation engine: batched and streaming decoding, shared-prefix prefill, and PromptCache, the KV cache of a chat.

Prompts about one image share a prefix (instructions, image tokens, the preamble). It goes through the language model
once for each image; its keys and values are then expanded to every prompt about the image. What remains is batched
with prompts of the same length, so nothing is padded and no answer depends on its neighbours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from gpt4roi.errors import InputError
from gpt4roi.generation.encoded_image import Prompt
from gpt4roi.generation.sampling import Sampler, SamplingParams, StoppingCriterion
from gpt4roi.processing.tokenizer import common_prefix_length


class PromptCache:
    """Keys and values of the last prompt and its answer.

    A later prompt about the same image reuses them as far as it begins with the same tokens and regions. Layers grow
    by new tensors, never in place, so a copy shares its memory with the original and leaves it as it is.
    """

    def __init__(self, model: Any) -> None:
        self._region_token_id: int = model.region_token_id
        self._shares: bool = model.shares_prefix
        self._config = model.config.get_text_config()
        self._ids: list[int] = []
        self._prompt: Prompt | None = None
        self.cache = DynamicCache(config=self._config)

    def __len__(self) -> int:
        """How many tokens the cache holds."""
        return self.cache.get_seq_length()

    def copy(self) -> PromptCache:
        """Returns one that may grow by itself."""
        other = copy.copy(self)
        other._ids = list(self._ids)
        other.cache = copy_cache(self.cache)
        return other

    def reuse_prefix(self, prompt: Prompt) -> int:
        """Crops the cache to what it has in common with a prompt; returns the number of those tokens.

        At least the prompt's last token is left to be read, because its logits give the answer's first.
        """
        common = self._common_length(prompt)
        if common < len(self):
            # Layers that forget (sliding windows, states) cannot be cropped.
            if common and all(type(layer) is DynamicLayer for layer in self.cache.layers):
                self.cache.crop(common - len(self))
            else:
                common, self.cache = 0, DynamicCache(config=self._config)
        self._ids, self._prompt = prompt.input_ids.tolist(), prompt
        return common

    def append_token(self, token: int) -> None:
        """Notes a token of the answer; it is in the cache once the next one was computed."""
        self._ids.append(token)

    def _common_length(self, prompt: Prompt) -> int:
        if self._prompt is None or not self._shares:
            return 0
        before = replace(self._prompt, input_ids=torch.tensor(self._ids))
        return min(before.common_length(prompt, self._region_token_id), len(self), len(prompt.input_ids) - 1)


@torch.inference_mode()
def generate(
    model: Any, prompts: Sequence[Prompt], params: SamplingParams, stopping: StoppingCriterion, batch_size: int = 64
) -> list[list[int]]:
    """Answers every prompt and returns the new tokens of each, in the order of the prompts.

    The answer to a prompt does not depend on the others (up to rounding); batch_size bounds the memory.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    for batch, tokens, _ in generate_batches(model, prompts, params, stopping, batch_size):
        for index, answer in zip(batch, tokens, strict=True):
            answers[index] = answer
    return answers


@torch.inference_mode()
def generate_batches(
    model: Any,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    stopping: StoppingCriterion,
    batch_size: int = 64,
    selects: Callable[[list[int]], bool] = lambda batch: True,
) -> Iterator[tuple[list[int], list[list[int]], list[list[float]]]]:
    """Yields batches of prompts: indices, the new tokens of each as generate answers them, and their log-probabilities.

    A log-probability is the model's own, before temperature and top_p.

    Args:
        model: A GPT4RoI model.
        prompts: The prompts.
        params: How tokens are chosen.
        stopping: Tells when an answer is complete.
        batch_size: Prompts at once.
        selects: Asked about each batch in turn, tells whether it is to be answered. Which prompts form a batch does
            not depend on it, so a batch gets the same answers whatever became of the others.
    """
    sampler = params.sampler()
    shared = shared_prefix_length(model, prompts)
    # Images are taken in chunks small enough that the cached prefixes stay within the batch size too.
    for members in _chunk_by_image(prompts, batch_size):
        batches = [batch for batch in _equal_lengths(prompts, members, batch_size) if selects(batch)]
        if not batches:
            continue
        cache, row_of_image = _prefill_shared_prefixes(model, prompts, members, shared)
        for batch in batches:
            suffixes = torch.stack([prompts[index].embed(model)[shared:] for index in batch])
            branch = expand_cache(model, cache, [row_of_image[prompts[index].image] for index in batch])
            limit = max_answer_tokens(model, shared + suffixes.shape[1], params.max_new_tokens)
            answers: list[list[int]] = [[] for _ in batch]
            log_probs: list[list[float]] = [[] for _ in batch]
            for step in _decode(model, suffixes, branch, sampler, limit, stopping, batch):
                for row, token, log_prob in step:
                    answers[row].append(token)
                    log_probs[row].append(log_prob)
            yield batch, answers, log_probs


@torch.inference_mode()
def stream(
    model: Any, prompt: Prompt, params: SamplingParams, stopping: StoppingCriterion, cache: PromptCache | None = None
) -> Iterator[int]:
    """Yields the tokens of one answer as they come.

    cache: of earlier rounds; it is changed: afterwards it holds this prompt and its answer.
    """
    cache = PromptCache(model) if cache is None else cache
    limit = max_answer_tokens(model, len(prompt.input_ids), params.max_new_tokens)
    embeddings = prompt.embed(model)[None, cache.reuse_prefix(prompt) :]
    for ((_, token, _),) in _decode(model, embeddings, cache.cache, params.sampler(), limit, stopping, [0]):
        cache.append_token(token)
        yield token


def max_answer_tokens(model: Any, prompt_tokens: int, max_new_tokens: int) -> int:
    """Returns how many tokens an answer may have: max_new_tokens, or as many positions as the model has left.

    Raises:
        InputError: The prompt leaves no position.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return max_new_tokens
    if prompt_tokens >= positions:
        raise InputError(
            f"the prompt has {prompt_tokens} tokens and the language model {positions} positions, which leaves none "
            "for an answer; begin a new conversation or ask a shorter question"
        )
    return min(max_new_tokens, positions - prompt_tokens)


def shared_prefix_length(model: Any, prompts: Sequence[Prompt]) -> int:
    """Returns how many first tokens all prompts have in common, before any `<bbox>`.

    0 where no two prompts are about the same image: then there is nothing to save.
    """
    if not model.shares_prefix or len({prompt.image for prompt in prompts}) == len(prompts):
        return 0
    rows = [prompt.input_ids.numpy() for prompt in prompts]
    length = min(common_prefix_length(rows), min(map(len, rows)) - 1)
    regions = (rows[0][:length] == model.region_token_id).nonzero()[0]
    return int(regions[0]) if len(regions) else length


def _chunk_by_image(prompts: Sequence[Prompt], max_images: int) -> Iterator[list[int]]:
    """Yields indices of prompts, complete images at a time."""
    of_image: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        of_image.setdefault(prompt.image, []).append(index)
    groups = list(of_image.values())
    for start in range(0, len(groups), max_images):
        yield [index for group in groups[start : start + max_images] for index in group]


def _equal_lengths(prompts: Sequence[Prompt], members: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yields batches of indices whose prompts have the same length; what no batch fills is not padded up."""
    of_length: dict[int, list[int]] = {}
    for index in members:
        of_length.setdefault(len(prompts[index].input_ids), []).append(index)
    for _, group in sorted(of_length.items()):
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _prefill_shared_prefixes(
    model: Any, prompts: Sequence[Prompt], members: Sequence[int], shared: int
) -> tuple[DynamicCache, dict[int, int]]:
    """Prefills the shared prefix once for each image; returns the cache and the row of each image in it."""
    first_of = {prompts[index].image: index for index in reversed(members)}
    cache = DynamicCache(config=model.config.get_text_config())
    if shared:
        prefixes = torch.stack([prompts[index].embed(model)[:shared] for index in first_of.values()])
        model.decode(prefixes, cache)
    return cache, {image: row for row, image in enumerate(first_of)}


def copy_cache(cache: DynamicCache) -> DynamicCache:
    """Returns a cache with the same keys and values that may grow by itself."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


def expand_cache(model: Any, cache: DynamicCache, rows: list[int]) -> DynamicCache:
    """Copies rows of a cache into one that may grow; the first stays as it is."""
    branch = copy_cache(cache)
    branch.batch_select_indices(torch.tensor(rows, device=model.device))
    return branch


def _decode(
    model: Any,
    embeddings: torch.Tensor,
    cache: DynamicCache,
    sampler: Sampler,
    max_new_tokens: int,
    stopping: StoppingCriterion,
    numbers: Sequence[int],
) -> Iterator[list[tuple[int, int, float]]]:
    """Yields, step by step, (row, token, its log-probability) for every row that is not complete.

    Complete rows leave the batch.

    embeddings: float[N, T, R], the rows of what follows the cache's content; numbers: of the N prompts.
    """
    answers: list[list[int]] = [[] for _ in embeddings]
    rows = list(range(len(embeddings)))
    for _ in range(max_new_tokens):
        logits = model.decode(embeddings, cache)[:, -1]
        tokens = sampler(logits, [numbers[row] for row in rows])
        log_probs = logits.float().log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
        step = list(zip(rows, tokens.tolist(), log_probs.tolist(), strict=True))
        for row, token, _ in step:
            answers[row].append(token)
        yield step
        active = [position for position, row in enumerate(rows) if not stopping(answers[row])]
        if not active:
            return
        if len(active) < len(rows):
            selected = torch.tensor(active, device=tokens.device)
            cache.batch_select_indices(selected)
            tokens, rows = tokens[selected], [rows[position] for position in active]
            embeddings = embeddings[selected]
        embeddings = model.next_rows(tokens, embeddings[:, -1])
