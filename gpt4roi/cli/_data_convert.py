"""`gpt4roi data convert`: its arguments, and from which format to which."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpt4roi.cli import output
from gpt4roi.cli._outcome import add_bound, exit_code
from gpt4roi.cli._regions import add_frame_arguments, frame_rule
from gpt4roi.errors import InputError
from gpt4roi.io.atomic import atomic_path, only_writer
from gpt4roi.io.sizes import counted

logger = logging.getLogger(__name__)

FORMATS = {
    "list": "what --dataset_config takes: a list of data sets, joined, or a unified file",
    "llava": "LLaVA's json, checked",
    "coco": "COCO's form, with a caption for each box or else its category",
    "lvis": "LVIS's json: categories of boxes",
    "osprey": "a file of Osprey-724K",
    "page": "conversations saved by the demo page, a file or a folder of them",
    "eva": "EVA's pickle of detections, to an .npz that opens without pickle",
}

SETS = "RefCOCO, RefCOCOG, RefCOCOP, VGDATA, coco_det, det_llava, flickr30k, multi_vcr, single_vcr, unified, vcr"
"""The readers' names; written here, because help must not wait for the readers to be imported."""


def add_convert(subcommands: Any) -> None:
    """Adds the subcommand."""
    parser = subcommands.add_parser(
        "convert",
        help="turn other formats into the unified one, or into COCO's",
        description="Reads SOURCE and writes OUT, which appears when it is complete. What cannot be converted is "
        "counted and named. Formats: "
        + "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
        + f"; and {SETS}: as "
        "`type` in a list of data sets says, one draw of its dialogues for each epoch.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="annotation file, or a list of data sets")
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="file to write: .jsonl; .json for --to coco; .npz for eva"
    )
    parser.add_argument("--from", dest="from_", default="list", metavar="FORMAT", help="default: %(default)s")
    parser.add_argument("--to", default="unified", choices=("unified", "coco"), help="default: %(default)s")
    parser.add_argument("--img-prefix", metavar="DIR", help="folder of the images (default: the source's own)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="another key of the data set; repeat it"
    )
    parser.add_argument("--question", metavar="TEXT", help="coco, lvis: the question, with {region} for the box")
    parser.add_argument("--crowds", action="store_true", help="coco, lvis: take boxes marked iscrowd too")
    parser.add_argument(
        "--masks", action="store_true", help="coco, lvis, osprey, page: write masks, for models with region_shape mask"
    )
    parser.add_argument("--labels", action="store_true", help="to COCO: every different text becomes a category")
    parser.add_argument(
        "--epochs", "--visits", type=int, default=1, metavar="N", help="draws of each sample (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of these draws (default: %(default)s)")
    add_frame_arguments(parser)
    add_bound(parser, "of SOURCE is faulty, or of its images is not there")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    existing.add_argument("--append", action="store_true", help="add to OUT (.jsonl) what it does not ask already")


def convert(args: argparse.Namespace) -> int:
    """Converts, prints one line that says what was written, and returns the exit code."""
    _check(args)
    with only_writer(args.out):
        _check_out(args)
        return _convert_detections(args) if args.from_ == "eva" else _convert(args)


def _convert(args: argparse.Namespace) -> int:
    from gpt4roi.data.convert.coco import write_coco
    from gpt4roi.data.convert.objects import NOT_THERE, Conversion, write_objects

    target = Conversion(args.out.parent, frame_rule(args), masks=args.masks)
    objects = _with_bar(_objects(args, target), args.out.name)
    if args.to == "coco":
        written = counted(write_coco(objects, args.out, target, args.labels), "box")
    else:
        written = counted(write_objects(objects, args.out, target, args.append), "object")
    if args.append:
        written += f" added, {target.present} there already"
    left = sum(target.left_out.values())
    reasons, noted = (
        "; ".join(f"{reason}: {count}" for reason, count in counts.most_common())
        for counts in (target.left_out, target.noted)
    )
    parts = (f"left out {left} ({reasons})" if left else "", noted, target.frames.text())
    output.line("; ".join([f"{args.out}: {written}", *filter(None, parts)]))
    for message in target.examples:
        logger.warning("%s", message)
    missing, bound = target.noted[NOT_THERE], args.max_bad_fraction
    faults = exit_code(target.faults, target.faults + target.kept, "parts of the file cannot be used", bound)
    return faults or exit_code(missing, target.images, "images are not there", bound)


