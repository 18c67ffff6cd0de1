"""`gpt4roi detect`: which of many proposals show what is asked for, and how many."""

from __future__ import annotations

import argparse
from pathlib import Path

from gpt4roi.cli import output
from gpt4roi.cli._model import add_model_arguments, check_model_folder, open_chat
from gpt4roi.cli._regions import (
    add_frame_arguments,
    box_text,
    drawing_target,
    given_regions,
    open_with_regions,
    save_drawing,
)

HELP = "find and count what is asked for among proposed boxes"
EXAMPLE = """
  gpt4roi detect photo.jpg --proposals boxes.json --query "a cup" --query "a spoon" --draw found.png
  gpt4roi detect photo.jpg --proposals boxes.json --query "a cup" --threshold 0 --out results.json --image-id 139
  gpt4roi detect photo.jpg --proposals boxes.json --query "a cup" --question "Is <region1> {}?"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the image, its proposals, what is asked for, and where the results go."""
    parser.add_argument("image", metavar="IMAGE", help="an image file; - reads one from stdin")
    parser.add_argument(
        "--proposals", dest="regions", metavar="FILE", required=True, help="boxes, as --regions of describe takes them"
    )
    parser.add_argument(
        "--query", dest="queries", metavar="TEXT", action="append", required=True, help="what to find; once for each"
    )
    parser.add_argument(
        "--question",
        metavar="TEXT",
        help="about <region1>: the score is the probability of the query as its answer; with {} in place of the query, "
        "of yes against no (default: the model's own question)",
    )
    parser.add_argument("--threshold", type=float, default=0.3, metavar="P", help="lowest score (default: %(default)s)")
    parser.add_argument(
        "--nms", type=float, default=0.5, metavar="IOU", help="overlap that is one thing (default: %(default)s)"
    )
    parser.add_argument("--out", metavar="FILE", help="also write COCO's results (a list of bbox, category_id, score)")
    parser.add_argument("--image-id", metavar="ID", help="image_id in --out (default: the file's name, without ending)")
    parser.add_argument("--draw", metavar="FILE", help="also save the image with what was found")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="answers scored at once (default: %(default)s)"
    )
    add_frame_arguments(parser)
    add_model_arguments(parser)
    parser.set_defaults(boxes=[])


def run(args: argparse.Namespace) -> int:
    """Checks everything that is quick to check, then opens the model, scores the proposals and writes what it found."""
    proposals = given_regions(args)
    drawn_to = drawing_target(args.draw)
    out = None if args.out is None else output.target_file("--out", args.out, "results.json")
    check_model_folder(args.model)

    from gpt4roi.generation.detect import check_limits, check_queries, coco_results
    from gpt4roi.io.atomic import atomic_write_text
    from gpt4roi.io.json_files import as_json
    from gpt4roi.processing.user_input import one_region_question

    queries = check_queries(args.queries)
    check_limits(args.threshold, args.nms, args.batch_size)
    if args.question is not None:
        one_region_question(args.question)
    image, regions = open_with_regions(args, proposals)
    scored = open_chat(args).detect(regions, queries, args.question, image, 0.0, args.nms, args.batch_size)
    found = [one for one in scored if one.score >= args.threshold]  # NMS is the same: likelier boxes alone drop others
    name = Path(args.image).stem if args.image_id is None else args.image_id
    results = coco_results(found, queries, int(name) if name.isdecimal() else name)
    if out is not None:
        atomic_write_text(out, as_json(results) + "\n")
    if drawn_to is not None:
        labels = [f"{one.query} {one.score:.2f}" for one in found]
        save_drawing(image, regions.take([one.region - 1 for one in found]), drawn_to, labels=labels)
    counts = {query: sum(one.query == query for one in found) for query in queries}
    for query in (query for query, count in counts.items() if not count):
        best = max((one.score for one in scored if one.query == query), default=0.0)
        hint = "word it as the model answers (gpt4roi describe), or lower --threshold"
        output.note(f"nothing reaches {args.threshold:g} for {query!r}; the highest is {best:.2g}: {hint}")
    if args.json:
        shown = [
            {"query": one.query, "region": one.region, "box": one.box.tolist(), "score": one.score} for one in found
        ]
        output.record({"picture": args.image, "model": args.model, "counts": counts, "found": shown})
        return 0
    for one in found:
        output.line(f"{one.query}\t{one.region}\t{box_text(one.box)}\t{one.score:.3f}")
    output.note(f"of {len(regions)} proposals: " + ", ".join(f"{query}: {count}" for query, count in counts.items()))
    return 0
