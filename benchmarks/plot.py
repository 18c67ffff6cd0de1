"""Draws the rows of scaling.py: cost against the number of boxes and the size of the image, as one SVG."""

from __future__ import annotations

import re
import statistics
from html import escape
from typing import Any, NamedTuple

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 420, 300, 60, 40, 50
COLOURS = {"theirs": "#b4472e", "own": "#2a6f97"}
POINT = re.compile(r", (\d+) px, (\d+) box")


class Panel(NamedTuple):
    """One of the two charts: where each row stands on its axis."""

    title: str
    axis: str
    points: list[tuple[int, dict[str, Any]]]


def draw(rows: list[dict[str, Any]], machine: str) -> str:
    """Returns the SVG; rows: of scaling.py, on one device."""
    found = [(*map(int, POINT.search(row["case"]).groups()), row) for row in rows]
    sides = [side for side, _, _ in found]
    usual = max(set(sides), key=sides.count)
    counts = [count for side, count, _ in found if side != usual] or [found[0][1]]
    panels = [
        Panel(f"image of {usual} px", "boxes", [(count, row) for side, count, row in found if side == usual]),
        Panel(f"{counts[0]} boxes", "side of the image, px", sorted_by_side(found, counts[0])),
    ]
    body = "".join(_panel(panel, place * WIDTH, rows[0]["unit"]) for place, panel in enumerate(panels))
    legend = f"plain formulation | {rows[0]['ours']} | {machine}"
    marks = "".join(
        f'<circle cx="{LEFT + 8 + place * 190}" cy="{HEIGHT + 12}" r="4" fill="{colour}"/>'
        for place, colour in enumerate(COLOURS.values())
    )
    names = legend.split(" | ")
    texts = "".join(_text(LEFT + 18 + place * 190, HEIGHT + 16, name) for place, name in enumerate(names[:2]))
    note = _text(LEFT, HEIGHT + 36, names[2], size=10)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT + 48}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="white"/>{body}{marks}{texts}{note}</svg>\n'
    )


def sorted_by_side(found: list[tuple[int, int, dict[str, Any]]], count: int) -> list[tuple[int, dict[str, Any]]]:
    """Returns the rows with so many boxes, smallest image first."""
    return sorted(((side, row) for side, boxes, row in found if boxes == count), key=lambda point: point[0])


def _panel(panel: Panel, left: int, unit: str) -> str:
    """Draws one chart; both axes from 0, since what grows in proportion is then a straight line."""
    inner, high = WIDTH - LEFT - 20, HEIGHT - TOP - BOTTOM
    most_x = max(x for x, _ in panel.points)
    most_y = _round_up(max(statistics.median(row[way]) for _, row in panel.points for way in COLOURS))

    def place(x: float, y: float) -> tuple[float, float]:
        return left + LEFT + inner * x / most_x, TOP + high * (1 - y / most_y)

    parts = [_text(left + LEFT, TOP - 14, panel.title, size=14)]
    for step in range(5):
        y = most_y * step / 4
        x0, height = place(0, y)
        parts.append(f'<path d="M{x0:.1f} {height:.1f}h{inner}" stroke="#ddd"/>')
        parts.append(_text(x0 - 6, height + 4, f"{y:g} {unit}" if step == 4 else f"{y:g}", anchor="end"))
    for x, _ in panel.points:
        # Small numbers stand too close to each other to be written.
        if x * 12 >= most_x:
            parts.append(_text(place(x, 0)[0], HEIGHT - BOTTOM + 16, str(x), anchor="middle"))
    parts.append(_text(left + LEFT + inner / 2, HEIGHT - BOTTOM + 34, panel.axis, anchor="middle"))
    for way, colour in COLOURS.items():
        dots = [place(x, statistics.median(row[way])) for x, row in panel.points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in dots]
    return "".join(parts)


def _round_up(value: float) -> float:
    """Returns a round number that is at least as large: 1, 2, 4 or 8 times a power of ten."""
    power = 10.0 ** (len(f"{value:.0f}") - 1) if value >= 1 else 10.0 ** -len(re.match(r"0\.0*", f"{value:.9f}")[0][2:])
    return next(scaled for step in (0.1, 0.2, 0.4, 0.8, 1, 2, 4, 8, 10) if (scaled := step * power) >= value)


def _text(x: float, y: float, words: str, size: int = 12, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="#333">{escape(words)}</text>'
