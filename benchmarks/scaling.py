"""Times the region encoder over the number of boxes and the size of the image, against its plain formulation.

    python benchmarks/scaling.py [--quick]

The comparison of region_encoder.py at a quarter of the width, so that many points cost minutes; forward only, with
`roi_align_backend="auto"`. The figure is drawn from these rows.
"""

from __future__ import annotations

from collections.abc import Iterator

from common import Row, devices, main
from region_encoder import IMAGE, Comparison

CHANNELS = 256
BOXES, SIDES = (1, 2, 4, 8, 16, 32, 64), (112, 224, 336, 448)
BOXES_OF_SIDES = 8


def measure(quick: bool) -> Iterator[Row]:
    """Varies the number of boxes at one size, then the size at one number of boxes."""
    channels, boxes, sides = (64, (1, 8), (112, 224)) if quick else (CHANNELS, BOXES, SIDES)
    for device in devices():
        points = [(count, IMAGE) for count in boxes]
        points += [(BOXES_OF_SIDES, side) for side in sides if (BOXES_OF_SIDES, side) not in points]
        for count, side in points:
            comparison = Comparison(channels, count, ["auto"], device, side)
            comparison.title = case(channels, count, side)
            yield from comparison.rows(False, repeats=2)


def case(channels: int, count: int, side: int) -> str:
    """Names a point of the figure."""
    return f"width {channels}, {side} px, {count} box{'es' if count > 1 else ''}"


if __name__ == "__main__":
    main(measure, __doc__)
