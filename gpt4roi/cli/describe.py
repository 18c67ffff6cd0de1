"""`gpt4roi describe`: boxes on one image in, one answer a box out."""

from __future__ import annotations

import argparse
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
    open_with_regions,
    save_drawing,
)
from gpt4roi.errors import InputError

HELP = "answer questions about boxes on one image"
EXAMPLE = """
  gpt4roi describe photo.jpg --box 40,30,210,190 --box 220,35,400,260 --draw out.png
  gpt4roi describe photo.jpg --regions boxes.json --question "What is <region1>?" --json
  gpt4roi describe photo.jpg --box 40,30,210,190 --box 220,35,400,260 \\
      --question "Which is larger, <region1> or <region2>?"
  gpt4roi describe photo.jpg --box 40,30,210,190 --choices cat,dog,bird
  gpt4roi describe photo.jpg --regions boxes.json --question "What is <region1>?" --question "What colour is <region1>?"
  gpt4roi describe photo.jpg --regions boxes.json --pair 1,2 --pair 3,1 --question "Is <region1> left of <region2>?"
  gpt4roi describe photo.jpg --question "What is going on here?"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the image, the boxes, the question and where the answers go."""
    parser.add_argument("image", metavar="IMAGE", help="an image file; - reads one from stdin")
    add_region_arguments(parser)
    parser.add_argument(
        "--question",
        metavar="TEXT",
        action="append",
        help="a question about <region1>, asked about each box by itself, and several if given several times; or one "
        "that mentions several regions, asked once about all boxes; or, without boxes, one about the image (default: "
        "the model's own about each box)",
    )
    parser.add_argument(
        "--pair",
        dest="pairs",
        metavar="A,B",
        action="append",
        help="ask the question, about <region1> and <region2>, about these two boxes, by their numbers; once for each "
        "pair",
    )
    parser.add_argument(
        "--choices",
        metavar="A,B,…",
        help="labels to choose from in place of a free answer; the likeliest is written, with its probability",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, in one line")
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

    image, regions = open_with_regions(args, given)
    boxes_px = regions.boxes_px
    pairs = None if args.pairs is None else [_parse_pair(text) for text in args.pairs]
    questions, together = _read_questions(args.question, len(boxes_px), pairs)
    labels = _read_labels(args.choices, together, questions)

    chat = open_chat(args)
    if drawn_to is not None:
        save_drawing(image, regions, drawn_to)
    boxes, asked = boxes_px.tolist(), questions or [chat.default_question]
    if labels:
        found = chat.classify(regions, labels, asked[0], image, pairs=pairs)
        answers: list[dict[str, Any]] = [{"answer": max(one, key=one.__getitem__), "choices": one} for one in found]
        _write_each(args, asked, boxes, pairs, answers)
    elif together:
        chat.set_image(image)
        _write_together(args, asked[0], boxes, chat.ask(asked[0], regions, **settings))
    else:
        texts = chat.describe(image, regions, asked, batch_size=args.batch_size, pairs=pairs, **settings)
        answers = [{"answer": row[0]} if len(asked) == 1 else {"answers": row} for row in texts]
        _write_each(args, asked, boxes, pairs, answers)
    return 0


def _parse_pair(text: str) -> list[Any]:
    parts = [part.strip() for part in text.split(",")]
    return [int(part) if part.isascii() and part.isdigit() and len(part) < 9 else part for part in parts]


def _read_questions(texts: list[str] | None, num_boxes: int, pairs: list[list[Any]] | None) -> tuple[list[str], bool]:
    """Returns the questions, none for the model's own, and whether one is asked once about all boxes."""
    from gpt4roi.processing.mentions import number_boxes
    from gpt4roi.processing.user_input import (
        clean_question,
        groups_of_regions,
        mentioned_regions,
        one_region_question,
        pair_question,
    )

    if pairs is not None:
        groups_of_regions(num_boxes, pairs)
        if texts is None:
            raise InputError("--pair needs a --question about <region1> and <region2>")
        return [pair_question(text) for text in texts], False
    questions = [clean_question(text) for text in texts or []]
    if len(questions) == 1 and (not num_boxes or mentioned_regions(questions[0]) not in ([], [1])):
        number_boxes(questions, num_boxes)
        return questions, True
    return [one_region_question(question) for question in questions], False


def _read_labels(text: str | None, together: bool, questions: list[str]) -> tuple[str, ...]:
    """Returns the labels of --choices; none where it was not given."""
    if text is None:
        return ()
    from gpt4roi.generation.likelihood import check_labels

    if together:
        raise InputError("--choices are labels of one region; ask about <region1>, and give at least one box")
    if len(questions) > 1:
        raise InputError(f"--choices are labels for one question, got {len(questions)}; ask them one by one")
    return check_labels(text.split(","))


def _fields(args: argparse.Namespace, questions: list[str]) -> dict[str, Any]:
    asked = {"question": questions[0]} if len(questions) == 1 else {"questions": questions}
    return {"picture": args.image, "model": args.model, **asked}


def _write_each(
    args: argparse.Namespace,
    questions: list[str],
    boxes: list[list[float]],
    pairs: list[list[int]] | None,
    answers: list[dict[str, Any]],
) -> None:
    """Writes a line for each box or pair: number, box, answers; or one JSON object."""
    about: list[dict[str, Any]]
    if pairs is None:
        about = [{"region": number, "box": box} for number, box in enumerate(boxes, start=1)]
    else:
        about = [{"pair": pair, "boxes": [boxes[number - 1] for number in pair]} for pair in pairs]
    if args.json:
        records = [{**one, **answer} for one, answer in zip(about, answers, strict=True)]
        output.record({**_fields(args, questions), "regions" if pairs is None else "pairs": records}, indent=None)
        return
    for one, answer in zip(about, answers, strict=True):
        numbers, areas = ([one["region"]], [one["box"]]) if pairs is None else (one["pair"], one["boxes"])
        head = [",".join(map(str, numbers)), *map(box_text, areas)]
        texts = [" ".join(text.split()) for text in answer.get("answers", [answer.get("answer", "")])]
        shares = answer.get("choices")
        output.line("\t".join([*head, *texts, *([f"{shares[answer['answer']]:.3f}"] if shares else [])]))


def _write_together(args: argparse.Namespace, question: str, boxes: list[list[float]], answer: str) -> None:
    if args.json:
        regions = [{"region": number, "box": box} for number, box in enumerate(boxes, start=1)]
        output.record({**_fields(args, [question]), "regions": regions, "answer": answer}, indent=None)
    else:
        output.line(" ".join(answer.split()))