def _check(args: argparse.Namespace) -> None:
    from gpt4roi.data.registry import READERS

    if args.from_ not in FORMATS and args.from_ not in READERS:
        raise InputError(f"unknown format {args.from_!r}; known are {', '.join([*FORMATS, *sorted(READERS)])}")
    if not (args.source.is_file() or (args.from_ == "page" and args.source.is_dir())):
        raise InputError(f"{args.source}: no such file; give the file to convert")
    if args.out.is_dir():
        raise InputError(f"{args.out}: is a folder; give the file to write")
    if args.from_ not in ("coco", "lvis", "osprey") and (args.scale_boxes or args.frame != "auto"):
        raise InputError(f"--frame and --scale-boxes are for coco, lvis and osprey; {args.from_} states its frames")
    if args.masks and (args.from_ not in ("coco", "lvis", "osprey", "page") or args.to == "coco"):
        raise InputError("--masks writes masks of coco, lvis, osprey and page into the unified format; leave it out")
    if args.epochs < 1:
        raise InputError(f"--epochs must be at least 1, got {args.epochs}")
    if args.append and (args.to == "coco" or args.from_ == "eva"):
        raise InputError("--append adds lines of the unified format; COCO's form and EVA's have none")


def _check_out(args: argparse.Namespace) -> None:
    if args.out.exists() and (args.out.samefile(args.source) or not (args.overwrite or args.append)):
        replace = "give --overwrite to replace it, or --append to add to it"
        raise InputError(
            f"{args.out}: exists already; {'it is the source' if args.out.samefile(args.source) else replace}"
        )


def _objects(args: argparse.Namespace, target: Any) -> Iterator[dict[str, Any]]:
    """Yields the objects of the source."""
    from gpt4roi.data.convert.coco import QUESTION, objects_of_coco
    from gpt4roi.data.convert.objects import objects_of
    from gpt4roi.data.convert.osprey import objects_of_osprey
    from gpt4roi.data.convert.page import objects_of_page
    from gpt4roi.data.registry import build_mixture

    own_folder = args.source if args.source.is_dir() else args.source.parent
    folder = args.img_prefix if args.img_prefix is not None else own_folder
    if args.from_ in ("coco", "lvis"):
        yield from objects_of_coco(args.source, folder, target, args.question or QUESTION, args.crowds)
    elif args.from_ == "osprey":
        yield from objects_of_osprey(args.source, folder, target)
    elif args.from_ == "page":
        yield from objects_of_page(args.source, folder, target)
    else:
        config = str(args.source) if args.from_ == "list" else [_entry(args)]
        for part in build_mixture(config, args.seed).parts:
            yield from objects_of(part, target, args.epochs, args.seed)


def _entry(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the entry of a list of data sets that the arguments stand for."""
    kind = "unified" if args.from_ == "llava" else args.from_
    entry: dict[str, Any] = {"type": kind, "ann_file": str(args.source)}
    entry["img_prefix"] = args.img_prefix if args.img_prefix is not None else str(args.source.parent)
    for option in args.option:
        key, equals, value = option.partition("=")
        if not equals:
            raise InputError(f"--option takes KEY=VALUE, got {option!r}")
        try:
            entry[key] = json.loads(value)
        except ValueError:  # a plain word, such as a path
            entry[key] = value
    return entry


def _convert_detections(args: argparse.Namespace) -> int:
    from gpt4roi.data.readers.detections import read_detections
    from gpt4roi.io.json_files import read_bytes

    if args.out.suffix != ".npz":
        raise InputError(f"{args.out}: detections are written as .npz; give such a name")
    found = read_detections(args.source, read_bytes(args.source))
    with atomic_path(args.out) as beside:
        found.save(beside)
    output.line(f"{args.out}: {len(found.names)} images, {len(found.labels)} boxes; name it as det_pkl_path")
    return 0


def _with_bar(objects: Iterable[Any], title: str) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(objects, desc=title, unit=" objects", mininterval=0.5, disable=None)
