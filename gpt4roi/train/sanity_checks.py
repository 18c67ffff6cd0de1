"""Sanity checks before the first step: lost annotations, tokenizer and model, and what the first batch supervises."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice
from typing import Any

from gpt4roi.constants import IGNORE_INDEX
from gpt4roi.data.base import RegionDataset, exceeds_bad_fraction
from gpt4roi.errors import InputError
from gpt4roi.processing.processor import GPT4RoIProcessor

logger = logging.getLogger(__name__)

BATCHES_TO_TRY = 8


def check_drops(parts: Iterable[RegionDataset], max_bad_fraction: float) -> None:
    """Raises InputError where more than this fraction of the annotations are left out because they are wrong.

    Of each data set, and of all together; a single one never stops a training.
    """
    listed = list(parts)
    for part in listed:
        faults, total = part.faults()
        if exceeds_bad_fraction(faults, total, max_bad_fraction):
            first = next(drop.detail for drop in part.drops() if drop.detail)
            raise InputError(
                f"{part.name}: {faults} of {total} cannot be used, more than --max_bad_fraction "
                f"{max_bad_fraction}; `gpt4roi data check` lists them; the first: {first}"
            )
    faults, total = count_faults(listed)
    if exceeds_bad_fraction(faults, total, max_bad_fraction):
        raise InputError(
            f"{faults} of {total} annotations of all training sets cannot be used, more than --max_bad_fraction "
            f"{max_bad_fraction}; `gpt4roi data check` lists them"
        )


def count_faults(parts: Iterable[RegionDataset]) -> tuple[int, int]:
    """Returns how many annotations of data sets are left out because they are wrong, and of how many."""
    counts = [part.faults() for part in parts]
    return sum(faults for faults, _ in counts), sum(total for _, total in counts)


def check_fit(processor: GPT4RoIProcessor, model: Any) -> None:
    """Raises InputError where a processor's tokens or images do not fit the model."""
    config, rows = model.config, model.get_input_embeddings().weight.shape[0]
    highest = max(processor.tokenizer.get_vocab().values())
    if highest >= rows:
        raise InputError(
            f"the tokenizer numbers tokens up to {highest}, the model has {rows} rows; take the tokenizer that was "
            "saved with the weights"
        )
    config = getattr(model, "region_config", config)  # a pretrained base decides about its images by itself
    for name in ("image_size", "image_seq_length", "tokens_per_region", "region_shape"):
        if not hasattr(config, name):
            continue
        ours, its = getattr(processor, name), getattr(config, name)
        if ours != its:
            raise InputError(f"{name} is {ours} for the processor and {its} for the model; open both from one folder")


def check_first_batch(batches: Iterable[dict[str, Any]], processor: GPT4RoIProcessor) -> None:
    """Logs the first sample as text with what it supervises, its boxes, and the shapes of its batch.

    Raises:
        InputError: None of the first batches can be used, nothing in it is supervised, or no answer in it is
            supervised together with its end: a model trained so would never stop.
    """
    reasons: list[str] = []
    for batch in islice(batches, BATCHES_TO_TRY):
        if batch["n_dropped_rounds"]:  # one for each sample used
            break
        reasons += batch["skipped"]
    else:
        raise InputError(f"none of the first {len(reasons)} samples can be used: {'; '.join(reasons[:3])}")
    supervised = int((batch["labels"] != IGNORE_INDEX).sum())
    if supervised == 0:
        raise InputError(
            f"no token of the first batch is supervised (prompt format {processor.prompt_format!r}); "
            "the answers are empty, or --model_max_length leaves no room for them"
        )
    shapes = {key: tuple(value.shape) for key, value in batch.items() if hasattr(value, "shape")}
    logger.info("First batch: %d supervised tokens; %s", supervised, shapes)
    logger.info("First sample, supervised parts between «»:\n%s", render(batch, processor))
    if batch.get("boxes"):
        logger.info("Its boxes, xyxy in [0, 1]: %s", [[round(v, 3) for v in box] for box in batch["boxes"][0].tolist()])
    stops = processor.stop_strings
    rows = range(len(batch["input_ids"]))
    trained = [text for row in rows for text, supervised in _spans(batch, processor, row) if supervised]
    if not any(stop in text for stop in stops for text in trained):
        raise InputError(
            f"--prompt_format {processor.prompt_format} does not fit the tokenizer: no answer of the first batch is "
            f"supervised with its end ({' or '.join(map(repr, stops)) or 'the format has none'}), so the model would "
            f"never stop; supervised is {trained[0][-80:]!r}; choose another format, or a larger --model_max_length"
        )


def render(batch: dict[str, Any], processor: GPT4RoIProcessor, row: int = 0) -> str:
    """Formats one sample of a batch as text, runs of image tokens shortened, supervised spans between « and »."""
    return "".join(f"«{text}»" if supervised else text for text, supervised in _spans(batch, processor, row))


def _spans(batch: dict[str, Any], processor: GPT4RoIProcessor, row: int) -> list[tuple[str, bool]]:
    end = int(batch["attention_mask"][row].sum())
    keys = [key for key in ("input_ids", "labels", "segment_ids") if key in batch]
    return processor.supervision_spans(*(batch[key][row][:end] for key in keys))
