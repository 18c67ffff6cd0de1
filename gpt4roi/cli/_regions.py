"""Boxes on the command line: `--box`, and `--regions` from a file."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt4roi.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from gpt4roi.geometry.frames import FrameClues, FrameRule

logger = logging.getLogger(__name__)

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
    add_frame_arguments(parser)


def add_frame_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares how the frame of boxes from a file is found."""
    parser.add_argument(
        "--frame",
        choices=("auto", "upright", "stored"),
        default="auto",
        help="boxes are of the image as it is seen upright, or as it is stored without its EXIF rotation (default: "
        "what the file and its sizes tell; upright where they do not)",
    )
    parser.add_argument(
        "--scale-boxes",
        action="store_true",
        help="scale the boxes of images whose size in the file differs by one factor (default: they are refused)",
    )


def frame_rule(args: argparse.Namespace) -> FrameRule:
    """Returns how the frame of boxes is found."""
    from gpt4roi.geometry.frames import FrameRule

    return FrameRule(args.frame, args.scale_boxes)


def given_regions(args: argparse.Namespace) -> list[tuple[list[Any], FrameClues]]:
    """Returns the regions of --box and those of --regions, not checked yet, with what is known of their frame.

    Raises:
        InputError: A box or the file cannot be read.
    """
    from gpt4roi.geometry.frames import FrameClues
    from gpt4roi.processing.user_input import read_framed_regions

    boxes = [parse_box(text, number) for number, text in enumerate(args.boxes, start=1)]
    groups: list[tuple[list[Any], FrameClues]] = [(boxes, FrameClues(frame="upright"))]
    return groups if args.regions is None else [*groups, read_framed_regions(args.regions, image=args.image)]


def upright_boxes(
    args: argparse.Namespace, groups: list[tuple[list[Any], FrameClues]], image: str | bytes
) -> np.ndarray:
    """Returns the boxes of given_regions, float[N, 4] xyxy in pixels of the image as it is seen upright.

    Args:
        args: As add_region_arguments declares them.
        groups: From given_regions.
        image: Its path, data URL or encoded file.

    Raises:
        InputError: A box cannot be used, or the file is of an image of another size.
    """
    import numpy as np

    from gpt4roi.geometry.frames import FrameCounts
    from gpt4roi.processing.user_input import image_header, validate_boxes_px

    header, rule, counts, boxes_px = image_header(image), frame_rule(args), FrameCounts(), np.zeros((0, 4))
    for number, (regions, clues) in enumerate(groups):
        if regions:
            placed = rule.place(header, clues, str(args.image), f"{args.regions}: " if number else "")
            boxes = validate_boxes_px(regions, placed.box_size, len(boxes_px) + 1)
            boxes_px = np.concatenate([boxes_px, placed.upright(boxes)])
            counts.add(placed.remarks() if number or placed.frame == "stored" else (), placed.image)
    if counts.counts:
        logger.info("%s", counts.text())
    return boxes_px


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


def save_drawing(image: Any, boxes_px: Any, target: Path, flag: str = "--draw", heatmaps: Any = None) -> None:
    """Saves the image with its numbered boxes, once for each heatmap where there are some."""
    from gpt4roi.report.drawing import draw_boxes, draw_heatmaps

    try:
        drawn = draw_heatmaps(image, boxes_px, heatmaps) if heatmaps else draw_boxes(image, boxes_px)
        drawn.save(target)
    except (OSError, ValueError) as error:  # the latter where the format has no images of this size
        raise InputError(f"{flag} {target}: cannot be written: {error}") from None
