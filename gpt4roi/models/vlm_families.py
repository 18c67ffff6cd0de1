"""Families of pretrained vision-language models: where the states of a vision tower's blocks lie in the image.

A *view* is what a tower sees at once: the resized image, a crop or a tile of it. Towers differ in the order and the
padding of the patches that they return, and in nothing else that concerns regions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from gpt4roi.errors import InputError

WHOLE = (0.0, 0.0, 1.0, 1.0)
"""The frame of a view that shows all of an image and nothing else."""

SAME_PLACE = 0.02
"""Sides of the image by which the starts of tiles in one column or row may differ."""


@dataclass(frozen=True)
class View:
    """What the tower made of one view.

    Attributes:
        levels: float[C, h, w] each, shallow first.
        cells: How many cells of a map the view, or a tile of it, is wide and high. That may be more than the map has,
            and no whole number: a tower drops what does not fill a patch, and knows which patches are padding.
        frame: float[4], where the view lies in its image: xyxy in sides of the image, beyond [0, 1] where it is padded.
        tiles: How many tiles it is joined of, across and down.
    """

    levels: list[torch.Tensor]
    cells: tuple[float, float]
    frame: torch.Tensor
    tiles: tuple[int, int] = (1, 1)


Layout = Callable[[list[torch.Tensor], Any, dict[str, Any]], list[View]]
"""Turns the states of some blocks into views, given the tower and the arguments that it was called with."""


def _view(levels: list[torch.Tensor], cells: tuple[float, float]) -> View:
    return View(levels, cells, torch.tensor(WHOLE))


def _one_size(states: list[torch.Tensor], tower: Any, call: dict[str, Any]) -> list[View]:
    """Views of one size; class tokens stand before the patches, and some patches may be padding on the right and below.

    states: float[V, n + h * w, C]; call: pixel_values float[V, 3, H, W], patch_attention_mask bool[V, h, w] or None.
    """
    patch = tower.config.patch_size
    down, across = (patch, patch) if isinstance(patch, int) else patch
    pixels, mask = call["pixel_values"], call.get("patch_attention_mask")
    cells = pixels.shape[-1] / across, pixels.shape[-2] / down
    width, height = int(cells[0]), int(cells[1])
    maps = [state[:, -height * width :].transpose(1, 2).unflatten(2, (height, width)) for state in states]
    filled = [(height, width)] * len(pixels)
    if mask is not None:
        filled = [(int(one[:, 0].sum()), int(one[0].sum())) for one in mask]
    return [_view([level[row, :, :h, :w] for level in maps], cells) for row, (h, w) in enumerate(filled)]


def _row_by_row(states: list[torch.Tensor], tower: Any, call: dict[str, Any]) -> list[View]:
    """Views of several sizes, patch by patch: all in one row (image_sizes), or padded at the end (spatial_shapes).

    states: float[1, sum of h * w, C], or float[V, most patches, C].
    """
    if call.get("spatial_shapes") is not None:
        grids = [(int(h), int(w)) for h, w in call["spatial_shapes"]]
        rows = [[state[row, : h * w] for state in states] for row, (h, w) in enumerate(grids)]
    else:
        patch = tower.config.patch_size
        grids = [(int(h) // patch, int(w) // patch) for h, w in call["image_sizes"]]
        pieces = [state[0].split([h * w for h, w in grids]) for state in states]
        rows = [list(row) for row in zip(*pieces, strict=True)]
    return [
        _view([row.T.unflatten(1, (h, w)) for row in levels], (w, h))
        for levels, (h, w) in zip(rows, grids, strict=True)
    ]


def _merged_blocks(states: list[torch.Tensor], tower: Any, call: dict[str, Any]) -> list[View]:
    """Patches block by block, m x m of them that the tower merges at its end, the blocks perhaps window by window.

    states: float[sum of h * w, C]; call: grid_thw int64[V, 3].
    """
    side, grid = tower.spatial_merge_size, call["grid_thw"]
    if (grid[:, 0] != 1).any():
        raise InputError("regions of videos are not supported; give images")
    blocks = [state.reshape(-1, side * side, state.shape[-1]) for state in states]
    if hasattr(tower, "fullatt_block_indexes"):
        from transformers.vision_utils import get_vision_window_index

        order = get_vision_window_index(grid, side, tower.config.window_size, tower.config.patch_size)[0]
        back = torch.argsort(order)
        blocks = [state[back.to(state.device)] for state in blocks]
    sizes = [(int(h) // side, int(w) // side) for _, h, w in grid]
    pieces = zip(*(state.split([h * w for h, w in sizes]) for state in blocks), strict=True)
    return [
        _view(
            [
                row.reshape(h, w, side, side, -1).permute(4, 0, 2, 1, 3).reshape(-1, h * side, w * side)
                for row in levels
            ],
            (w * side, h * side),
        )
        for levels, (h, w) in zip(pieces, sizes, strict=True)
    ]


TOWERS: Mapping[str, Layout] = {
    **dict.fromkeys(("clip_vision_model", "siglip_vision_model", "internvl_vision"), _one_size),
    **dict.fromkeys(("idefics2_vision", "idefics3_vision", "smolvlm_vision"), _one_size),
    **dict.fromkeys(("pixtral", "siglip2_vision_model"), _row_by_row),
    **dict.fromkeys(("qwen2_vl_vision", "qwen2_5_vl_vision", "qwen3_vl_vision"), _merged_blocks),
    **dict.fromkeys(("qwen3_vl_moe_vision", "glm4v_vision"), _merged_blocks),
}
"""How the patches of a vision tower lie, by the tower's model_type."""

