"""`gpt4roi describe`: boxes on one picture in, one answer a box out."""

from __future__ import annotations

import argparse
from pathlib import Path

from gpt4roi.cli import output
from gpt4roi.cli._model import add_model_arguments, check_model_folder, open_chat
from gpt4roi.errors import InputError

HELP = "answer about boxes on one picture"
EXAMPLE = """
  gpt4roi describe photo.jpg --box 40,30,210,190 --box 220,35,400,260 --draw out.png
  gpt4roi describe photo.jpg --box 40,30,210,190 --question "What is <region1>?" --json
  gpt4roi describe photo.jpg --box 40,30,210,190 --box 220,35,400,260 \\
      --question "Which is larger, <region1> or <region2>?"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the picture, the boxes, the question and where the answers go."""
    parser.add_argument("picture", metavar="PICTURE", help="a picture file")
    parser.add_argument(
        "--box",
        dest="boxes",
        metavar="X1,Y1,X2,Y2",
        action="append",
        required=True,
        help="a box in pixels of the picture, top left and bottom right; once for each region, numbered from 1",
    )
    parser.add_argument(
        "--question",
        metavar="TEXT",
        help="a question about <region1>, asked about each box by itself; or one that mentions several regions, asked "
        "once about all boxes (default: the model's own)",
    )
    parser.add_argument("--json", action="store_true", help="write one JSON object instead of lines")
    parser.add_argument("--draw", metavar="FILE", help="also save the picture with its numbered boxes")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="cut answers (default: %(default)s)"
    )
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Checks everything that is quick to check, then opens the model and answers."""
    boxes = [parse_box(text, number) for number, text in enumerate(args.boxes, start=1)]
    drawn_to = _check_draw(args.draw)
    if args.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens must be at least 1, got {args.max_new_tokens}")
    check_model_folder(args.model)

    from gpt4roi.inputs import check_boxes, clean_question, mentioned_regions, one_region_question, open_picture
    from gpt4roi.mentions import number_boxes

    picture = open_picture(args.picture)
    boxes_px = check_boxes(boxes, (picture.height, picture.width))
    question = None if args.question is None else clean_question(args.question)
    together = question is not None and mentioned_regions(question) not in ([], [1])
    if together:
        number_boxes([question], len(boxes_px))
    elif question is not None:
        question = one_region_question(question)

    chat = open_chat(args)
    if drawn_to is not None:
        _draw(picture, boxes_px, drawn_to)
    if together:
        chat.set_image(picture)
        answer = chat.ask(question, boxes_px, max_new_tokens=args.max_new_tokens)
        _write_together(args, question, boxes, answer)
    else:
        answers = chat.describe(picture, boxes_px, question, max_new_tokens=args.max_new_tokens)
        _write_each(args, question or chat.default_question, boxes, answers)
    return 0


def parse_box(text: str, number: int) -> list[float]:
    """Reads `x1,y1,x2,y2`; blanks around the numbers are allowed. Raises InputError naming the box."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 4:
        raise InputError(f"box {number}: expected four numbers x1,y1,x2,y2 in pixels, got {text!r}")
    return values


def _check_draw(path: str | None) -> Path | None:
    if path is None:
        return None
    target = Path(path)
    if target.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"--draw {path}: expected a file name that ends in .png, .jpg or .webp")
    if not target.parent.is_dir():
        raise InputError(f"--draw {path}: the folder {target.parent} does not exist; make it first")
    return target


def _draw(picture, boxes_px, target: Path) -> None:
    from gpt4roi.drawing import draw_boxes

    try:
        draw_boxes(picture, boxes_px).save(target)
    except OSError as error:
        raise InputError(f"--draw {target}: cannot be written: {error}") from None


def _write_each(args: argparse.Namespace, question: str, boxes: list[list[float]], answers: list[str]) -> None:
    if args.json:
        regions = [
            {"region": number, "box": box, "answer": answer}
            for number, (box, answer) in enumerate(zip(boxes, answers, strict=True), start=1)
        ]
        output.record({"picture": args.picture, "model": args.model, "question": question, "regions": regions})
        return
    for number, (box, answer) in enumerate(zip(boxes, answers, strict=True), start=1):
        output.line(f"{number}\t{','.join(f'{value:g}' for value in box)}\t{' '.join(answer.split())}")


def _write_together(args: argparse.Namespace, question: str, boxes: list[list[float]], answer: str) -> None:
    if args.json:
        regions = [{"region": number, "box": box} for number, box in enumerate(boxes, start=1)]
        fields = {"picture": args.picture, "model": args.model, "question": question, "regions": regions}
        output.record({**fields, "answer": answer})
    else:
        output.line(" ".join(answer.split()))
