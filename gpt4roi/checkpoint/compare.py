"""Comparison of two model folders: the largest relative difference of their outputs on the same input."""

from __future__ import annotations

from pathlib import Path

import torch

from gpt4roi.models import GPT4RoIConfig, GPT4RoIForConditionalGeneration

_SEED = 0
_BOXES = ((0.1, 0.2, 0.6, 0.7), (0.5, 0.05, 0.95, 0.9))
_WORDS_BETWEEN = 4


def compare_models(first: str | Path, second: str | Path, vision_tower: str | None = None) -> dict[str, float]:
    """Returns the largest relative difference of the logits and of the region features on an image with two boxes.

    Relative to the largest magnitude in `first`. Both run in float32 on the CPU, one after the other.

    Args:
        first: Folder or hub name.
        second: Folder or hub name.
        vision_tower: Folder or hub name of the tower, for a folder that was saved without it.
    """
    one, other = _outputs(first, vision_tower), _outputs(second, vision_tower)
    return {name: float((one[name] - other[name]).abs().max() / one[name].abs().max()) for name in one}


@torch.inference_mode()
def _outputs(folder: str | Path, vision_tower: str | None) -> dict[str, torch.Tensor]:
    opened = GPT4RoIForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, vision_tower=vision_tower)
    model = opened.eval()
    generator = torch.Generator().manual_seed(_SEED)
    side = model.config.image_size
    answer = model(
        input_ids=_prompt(model.config, generator),
        pixel_values=torch.randn(1, 3, side, side, generator=generator),
        boxes=[torch.tensor(_BOXES)],
    )
    return {"logits": answer.logits, "region features": answer.region_features}


def _prompt(config: GPT4RoIConfig, generator: torch.Generator) -> torch.Tensor:
    """Makes int64[1, T]: an image, then two regions, each among a few words drawn from the first half of the table."""

    def words() -> list[int]:
        return torch.randint(3, config.text_config.vocab_size // 2, (_WORDS_BETWEEN,), generator=generator).tolist()

    image = [config.image_token_id] * int(config.image_seq_length or 0)
    if config.mm_use_im_start_end:
        image = [config.image_start_token_id, *image, config.image_end_token_id]
    regions = [token for _ in _BOXES for token in (*words(), *[config.region_token_id] * config.tokens_per_region)]
    return torch.tensor([[*image, *regions, *words()]])
