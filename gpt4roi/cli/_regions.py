"""Boxes on the command line: `--box`, and `--regions` from a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def add_region_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares boxes, one by one and from a file."""
    parser.add_argument(
        "--box",
        dest="boxes",
        metavar="X1,Y1,X2,Y2",
        action="append",
        default=[],
        help="a box in pixels of the image, top left and bottom right; once for each region, numbered from 1",
    )
    parser.add_argument(
        "--regions",
        metavar="FILE",
        help="JSON with boxes or masks, numbered on after --box: a list of [x1, y1, x2, y2], what describe --json "
        "wrote, or COCO annotations (bbox, segmentation)",
    )


def given_regions(args: argparse.Namespace) -> list[Any]:
    """Returns boxes and masks in order, not checked yet. Raises InputError naming what cannot be read."""
    regions: list[Any] = [parse_box(text, number) for number, text in enumerate(args.boxes, start=1)]
    if args.regions is not None:
        from gpt4roi.processing.user_input import read_regions

        regions += read_regions(args.regions, image=args.image)
    return regions


def parse_box(text: str, number: int) -> list[float]:
    """Reads `x1,y1,x2,y2`; blanks around the numbers are allowed. Raises InputError naming the box."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 4:
        raise InputError(f"box {number}: expected four numbers x1,y1,x2,y2 in pixels, got {text!r}")
    return values


def box_text(box: Any) -> str:
    """Writes a box as --box reads it."""
    return ",".join(f"{value:g}" for value in box)


def drawing_target(path: str | None, flag: str = "--draw") -> Path | None:
    """Checks where a drawing goes. Raises InputError on another kind of file, and where there is no such folder."""
    if path is None:
        return None
    target = Path(path)
    if target.suffix.lower() not in IMAGE_ENDINGS:
        raise InputError(f"{flag} {path}: expected a file name that ends in .png, .jpg or .webp")
    if not target.parent.is_dir():
        raise InputError(f"{flag} {path}: the folder {target.parent} does not exist; make it first")
    return target


def save_drawing(image: Any, boxes_px: Any, target: Path, flag: str = "--draw") -> None:
    """Saves the image with its numbered boxes."""
    from gpt4roi.report.drawing import draw_boxes

    try:
        draw_boxes(image, boxes_px).save(target)
    except (OSError, ValueError) as error:  # the latter where the format has no images of this size
        raise InputError(f"{flag} {target}: cannot be written: {error}") from None
