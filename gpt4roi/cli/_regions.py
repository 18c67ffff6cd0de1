"""Regions on the command line: `--box`, `--point`, `--mask`, and `--regions` from a file."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt4roi.cli import output
from gpt4roi.cli._model import reads_masks
from gpt4roi.errors import InputError

if TYPE_CHECKING:
    from gpt4roi.geometry.frames import FrameClues, FrameRule
    from gpt4roi.structures import Regions

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


class Given(str):
    """What one of --box, --point and --mask was given, all of which are numbered together; `kind` is which."""

    kind = "box"

    @classmethod
    def of(cls, kind: str) -> type[Given]:
        """Returns the class of one option."""
        return type(kind.title(), (cls,), {"kind": kind})


def add_region_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares boxes, points and masks, one by one and from a file."""
    parser.add_argument(
        "--box",
        dest="boxes",
        metavar="X1,Y1,X2,Y2",
        action="append",
        default=[],
        help="a box in pixels of the image, top left and bottom right; once for each region, numbered from 1",
    )
    parser.add_argument(
        "--point",
        dest="boxes",
        metavar="X,Y",
        action="append",
        type=Given.of("point"),
        help="a small round region, of a radius of 2 percent of the longer side; numbered with the boxes",
    )
    parser.add_argument(
        "--mask",
        dest="boxes",
        metavar="FILE",
        action="append",
        type=Given.of("mask"),
        help="a region as an image file of the same size, 0 outside; a model of boxes gets the box around it",
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
    """Returns the regions given one by one and those of --regions, not checked yet, with what is known of their frame.

    Raises:
        InputError: A box or the file cannot be read.
    """
    boxes = [parse_region(text, number) for number, text in enumerate(args.boxes, start=1)]

    from gpt4roi.geometry.frames import FrameClues

    groups: list[tuple[list[Any], FrameClues]] = [(boxes, FrameClues(frame="upright"))]
    if args.regions is None:
        return groups

    from gpt4roi.processing.region_files import read_framed_regions  # imports torch, which a wrong box does without

    masks = reads_masks(getattr(args, "model", ""))
    return [*groups, read_framed_regions(args.regions, image=args.image, masks=masks)]


def upright_regions(
    args: argparse.Namespace, groups: list[tuple[list[Any], FrameClues]], image: str | bytes
) -> Regions:
    """Returns the regions of given_regions, in pixels of the image as it is seen upright.

    Args:
        args: As add_region_arguments declares them.
        groups: From given_regions.
        image: Its path, data URL or encoded file.

    Raises:
        InputError: A region cannot be used, or the file is of an image of another size.
    """
    from gpt4roi.geometry.frames import FrameCounts
    from gpt4roi.processing.user_input import image_header, validate_regions
    from gpt4roi.structures import Regions

    header, rule, counts, found = image_header(image), frame_rule(args), FrameCounts(), Regions()
    for number, (regions, clues) in enumerate(groups):
        if regions:
            placed = rule.place(header, clues, str(args.image), f"{args.regions}: " if number else "")
            read = validate_regions(regions, placed.box_size, len(found) + 1)
            found += Regions(placed.upright(read.boxes_px), tuple(map(placed.upright_mask, read.masks)))
            counts.add(placed.remarks() if number or placed.frame == "stored" else (), placed.image)
    if counts.counts:
        logger.info("%s", counts.text())
    return found


def open_with_regions(args: argparse.Namespace, groups: list[tuple[list[Any], FrameClues]]) -> tuple[Any, Regions]:
    """Opens the image, of stdin where its path is `-`, and returns it with its regions, as of upright_regions."""
    from gpt4roi.processing.user_input import open_image

    file = sys.stdin.buffer.read() if args.image == "-" else args.image
    return open_image(file), upright_regions(args, groups, file)


def parse_region(text: str, number: int) -> Any:
    """Reads what --box, --point or --mask was given. Raises InputError naming the region."""
    kind = getattr(text, "kind", "box")
    if kind == "box":
        return parse_box(text, number)
    if kind == "point":
        try:
            x, y = (float(part) for part in text.split(","))
        except ValueError:
            raise InputError(f"region {number}: expected a point x,y in pixels, got {str(text)!r}") from None
        return {"point": [x, y]}
    from gpt4roi.processing.user_input import open_mask

    return open_mask(text)


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
    if Path(path).suffix.lower() not in IMAGE_ENDINGS:
        raise InputError(f"{flag} {path}: expected a file name that ends in .png, .jpg or .webp")
    return output.target_file(flag, path, "drawn.png")


def save_drawing(
    image: Any, regions: Any, target: Path, flag: str = "--draw", heatmaps: Any = None, labels: Any = None
) -> None:
    """Saves the image with its numbered (or labelled) regions, once for each heatmap where there are some."""
    from gpt4roi.report.drawing import draw_boxes, draw_heatmaps

    try:
        drawn = draw_heatmaps(image, regions, heatmaps) if heatmaps else draw_boxes(image, regions, labels)
        drawn.save(target)
    except (OSError, ValueError) as error:  # the latter where the format has no images of this size
        raise InputError(f"{flag} {target}: cannot be written: {error}") from None
