"""Placeholder tokens: checks their counts, scatters embeddings to them, and builds position ids and segment masks."""

from __future__ import annotations

import torch
from torch import nn

from gpt4roi.errors import InputError
from gpt4roi.geometry.boxes import far_outside
from gpt4roi.models.configuration import GPT4RoIConfig


def match_images_to_samples(
    input_ids: torch.Tensor, boxes: list[torch.Tensor], config: GPT4RoIConfig, num_image_tokens: int, has_past: bool
) -> list[int]:
    """Finds the image of each sample that has one, after checking that every placeholder count matches.

    Args:
        input_ids: int64[B, T].
        boxes: One tensor an image. Images are those of the samples that hold image tokens, in batch order, or one for
            each sample of the batch.
        config: For the ids of the placeholder tokens.
        num_image_tokens: P.
        has_past: The image's tokens may be in the KV cache, so that a sample without them still has its row's image.

    Returns:
        The rows of the images in use, in batch order.

    Raises:
        InputError: A count differs; the message has both numbers.
    """
    ids = input_ids.detach().cpu()
    image_mask, region_mask = ids == config.image_token_id, ids == config.region_token_id
    image_counts, region_counts = image_mask.sum(1).tolist(), region_mask.sum(1).tolist()
    for sample, count in enumerate(image_counts):
        if count not in (0, num_image_tokens):
            raise InputError(
                f"sample {sample} of the batch: {count} <im_patch> tokens, but an image has {num_image_tokens}; "
                "a sample holds one image or none"
            )
    if config.mm_use_im_start_end:
        _check_frames(ids, image_mask, config, num_image_tokens)
    owners = [sample for sample, count in enumerate(image_counts) if count or has_past]
    if len(boxes) == len(owners):
        row_of = dict(zip(owners, range(len(owners)), strict=True))
    elif len(boxes) == len(ids):
        row_of = {sample: sample for sample in owners}
    else:
        raise InputError(
            f"{len(owners)} of {len(ids)} samples hold an image's tokens, but {len(boxes)} images were given; "
            "give one for each sample that holds an image, or one for each sample"
        )
    for sample, count in enumerate(region_counts):
        given = len(boxes[row_of[sample]]) if sample in row_of else 0
        if count != given * config.tokens_per_region:
            each = f" of {config.tokens_per_region} tokens each" if config.tokens_per_region > 1 else ""
            raise InputError(f"sample {sample} of the batch: {count} <bbox> tokens but {given} boxes{each}")
    unused = [row for row in range(len(boxes)) if row not in row_of.values() and len(boxes[row])]
    if unused:
        raise InputError(f"image {unused[0]} of the batch: {len(boxes[unused[0]])} boxes, but its sample is text alone")
    return [row_of[sample] for sample in owners]


def _check_frames(ids: torch.Tensor, image_mask: torch.Tensor, config: GPT4RoIConfig, num_image_tokens: int) -> None:
    """Raises InputError unless <im_start>, the P image tokens and <im_end> follow each other in every image."""
    for sample in image_mask.any(1).nonzero().flatten().tolist():
        first = int(image_mask[sample].nonzero()[0])
        last = first + num_image_tokens - 1
        row = ids[sample].tolist()
        framed = (
            first > 0
            and row[first - 1] == config.image_start_token_id
            and last + 1 < len(row)
            and row[last + 1] == config.image_end_token_id
            and bool(image_mask[sample, first : last + 1].all())
        )
        if not framed:
            raise InputError(
                f"sample {sample} of the batch: the {num_image_tokens} <im_patch> tokens must stand together between "
                f"<im_start> and <im_end>; they begin at token {first}"
            )


def validate_unit_scale(boxes: list[torch.Tensor]) -> None:
    """Raises InputError where a box, xyxy in [0, 1], has both of its far corner's coordinates beyond two images."""
    for image, rows in enumerate(boxes):
        far = far_outside(rows) if rows.ndim == 2 and len(rows) else torch.zeros(0)
        if far.any():
            row = int(far.nonzero()[0])
            raise InputError(
                f"image {image} of the batch: box {row + 1} is {rows[row].tolist()}, which looks like pixels; expected "
                "x1, y1, x2, y2 in [0, 1] of the image: divide by its width and height, or give pixels to the processor"
            )


def placeholder_ids(inputs_embeds: torch.Tensor, table: nn.Module, config: GPT4RoIConfig) -> torch.Tensor:
    """Finds the placeholders in embeddings, float[B, T, D]; int64[B, T], -1 where another token stands.

    Raises InputError where two of the placeholders have the same embedding, so that they cannot be told apart.
    """
    ids = [config.image_token_id, config.region_token_id, config.image_start_token_id, config.image_end_token_id]
    rows = table(torch.tensor(ids, device=inputs_embeds.device)).to(inputs_embeds.dtype)
    if len(torch.unique(rows, dim=0)) < len(ids):
        raise InputError("the image and region tokens have the same embeddings and cannot be found; give input_ids")
    found = torch.full(inputs_embeds.shape[:2], -1, device=inputs_embeds.device)
    for token, row in zip(ids, rows, strict=True):
        found[(inputs_embeds == row).all(-1)] = token
    return found


def scatter(inputs_embeds: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Replaces the embeddings float[B, T, D] where mask, bool[B, T], is true by rows, float[N, D], in batch order."""
    rows = rows.to(inputs_embeds.device, inputs_embeds.dtype)
    return inputs_embeds.masked_scatter(mask.unsqueeze(-1), rows)


def positions(attention_mask: torch.Tensor, length: int) -> torch.Tensor:
    """Numbers the tokens that are not padding from 0; int64[B, length] for the last `length` columns of the mask."""
    numbers = attention_mask.long().cumsum(-1) - 1
    return numbers.clamp(min=0)[:, -length:]


def segment_mask(segment_ids: torch.Tensor, attention_mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Builds the attention mask under which segments share the prefix but do not see each other.

    Args:
        segment_ids: int64[B, T], 0 for the shared prefix.
        attention_mask: [B, T], 1 where there is a token.
        dtype: Of the result.

    Returns:
        float[B, 1, T, T] to add to attention scores: 0 where the column may be seen from the row: it is not later, not
        padding, and of the prefix or of the row's own segment. Every token sees itself, so no row is empty.
    """
    length = segment_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    visible = causal & ((segment_ids[:, None, :] == 0) | (segment_ids[:, None, :] == segment_ids[:, :, None]))
    if attention_mask is not None:
        visible = visible & attention_mask.bool()[:, None, :]
    visible = visible | torch.eye(length, dtype=torch.bool, device=segment_ids.device)
    mask = torch.zeros(visible.shape, dtype=dtype, device=segment_ids.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]
