"""Drawn shapes in place of the stamps, for machines without Debian packages and for tests; figures never count."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from quickstart.library import Photograph, Stamp, crop_to_opaque

COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (245, 210, 40),
    "purple": (132, 52, 178),
    "orange": (245, 130, 32),
    "pink": (250, 150, 190),
    "brown": (120, 74, 40),
    "black": (24, 24, 24),
    "white": (246, 246, 246),
}
DRAWN_SIDE = 160
"""Side of a drawn shape, in pixels."""
_OVERSAMPLING = 4


def _polygon(corners: int, inner: float = 1.0, turn: float = 0.0) -> list[tuple[float, float]]:
    """Returns the corners of a regular polygon in the unit circle, or of a star where inner (radius) is less than 1."""
    steps = corners if inner == 1.0 else 2 * corners
    radii = [1.0 if inner == 1.0 or step % 2 == 0 else inner for step in range(steps)]
    angles = [2 * math.pi * step / steps - math.pi / 2 + turn for step in range(steps)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


_CROSS = ((-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1))

POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": _polygon(4, turn=math.pi / 4),
    "triangle": _polygon(3),
    "hexagon": _polygon(6),
    "star": _polygon(5, inner=0.4),
    "diamond": [(0, -1), (0.6, 0), (0, 1), (-0.6, 0)],
    "cross": [(x / 3, y / 3) for x, y in _CROSS],
    "arrow": [(-1, -0.3), (0.2, -0.3), (0.2, -0.8), (1, 0), (0.2, 0.8), (0.2, 0.3), (-1, 0.3)],
}
ROUND = {"circle": (1.0, 1.0), "oval": (1.0, 0.6)}


def _draw(shape: str, colour: tuple[int, int, int]) -> Image.Image:
    """Draws one shape as an RGBA image, cropped to it, with a darker rim so that it stands out anywhere."""
    side = DRAWN_SIDE * _OVERSAMPLING
    half, line = side / 2, 5 * _OVERSAMPLING
    image = Image.new("RGBA", (side, side), (*colour, 0))
    pen = ImageDraw.Draw(image)
    rim = tuple(value // 2 for value in colour)
    radius = half - line
    if shape in ROUND:
        rx, ry = (radius * part for part in ROUND[shape])
        pen.ellipse((half - rx, half - ry, half + rx, half + ry), fill=(*colour, 255), outline=(*rim, 255), width=line)
    else:
        corners = [(half + radius * x, half + radius * y) for x, y in POLYGONS[shape]]
        pen.polygon(corners, fill=(*colour, 255), outline=(*rim, 255), width=line)
    cropped = crop_to_opaque(image.resize((DRAWN_SIDE, DRAWN_SIDE), Image.Resampling.LANCZOS))
    assert cropped is not None, "a shape is opaque"
    return cropped


def draw_stamps() -> list[Stamp]:
    """Draws every shape in every colour, captioned "a red circle"."""
    stamps = []
    for shape in (*ROUND, *POLYGONS):
        for colour, value in COLOURS.items():
            article = "an" if colour[0] in "aeiou" else "a"
            stamps.append(Stamp(f"{shape}/{colour}", shape, f"{article} {colour} {shape}", _draw(shape, value)))
    return stamps


def draw_backgrounds(names: tuple[str, ...]) -> list[Photograph]:
    """Draws one soft colour pattern for each name; the same name gives the same pattern."""
    drawn = []
    for name in names:
        rng = np.random.default_rng(list(name.encode()))
        coarse = Image.fromarray(rng.integers(60, 200, size=(12, 12, 3), dtype=np.uint8))
        smooth = coarse.resize((400, 400), Image.Resampling.BICUBIC)
        drawn.append(Photograph(name, smooth.filter(ImageFilter.GaussianBlur(2))))
    return drawn