FAMILIES = (
    "llava", "vipllava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v",
    "idefics2", "idefics3", "smolvlm", "internvl", "gemma3", "paligemma", "mistral3", "aya_vision", "cohere2_vision",
)  # fmt: skip
"""The model_type of the bases that regions were tried on."""


WITHOUT: Mapping[str, str] = {
    "lfm2_vl": "its image processor cuts tiles into patches, so where they lie cannot be measured, and its decoder's "
    "convolutions keep a state that answers cannot be branched from",
    **dict.fromkeys(
        ("qwen3_5", "qwen3_5_moe"),
        "its decoder's linear attention keeps a state that answers cannot be branched from",
    ),
    **dict.fromkeys(
        ("gemma3n", "gemma4"), "its decoder reads the ids of tokens in every layer, which the engine's rows do not hold"
    ),
    "mllama": "its images reach the decoder by cross-attention, and no token stands for them",
}
"""What is missing for regions on some families that are asked for."""


def require_known_family(model_type: str, tower_type: str | None, name: str) -> None:
    """Raises InputError for a base that is not known, and says what is missing."""
    if model_type in WITHOUT:
        raise InputError(f"{name}: regions on {model_type!r} are not supported: {WITHOUT[model_type]}")
    if model_type not in FAMILIES:
        missing = f"model_type {model_type!r} is no family that regions were tried on; known are {', '.join(FAMILIES)}"
    elif tower_type not in (*TOWERS, None):  # a folder need not write its family's own tower down
        missing = (
            f"how the patches of its vision tower ({tower_type!r}) lie in the image is not known; known towers are "
            f"{', '.join(TOWERS)}"
        )
    else:
        return
    raise InputError(f"{name}: {missing}; a new one needs an entry, and a line in tests/vlm, of models/vlm_families.py")


