"""Explanation of an answer: occlusion, gradient x activation and attention, as heatmaps over the image.

Occlusion (Zeiler and Fergus, arXiv 1311.2901) is the measurement: a cell counts by how much less likely the answer
becomes where the cell shows the image's mean colour. Gradient x activation and attention say what the computation looks
at; they may differ from what the answer depends on. A pretrained vision-language model with regions has occlusion
alone, of the user's image: it has no feature maps and tokens of one square, as GPT4RoI's own models have them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from gpt4roi.constants import IGNORE_INDEX
from gpt4roi.errors import InputError
from gpt4roi.generation.encoded_image import PreparedImage, encode_images, prepare_image
from gpt4roi.generation.likelihood import AnsweredPrompt, answer_log_probabilities
from gpt4roi.structures import RegionSample, Turn

METHODS = ("occlusion", "gradient", "attention")
CELLS_IN_A_BOX = 4
"""Cells that a box is wide and high at least, so that there is something to see inside of it."""
LEAST_CHANGE = 0.1
"""Of the log-likelihood, by all windows together, below which occlusion says little."""
PARTS_OF_A_CELL = 7
"""Parts that a cell of a masked region is wide and high: windows end at the mask's edge."""


@dataclass(frozen=True)
class Heatmap:
    """How much each cell of the image counts for an answer.

    Attributes:
        values: float64[H, W]; of occlusion and gradient, what is below 0 spoke against the answer.
        x: float64[W + 1], the cells' edges from left to right, in pixels of the user's image.
        y: float64[H + 1], from top to bottom.
        token_values: float64[T, H, W], of each token of the answer; None for gradients.
        regions: Of attention, the part that goes to each region's own tokens; the text has the rest.
    """

    values: np.ndarray
    x: np.ndarray
    y: np.ndarray
    token_values: np.ndarray | None = None
    regions: tuple[float, ...] = ()

    def share_inside(self, region: Any) -> float:
        """Returns the part of the positive values, in [0, 1], that lies inside of a region; 0 where there are none.

        region: a box, xyxy in pixels, or a mask bool[H, W] of the image; a cell counts by the part that is covered.
        """
        positive = self.values.clip(0)
        total = positive.sum()
        return float((positive * self._covered(region)).sum() / total) if total > 0 else 0.0

    def _covered(self, region: Any) -> np.ndarray:
        """Returns the part of each cell, float64[H, W] in [0, 1], that a region covers."""
        shape = np.asarray(region)
        if shape.ndim == 1:
            x1, y1, x2, y2 = map(float, shape)
            rows, columns = (
                np.diff(edges.clip(low, high)) / np.diff(edges)
                for edges, low, high in ((self.y, y1, y2), (self.x, x1, x2))
            )
            return np.outer(rows, columns)
        sums = np.pad(shape.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        y, x = (edges.round().astype(int) for edges in (self.y, self.x))
        corners = sums[np.ix_(y, x)]
        area = np.outer(np.diff(y), np.diff(x)).clip(1)
        return np.diff(np.diff(corners, axis=0), axis=1) / area


@dataclass(frozen=True)
class Explanation:
    """An answer and what it depends on.

    Attributes:
        log_likelihood: Of the answer's tokens, its end included.
        tokens: The answer's tokens as text, T of them.
        boxes_px: float64[N, 4], the regions of the question.
        heatmaps: By method.
        masks: Of the boxes, as of structures.Regions.
    """

    question: str
    answer: str
    log_likelihood: float
    tokens: tuple[str, ...]
    boxes_px: np.ndarray
    heatmaps: dict[str, Heatmap]
    masks: tuple[np.ndarray | None, ...] = ()

    def inside(self, method: str) -> list[float]:
        """Returns the part of a method's heatmap, in [0, 1], that lies inside of each region: its mask, or its box."""
        heat, masks = self.heatmaps[method], self.masks or (None,) * len(self.boxes_px)
        size = int(heat.y[-1].round()), int(heat.x[-1].round())
        pairs = zip(self.boxes_px, masks, strict=True)
        return [heat.share_inside(box if mask is None else _pixels(box, mask, size)) for box, mask in pairs]

    @property
    def remark(self) -> str:
        """What must be known before the occlusion is read: that it changed next to nothing; else empty."""
        total = self.heatmaps["occlusion"].values.clip(0).sum() if "occlusion" in self.heatmaps else LEAST_CHANGE
        hardly = "occlusion hardly changes this answer (its log-likelihood by {:.2g}, all windows together)"
        return "" if total >= LEAST_CHANGE else f"{hardly.format(total)}: its heatmap and its share say little"

    def as_record(self) -> dict[str, Any]:
        """Returns it as JSON can hold it; `inside`: the share of the heatmap in each region."""
        boxes = self.boxes_px.tolist()
        maps = {
            method: {
                "inside": [round(share, 4) for share in self.inside(method)],
                **({"regions": _rounded(np.asarray(heat.regions))} if heat.regions else {}),
                "x": _rounded(heat.x),
                "y": _rounded(heat.y),
                "values": _rounded(heat.values),
                **({} if heat.token_values is None else {"token_values": _rounded(heat.token_values)}),
            }
            for method, heat in self.heatmaps.items()
        }
        said = {"question": self.question, "answer": self.answer, "log_likelihood": round(self.log_likelihood, 4)}
        return said | {"tokens": list(self.tokens), "boxes": boxes, "heatmaps": maps}


@dataclass(frozen=True)
class _Asked:
    """A question with its answer, encoded.

    Attributes:
        pixels: [3, H, W], what is occluded: the model's own pixel values, or the user's image where it has others.
        prepare: Turns such pixels into the model's inputs.
        size: (height, width) of the user's image.
        targets: int64[T], the answer's ids.
        places: int64[T], where each is predicted.
    """

    pixels: torch.Tensor
    prepare: Callable[[torch.Tensor], PreparedImage]
    size: tuple[int, int]
    encoded: Mapping[str, Any]
    targets: torch.Tensor
    places: torch.Tensor


def check_settings(methods: Sequence[str] | None, cells: int, batch_size: int) -> None:
    """Raises InputError where a method is unknown, or there is no cell or an empty batch; needs no model."""
    unknown = [method for method in methods or () if method not in METHODS]
    if unknown or (methods is not None and not methods):
        raise InputError(f"methods are some of {', '.join(METHODS)}; got {', '.join(map(str, unknown)) or 'none'}")
    if cells < 1 or batch_size < 1:
        raise InputError(f"cells and batch_size must be at least 1, got {cells} and {batch_size}")


def _methods_of(model: Any, methods: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the methods to use; by default all, attention only where the implementation gives its weights.

    Raises:
        InputError: The model has none such, or there are no attention weights.
    """
    is_base = not model.packs_sequences
    has_weights = not is_base and model.language_model.config._attn_implementation == "eager"
    if methods is None:
        return METHODS if has_weights else METHODS[: 1 if is_base else 2]
    if is_base and set(methods) != {"occlusion"}:
        raise InputError(
            f"a pretrained vision-language model with regions is explained by occlusion, got {', '.join(methods)}; "
            "gradient and attention need GPT4RoI's own models, which see an image as one square"
        )
    if "attention" in methods and not has_weights:
        raise InputError(
            "only the eager attention gives its weights; call model.language_model.set_attn_implementation('eager')"
        )
    return tuple(methods)


def explain(
    model: Any,
    processor: Any,
    image: Image.Image,
    question: RegionSample,
    answer: str,
    methods: Sequence[str] | None = None,
    cells: int = 6,
    batch_size: int = 16,
) -> Explanation:
    """Computes heatmaps of an answer to a question about an image.

    Args:
        model: A GPT4RoI model, or a pretrained vision-language model with regions.
        processor: Its processor.
        image: The opened image, RGB.
        question: A conversation up to the question, with the image's boxes in pixels; with their masks, windows of
            occlusion end at these, whether the model reads masks or not.
        answer: The answer to explain, the model's own or any other.
        methods: Some of METHODS; by default all that the model can be asked for.
        cells: Occluded cells along each side of the image, about; a box is CELLS_IN_A_BOX wide at least.
        batch_size: Occluded images at once.

    Raises:
        InputError: The answer is empty or too long, or the arguments are wrong.
    """
    check_settings(methods, cells, batch_size)
    chosen = _methods_of(model, methods)
    if not answer.strip():
        raise InputError("there is no answer to explain: the model said nothing; give one")
    size = image.height, image.width
    encoded = processor.encode_text(
        replace(question, turns=(*question.turns, Turn("assistant", answer))), image_size=size
    )
    if encoded["n_cut_answers"] or encoded["n_dropped_rounds"]:
        raise InputError(f"the question is too long for the model: {question.turns[-1].text!r:.80}")
    supervised = (encoded["labels"] != IGNORE_INDEX).nonzero()[:, 0]
    # Earlier answers of the conversation are supervised too.
    supervised = supervised.tensor_split((supervised.diff() > 1).nonzero()[:, 0] + 1)[-1]
    last = encoded["input_ids"][: supervised[-1] + 1]
    pixels, prepare = _occludable(model, processor, image)
    asked = _Asked(pixels, prepare, size, {**encoded, "input_ids": last}, last[supervised], supervised - 1)
    plain = _log_probabilities(model, asked, iter([pixels]), 1)[0]
    compute = {
        "occlusion": lambda: _occlusion(model, asked, question.masks, plain, cells, batch_size),
        "gradient": lambda: _gradient(model, asked),
        "attention": lambda: _attention(model, asked, len(question.boxes_px)),
    }
    return Explanation(
        question=question.turns[-1].text,
        answer=answer,
        log_likelihood=float(plain.sum()),
        tokens=tuple(processor.tokenizer.decode([token]) for token in asked.targets.tolist()),
        boxes_px=np.asarray(question.boxes_px),
        heatmaps={method: compute[method]() for method in chosen},
        masks=question.masks,
    )


def _occludable(
    model: Any, processor: Any, image: Image.Image
) -> tuple[torch.Tensor, Callable[[torch.Tensor], PreparedImage]]:
    """Returns the pixels that are occluded, [3, H, W], and what turns them into the model's inputs."""
    if not model.packs_sequences:  # whose inputs may be tiles, or patches in some order
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels, lambda shown: prepare_image(processor, Image.fromarray(shown.permute(1, 2, 0).numpy()))
    prepared = prepare_image(processor, image)
    return prepared.pixel_values, lambda shown: PreparedImage({"pixel_values": shown}, prepared.size)


def _log_probabilities(model: Any, asked: _Asked, images: Iterator[torch.Tensor], batch_size: int) -> np.ndarray:
    """Returns the log-probability of each of the answer's tokens, float64[N, T], with other pixels each."""
    supervised = torch.zeros(len(asked.encoded["input_ids"]), dtype=torch.bool)
    supervised[asked.places + 1] = True
    encoded = encode_images(model, map(asked.prepare, images), batch_size)
    answered = [AnsweredPrompt(one.prompt(asked.encoded), supervised) for one in encoded]
    found = answer_log_probabilities(model, [[one] for one in answered])
    return torch.stack([row for (row,) in found]).double().cpu().numpy()


def _occlusion(
    model: Any, asked: _Asked, masks: Sequence[np.ndarray | None], plain: np.ndarray, cells: int, batch_size: int
) -> Heatmap:
    pixels = asked.pixels
    sides = pixels.shape[2], pixels.shape[1]
    boxes = asked.encoded["boxes"].numpy() * (sides * 2)
    shown = [masks[number] if masks else None for number in asked.encoded["box_indices"].tolist()]
    (x, across), (y, down) = (_cells(boxes[:, [axis, axis + 2]], sides[axis], cells) for axis in (0, 1))
    if any(mask is not None for mask in shown):
        (x, across), (y, down) = _divided(x, across), _divided(y, down)
    windows = _windows(down, across, _inside(boxes, shown, x, y))
    totals, count = np.zeros((len(plain), len(y) - 1, len(x) - 1)), np.zeros((len(y) - 1, len(x) - 1))
    areas, mean = np.outer(np.diff(y), np.diff(x)), pixels.float().mean(dim=(1, 2)).to(pixels.dtype)[:, None]

    def occluded(window: np.ndarray) -> torch.Tensor:
        one = pixels.clone()
        one[:, torch.from_numpy(window.repeat(np.diff(y), 0).repeat(np.diff(x), 1))] = mean
        return one

    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        changed = _log_probabilities(model, asked, map(occluded, batch), batch_size)
        for window, found in zip(batch, changed, strict=True):
            part = areas * window
            totals += (plain - found)[:, None, None] * (part / part.sum())
            count += window
    drops = totals / count
    height, width = asked.size
    return Heatmap(drops.sum(0), x * (width / sides[0]), y * (height / sides[1]), drops)


def _windows(down: Sequence[slice], across: Sequence[slice], inside: np.ndarray) -> list[np.ndarray]:
    """Returns what is occluded at once, bool[H, W] of cells each: no window is inside of a mask in part only."""
    found = []
    for rows in down:
        for columns in across:
            window = np.zeros_like(inside)
            window[rows, columns] = True
            found += [piece for piece in (window & inside, window & ~inside) if piece.any()]
    return found


def _divided(edges: np.ndarray, windows: Sequence[slice]) -> tuple[np.ndarray, list[slice]]:
    """Returns edges of the parts of cells, a pixel wide at least, and the same windows over them."""
    parts = [np.linspace(low, high, PARTS_OF_A_CELL + 1).round() for low, high in pairwise(edges)]
    finer = np.unique(np.concatenate(parts)).astype(int)
    places = np.searchsorted(finer, edges).tolist()
    return finer, [slice(places[window.start], places[window.stop]) for window in windows]


def _inside(boxes: np.ndarray, masks: Sequence[np.ndarray | None], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns which cells lie inside of a mask, bool[H, W] by their middles; edges and boxes in the same pixels."""
    inside = np.zeros((len(y) - 1, len(x) - 1), dtype=bool)
    for box, mask in zip(boxes, masks, strict=True):
        if mask is not None:
            (columns, across), (rows, down) = (
                _places((edges[1:] + edges[:-1]) / 2, box[axis], box[axis + 2], mask.shape[1 - axis])
                for axis, edges in ((0, x), (1, y))
            )
            inside[np.ix_(rows, columns)] |= mask[np.ix_(down, across)] >= mask.max() / 2
    return inside


def _places(middles: np.ndarray, low: float, high: float, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which of some places lie between low and high, int[K], and in which of `length` equal steps."""
    steps = np.floor((middles - low) / max(high - low, 1e-9) * length).astype(int)
    (within,) = np.nonzero((steps >= 0) & (steps < length))
    return within, steps[within]


def _pixels(box: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the pixels inside of a box's mask, bool[H, W] of an image of this (height, width)."""
    height, width = size
    return _inside(box[None], [mask], np.arange(width + 1), np.arange(height + 1))


def _cells(spans: np.ndarray, side: int, cells: int) -> tuple[np.ndarray, list[slice]]:
    """Returns the edges of cells along one axis, int[n + 1] from 0 to side, and the windows that are occluded.

    No cell and no window is inside a span in part only. Windows inside are two cells and overlap: a smaller part of a
    thing would hardly be missed. spans: float[N, 2], where boxes begin and end.
    """
    whole = spans.round().clip(0, side).astype(int).tolist()
    bounds = sorted({0, side, *(bound for span in whole for bound in span)})
    edges, windows = [0], []
    for low, high in pairwise(bounds):
        around = [end - begin for begin, end in whole if begin <= low and high <= end]
        wanted = max(round((high - low) * cells / side), *(CELLS_IN_A_BOX * (high - low) / one for one in around), 1)
        parts, first = min(math.ceil(wanted), high - low), len(edges) - 1
        edges += np.linspace(low, high, parts + 1).round().astype(int)[1:].tolist()
        width = 2 if around and parts > 1 else 1
        windows += [slice(start, start + width) for start in range(first, first + parts + 1 - width)]
    return np.asarray(edges), windows


def _uniform(asked: _Asked, values: torch.Tensor, tokens: np.ndarray | None = None, **more: Any) -> Heatmap:
    x, y = (np.arange(length + 1.0) for length in (values.shape[1], values.shape[0]))
    height, width = asked.size
    x, y = x * (width / x[-1]), y * (height / y[-1])
    return Heatmap(values.double().cpu().numpy(), x, y, tokens, **more)


def _gradient(model: Any, asked: _Asked) -> Heatmap:
    """Gradient of the answer's log-likelihood times activation, summed over channels and levels of the tower's maps.

    A cell of a coarse level is spread evenly over those of the finest.
    """
    with torch.inference_mode(False), torch.no_grad():
        _, maps = model.encode_image(asked.pixels[None].clone().to(model.device))
    with torch.inference_mode(False), torch.enable_grad():
        levels = [level.detach().clone().requires_grad_() for level in maps]
        names = [name for name in ("input_ids", "boxes", "masks") if name in asked.encoded]
        ids, *regions = (asked.encoded[name].clone().to(model.device)[None] for name in names)
        embedded, *_ = model.embed(ids, feature_maps=levels, **dict(zip(names[1:], regions, strict=True)))
        places, targets = asked.places.to(embedded.device), asked.targets.to(embedded.device)
        logits = model.language_model(inputs_embeds=embedded, use_cache=False, logits_to_keep=places).logits
        likelihood = -F.cross_entropy(logits[0].float(), targets, reduction="sum")
        found = torch.autograd.grad(likelihood, levels, allow_unused=True)
    finest = max((level.shape[-2:] for level in levels), key=math.prod)
    total = torch.zeros(finest, device=levels[0].device)
    for level, gradient in zip(levels, found, strict=True):
        if gradient is not None:
            cells = (level.detach() * gradient).float().sum(1, keepdim=True)
            part = math.prod(level.shape[-2:]) / math.prod(finest)
            total += F.interpolate(cells, size=tuple(finest), mode="nearest")[0, 0] * part
    return _uniform(asked, total)


@torch.inference_mode()
def _attention(model: Any, asked: _Asked, num_regions: int) -> Heatmap:
    """Attention, the mean over layers and heads, of the positions that predict the answer's tokens."""
    (image,) = encode_images(model, [asked.prepare(asked.pixels)])
    embedded = image.prompt(asked.encoded).embed(model)[None]
    layers = model.language_model(inputs_embeds=embedded, use_cache=False, output_attentions=True).attentions
    rows = torch.stack([layer[0, :, asked.places].float().mean(0) for layer in layers]).mean(0).cpu()
    ids, config = asked.encoded["input_ids"], model.config
    on_image = rows[:, ids == config.image_token_id]
    side = math.isqrt(on_image.shape[1])
    tokens = on_image.unflatten(1, (side, side))
    on_regions = rows.mean(0)[ids == config.region_token_id].unflatten(0, (-1, config.tokens_per_region)).sum(1)
    shares = torch.zeros(num_regions).index_add(0, asked.encoded["box_indices"], on_regions)
    return _uniform(asked, tokens.mean(0), tokens.double().numpy(), regions=tuple(shares.tolist()))


def _rounded(values: np.ndarray) -> list[Any]:
    return [float(f"{one:.4g}") for one in values] if values.ndim == 1 else [_rounded(row) for row in values]
