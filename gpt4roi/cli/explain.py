"""`gpt4roi explain`: where an answer looked, as heatmaps over the image and as numbers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gpt4roi.cli import output
from gpt4roi.cli._model import (
    add_model_arguments,
    add_sampling_arguments,
    check_model_folder,
    open_chat,
    sampling_settings,
)
from gpt4roi.cli._regions import add_region_arguments, drawing_target, given_regions, open_with_regions, save_drawing
from gpt4roi.errors import InputError

HELP = "show where an answer looked"
EXAMPLE = """
  gpt4roi explain photo.jpg --box 40,30,210,190 --draw explained.png
  gpt4roi explain photo.jpg --box 40,30,210,190 --box 220,35,400,260 \\
      --question "Which is larger, <region1> or <region2>?" --json
  gpt4roi explain photo.jpg --box 40,30,210,190 --answer "a cat" --methods occlusion --cells 20
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the image, its boxes, the question, the methods and where they are drawn."""
    parser.add_argument("image", metavar="IMAGE", help="an image file; - reads one from stdin")
    add_region_arguments(parser)
    parser.add_argument(
        "--question", metavar="TEXT", help="mentions the boxes as <region1>, … (default: the model's own about one box)"
    )
    parser.add_argument("--answer", metavar="TEXT", help="explain this answer (default: the model's own)")
    parser.add_argument(
        "--methods",
        metavar="A,B,…",
        help="some of occlusion,gradient,attention (default: all, of a pretrained vision-language model occlusion); "
        "occlusion measures what the answer depends on",
    )
    parser.add_argument(
        "--cells",
        type=int,
        default=6,
        metavar="N",
        help="occluded cells along each side, about (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="occluded images at once (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object with all numbers instead of lines")
    parser.add_argument("--draw", metavar="FILE", help="also save the image with each heatmap laid over it")
    parser.add_argument("--report", metavar="FILE", help="also write a page (HTML) with the heatmaps and the shares")
    add_sampling_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Checks everything that is quick to check, then opens the model, answers and explains."""
    if not args.boxes and args.regions is None and args.question is None:
        raise InputError("nothing to explain: give --box X1,Y1,X2,Y2, --regions FILE, or --question TEXT")
    given = given_regions(args)
    drawn_to = drawing_target(args.draw)
    check_model_folder(args.model)
    settings: dict[str, Any] = sampling_settings(args)
    methods = None if args.methods is None else [name.strip() for name in args.methods.split(",")]
    if args.report is not None and Path(args.report).is_dir():
        raise InputError(f"--report {args.report}: is a folder; give a file name such as explained.html")

    from gpt4roi.generation.explain import check_settings

    check_settings(methods, args.cells, args.batch_size)
    image, regions = open_with_regions(args, given)
    chat = open_chat(args)
    if chat.model.packs_sequences and (
        methods is None or "attention" in methods
    ):  # no other implementation gives its weights
        chat.model.language_model.set_attn_implementation("eager")
    found = chat.explain(regions, args.question, image, args.answer, methods, args.cells, args.batch_size, **settings)
    if found.remark:
        output.note(found.remark)
    if drawn_to is not None:
        save_drawing(image, regions, drawn_to, heatmaps=found.heatmaps)
    if args.report is not None:
        _write_report(args, image, found)
    if args.json:
        output.record({"picture": args.image, "model": args.model, **found.as_record()}, indent=None)
        return 0
    output.line(" ".join(found.answer.split()))
    for method in found.heatmaps:
        for number, share in enumerate(found.inside(method), start=1):
            output.line(f"{method}\t{number}\t{share:.3f}")
    return 0


def _write_report(args: argparse.Namespace, image: Any, found: Any) -> None:
    from gpt4roi.report.drawing import draw_heatmaps
    from gpt4roi.report.report import Answer, GalleryItem, Report

    said = [Answer(found.question, found.answer)]
    items, rows = [], []
    for method, heat in found.heatmaps.items():
        items.append(GalleryItem(draw_heatmaps(image, found, {method: heat}), (), method, said))
        rows += [[method, number, round(share, 3)] for number, share in enumerate(found.inside(method), 1)]
    page = Report("Where an answer looked", f"{args.image}, {args.model}").gallery("Heatmaps", items)
    if rows:
        page.table("Part of each heatmap inside of each region", ["method", "region", "part"], rows)
    page.write(args.report)