def blocks_of(tower: nn.Module) -> nn.ModuleList:
    """Returns a tower's blocks: its longest list of modules."""
    lists = [module for module in tower.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise InputError(f"{type(tower).__name__} has no list of blocks to take feature maps from")
    return max(lists, key=len)


def default_levels(config: Any, depth: int, count: int = 4) -> list[int]:
    """Returns which of `depth` blocks give the levels: evenly spaced up to the one whose states the base takes."""
    layer = getattr(config, "vision_feature_layer", -1)
    top = depth + layer + 1 if isinstance(layer, int) and layer < 0 else depth
    return sorted({max(round(top * step / count) - 1, 0) for step in range(1, count + 1)})


def join_tiles(views: Sequence[View]) -> list[View]:
    """Lays the tiles of one image side by side as one view where they form a grid; the largest view stays by itself.

    A box on the edge of two tiles would else be seen in the largest view only, several times coarser.
    """
    frames = torch.stack([view.frame for view in views])
    whole = int((frames[:, 2:] - frames[:, :2]).prod(1).argmax())
    tiles = [view for number, view in enumerate(views) if number != whole]
    columns = _numbered([float(view.frame[0]) for view in tiles])
    rows = _numbered([float(view.frame[1]) for view in tiles])
    place = dict(zip(zip(rows, columns, strict=True), tiles, strict=True))
    across, down = max(columns, default=-1) + 1, max(rows, default=-1) + 1
    shapes = {tuple(view.levels[0].shape) for view in tiles}
    if len(tiles) < 2 or len(shapes) > 1 or not len(place) == len(tiles) == across * down:
        return list(views)
    levels = [
        torch.cat([torch.cat([place[y, x].levels[number] for x in range(across)], dim=2) for y in range(down)], dim=1)
        for number in range(len(tiles[0].levels))
    ]
    starts = torch.stack([view.frame[:2] for view in tiles]).min(0).values
    ends = torch.stack([view.frame[2:] for view in tiles]).max(0).values
    return [views[whole], View(levels, tiles[0].cells, torch.cat([starts, ends]), (across, down))]


def _numbered(values: list[float]) -> list[int]:
    """Numbers values from the smallest; those that differ by less than SAME_PLACE from the next smaller are one."""
    ordered = sorted(values)
    edges = [high for low, high in itertools.pairwise(ordered) if high - low > SAME_PLACE]
    return [sum(value >= edge for edge in edges) for value in values]


def choose_views(boxes: torch.Tensor, views: Sequence[View]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns which view each box is pooled from, int64[N], and the box in cells of that view's maps, float[N, 4].

    It is the view that shows most of the box; of several that show as much, the closest one. boxes: float[N, 4], xyxy
    in sides of the image.
    """
    frames = torch.stack([view.frame for view in views]).to(boxes)
    start, side = frames[:, :2], frames[:, 2:] - frames[:, :2]
    tiles = boxes.new_tensor([view.tiles for view in views])
    cells = boxes.new_tensor([view.cells for view in views])
    mapped = boxes.new_tensor([[view.levels[0].shape[2], view.levels[0].shape[1]] for view in views]) / tiles
    end = start + side * (mapped / cells).clamp(max=1)  # behind what is mapped, a view is padding
    inside = torch.minimum(boxes[:, None, 2:], end) - torch.maximum(boxes[:, None, :2], start)
    size = (boxes[:, None, 2:] - boxes[:, None, :2]).clamp(min=1e-6)
    shown = ((inside.clamp(min=0) / size).prod(2) * 100).round()  # whole percents: a hair does not decide
    area = side.prod(1)
    best = (shown - area / area.max() / 2).argmax(1)  # less than a percent: it breaks ties alone
    tiles, cells, mapped = tiles[best, None], cells[best, None], mapped[best, None]
    corners = (boxes.unflatten(1, (2, 2)) - start[best, None]) / side[best, None] * tiles
    number = corners.floor().clamp(min=0).minimum(tiles - 1)
    within = (corners - number) * cells
    # What a tile drops at its end is not in the joined map; behind the last one the view goes on.
    within = torch.where(number < tiles - 1, within.minimum(mapped), within)
    return best, (number * mapped + within).flatten(1)


def with_frames(views: Sequence[View], frames: Sequence[torch.Tensor]) -> list[list[View]]:
    """Groups the views of a batch by image and says where each lies; frames: list of K float[V_i, 4].

    Raises:
        InputError: The tower saw another number of views than the processor made.
    """
    expected = sum(map(len, frames))
    if expected != len(views):
        raise InputError(
            f"the vision tower saw {len(views)} views of {len(frames)} images, and their frames are {expected}; give "
            "the processor's view_frames with its images"
        )
    rest = iter(views)
    return [[replace(next(rest), frame=frame) for frame in of_image.float().cpu()] for of_image in frames]
