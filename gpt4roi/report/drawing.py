"""Regions drawn on an image with their numbers, and heatmaps; images as JPEG data URLs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

PALETTE = (
    "#e6194b", "#1f77d4", "#2e9e3f", "#f58231", "#911eb4", "#00a3a3", "#d6219c", "#8a6d00", "#5b4be0", "#7a4a2b",
)  # fmt: skip
"""One colour a region, in order; dark enough for white digits, and starts again after the last."""


def region_color(index: int) -> str:
    """Returns the colour, as #rrggbb, of the region with this index, counted from 0."""
    return PALETTE[index % len(PALETTE)]


def jpeg_data_url(image: Image.Image, max_side: int, quality: int = 82) -> str:
    """Returns a JPEG of the image, scaled down to at most `max_side` pixels a side, as a `data:` URL."""
    small = image.copy()
    small.thumbnail((max_side, max_side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def draw_boxes(image: Image.Image, regions: Any, labels: Sequence[str] | None = None) -> Image.Image:
    """Returns a copy of the image, RGB, with every region in its colour and its number (or label) in a corner.

    Args:
        image: any mode.
        regions: N boxes, xyxy in pixels of the image; or Regions, or an Explanation: of a mask the outline is drawn.
        labels: N texts; by default "1", "2", …
    """
    drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    shorter = min(drawn.size)
    line_width = max(2, round(shorter / 160))
    font = ImageFont.load_default(size=max(11, round(shorter / 22)))
    masks = getattr(regions, "masks", ())
    for index, box in enumerate(getattr(regions, "boxes_px", regions)):
        x1, y1, x2, y2 = (float(value) for value in box)
        color = region_color(index)
        if masks and masks[index] is not None:
            drawn.paste(color, mask=_outline(masks[index], (x1, y1, x2, y2), drawn.size, line_width))
        else:
            pen.rectangle((x1, y1, x2, y2), outline=color, width=line_width)
        text = str(index + 1) if labels is None else str(labels[index])
        _draw_label(pen, (x1, y1), text, font, color, drawn.size)
    return drawn


def _outline(
    mask: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int], width: int
) -> Image.Image:
    """Returns what lies around the mask of a box, as of structures.Regions, on an image of this (width, height)."""
    left, top, right, bottom = map(round, box)
    inside = Image.fromarray((255 * mask / mask.max()).astype(np.uint8))
    inside = inside.resize((max(right - left, 1), max(bottom - top, 1)), Image.Resampling.BILINEAR)
    shape = Image.new("L", size)
    shape.paste(inside.point(lambda value: 255 * (value > 127)), (left, top))
    return ImageChops.subtract(shape.filter(ImageFilter.MaxFilter(2 * width + 1)), shape)


def draw_heatmaps(image: Image.Image, regions: Any, heatmaps: Mapping[str, Any], max_side: int = 720) -> Image.Image:
    """Returns the image, in grey, once for each heatmap side by side, with its name, what counts in red, and regions.

    regions: as of draw_boxes. heatmaps: as of generation.explain, by name; each on a scale of its own. max_side: of one
    of the images, in pixels.
    """
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float64)
    panels = []
    for name, heat in heatmaps.items():
        strength = heat.values.clip(0) / max(heat.values.max(), 1e-12)
        rows, columns = (np.diff(edges.round().astype(int)) for edges in (heat.y, heat.x))
        alpha = 0.75 * strength.repeat(rows, 0).repeat(columns, 1)[..., None]
        blended = (1 - alpha) * grey + alpha * np.array([255.0, 40.0, 0.0])
        panel = draw_boxes(Image.fromarray(blended.round().astype(np.uint8)), regions)
        panel.thumbnail((max_side, max_side))
        font = ImageFont.load_default(size=max(11, round(min(panel.size) / 22)))
        _draw_label(ImageDraw.Draw(panel), (0, panel.height), name, font, "#1b1f24", panel.size)
        panels.append(panel)
    sheet = Image.new("RGB", (sum(panel.width for panel in panels), panels[0].height))
    for number, panel in enumerate(panels):
        sheet.paste(panel, (number * panel.width, 0))
    return sheet


def _draw_label(
    pen: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    font: Font,
    color: str,
    image_size: tuple[int, int],
) -> None:
    """Writes a label on a filled plate whose top left is the corner, moved as far as needed to stay in the image."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    pad = max(2, (bottom - top) // 5)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = min(max(corner[0], 0), max(image_size[0] - width, 0))
    y = min(max(corner[1], 0), max(image_size[1] - height, 0))
    pen.rectangle((x, y, x + width, y + height), fill=color)
    pen.text((x + pad - left, y + pad - top), text, fill="white", font=font)
