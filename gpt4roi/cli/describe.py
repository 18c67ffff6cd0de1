"""`gpt4roi describe`: boxes on one image in, one answer a box out."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from gpt4roi.cli import output
from gpt4roi.cli._model import (
    add_model_arguments,
    add_sampling_arguments,
    check_model_folder,
    open_chat,
    sampling_settings,
)
from gpt4roi.cli._regions import (
    add_region_arguments,
    box_text,
    drawing_target,
    given_regions,
    save_drawing,
    upright_regions,
)
from gpt4roi.errors import InputError

HELP = "answer questions about boxes on one image"
EXAMPLE = """
  gpt4roi describe photo.jpg --box 40,30,210,190 --box 220,35,400,260 --draw out.png
  gpt4roi describe photo.jpg --regions boxes.json --question "What is <region1>?" --json
  gpt4roi describe photo.jpg --box 40,30,210,190 --box 220,35,400,260 \\
      --question "Which is larger, <region1> or <region2>?"
  gpt4roi describe photo.jpg --box 40,30,210,190 --choices cat,dog,bird
  gpt4roi describe photo.jpg --question "What is going on here?"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the image, the boxes, the question and where the answers go."""
    parser.add_argument("image", metavar="IMAGE", help="an image file; - reads one from stdin")
    add_region_arguments(parser)
    parser.add_argument(
        "--question",
        metavar="TEXT",
        help="a question about <region1>, asked about each box by itself; or one that mentions several regions, asked "
        "once about all boxes; or, without boxes, one about the image (default: the model's own about each box)",
    )
    parser.add_argument(
        "--choices",
        metavar="A,B,…",
        help="labels to choose from in place of a free answer; the likeliest is written, with its probability",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--draw", metavar="FILE", help="also save the image with its numbered boxes")
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="boxes per batch (default: %(default)s)"
    )
    add_sampling_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Checks everything that is quick to check, then opens the model and answers."""
    if not args.boxes and args.regions is None and args.question is None:
        raise InputError("nothing to answer about: give --box X1,Y1,X2,Y2, --regions FILE, or --question TEXT")
    given = given_regions(args)
    drawn_to = drawing_target(args.draw)
    if args.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, got {args.batch_size}")
    check_model_folder(args.model)
    settings = sampling_settings(args)

    from gpt4roi.processing.user_input import open_image

    file = sys.stdin.buffer.read() if args.image == "-" else args.image
    image, regions = open_image(file), upright_regions(args, given, file)
    boxes_px = regions.boxes_px
    question, together = _read_question(args.question, len(boxes_px))
    labels = _read_labels(args.choices, together)

    chat = open_chat(args)
    if drawn_to is not None:
        save_drawing(image, boxes_px, drawn_to)
    if labels:
        found = chat.classify(regions, labels, question, image)
        _write_choices(args, question or chat.default_question, boxes_px.tolist(), found)
    elif together and question is not None:
        chat.set_image(image)
        _write_together(args, question, boxes_px.tolist(), chat.ask(question, regions, **settings))
    else:
        answers = chat.describe(image, regions, question, batch_size=args.batch_size, **settings)
        _write_each(args, question or chat.default_question, boxes_px.tolist(), answers)
    return 0


def _read_question(text: str | None, num_boxes: int) -> tuple[str | None, bool]:
    """Returns the question, and whether it is asked once about all boxes rather than about each."""
    if text is None:
        return None, False
    from gpt4roi.processing.mentions import number_boxes
    from gpt4roi.processing.user_input import clean_question, mentioned_regions, one_region_question

    question = clean_question(text)
    if not num_boxes or mentioned_regions(question) not in ([], [1]):
        number_boxes([question], num_boxes)
        return question, True
    return one_region_question(question), False


def _read_labels(text: str | None, together: bool) -> tuple[str, ...]:
    """Returns the labels of --choices; none where it was not given."""
    if text is None:
        return ()
    from gpt4roi.generation.likelihood import check_labels

    if together:
        raise InputError("--choices are labels of one region; ask about <region1>, and give at least one box")
    return check_labels(text.split(","))


def _fields(args: argparse.Namespace, question: str) -> dict[str, Any]:
    return {"picture": args.image, "model": args.model, "question": question}


def _write_each(args: argparse.Namespace, question: str, boxes: list[list[float]], answers: list[str]) -> None:
    if args.json:
        regions = [
            {"region": number, "box": box, "answer": answer}
            for number, (box, answer) in enumerate(zip(boxes, answers, strict=True), start=1)
        ]
        output.record({**_fields(args, question), "regions": regions})
        return
    for number, (box, answer) in enumerate(zip(boxes, answers, strict=True), start=1):
        output.line(f"{number}\t{box_text(box)}\t{' '.join(answer.split())}")


def _write_choices(
    args: argparse.Namespace, question: str, boxes: list[list[float]], found: list[dict[str, float]]
) -> None:
    regions = []
    for number, (box, shares) in enumerate(zip(boxes, found, strict=True), start=1):
        best = max(shares, key=shares.__getitem__)
        regions.append({"region": number, "box": box, "answer": best, "choices": shares})
        if not args.json:
            output.line(f"{number}\t{box_text(box)}\t{best}\t{shares[best]:.3f}")
    if args.json:
        output.record({**_fields(args, question), "regions": regions})


def _write_together(args: argparse.Namespace, question: str, boxes: list[list[float]], answer: str) -> None:
    if args.json:
        regions = [{"region": number, "box": box} for number, box in enumerate(boxes, start=1)]
        output.record({**_fields(args, question), "regions": regions, "answer": answer})
    else:
        output.line(" ".join(answer.split()))
