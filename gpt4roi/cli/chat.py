"""`gpt4roi chat`: a conversation about an image in the terminal, or line by line through a pipe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
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
from gpt4roi.cli._regions import (
    Given,
    add_region_arguments,
    box_text,
    drawing_target,
    given_regions,
    parse_region,
    save_drawing,
    upright_regions,
)
from gpt4roi.errors import InputError
from gpt4roi.io.json_files import as_json

HELP = "talk about an image in the terminal"
EXAMPLE = """
  gpt4roi chat photo.jpg --box 40,30,210,190
  printf '%s\\n' 'What is <region1>?' '/box 220,35,400,260' 'And <region2>?' | gpt4roi chat photo.jpg \\
      --box 40,30,210,190 --json
"""
COMMANDS = """\
A line is a question; <region1> (or <1>) in it introduces box 1, later it is only region1. Commands:
  /box X1,Y1,X2,Y2   add a box, in pixels; prints its number
  /point X,Y         add a small round region
  /boxes             list the boxes
  /undo              remove the last box that was not asked about yet
  /draw FILE         save the image with its numbered boxes
  /save FILE         save the conversation as JSON
  /reset             forget the conversation and its boxes
  /image FILE        start a new conversation about another image
  /help, /quit"""
EXIT_SOME_FAILED = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the image, the first boxes and how answers are written."""
    parser.epilog = f"{parser.epilog}\n\n{COMMANDS}"
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    add_region_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line for each answer")
    parser.add_argument("--draw", metavar="FILE", help="save the image with its numbered boxes")
    parser.add_argument(
        "--drop-history",
        action="store_true",
        help="leave out the oldest rounds where the conversation outgrows the model's context (default: an error)",
    )
    add_sampling_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Opens the model, then answers line after line; a wrong line is reported and changes nothing."""
    given = given_regions(args)
    drawn_to = drawing_target(args.draw)
    check_model_folder(args.model)
    settings = sampling_settings(args)

    from gpt4roi.processing.user_input import open_image

    image, regions = open_image(args.image), upright_regions(args, given, args.image)
    chat = open_chat(args, long_history="drop" if args.drop_history else "refuse")
    talk = Conversation(chat, args.image, image, regions, settings, args.json, drawn_to)
    talking = sys.stdin.isatty() and sys.stdout.isatty()
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # then a line that is no text is refused by itself
    if talking:
        output.note(f"{COMMANDS}\n")
    return talk.run(_typed_lines() if talking else (line.rstrip("\n") for line in sys.stdin), talking)


def _typed_lines() -> Iterator[str]:
    """Yields what the user types, with the line editing of the terminal."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() uses it once it is imported)
    while True:
        try:
            yield input("you> ")
        except EOFError:
            output.note("")
            return


class Conversation:
    """A RegionChat, the boxes that were not asked about yet, and the commands of the terminal."""

    def __init__(
        self,
        chat: Any,
        name: str,
        image: Any,
        boxes: Any,
        settings: dict[str, Any],
        as_json: bool,
        draw: Path | None,
    ) -> None:
        from gpt4roi.processing.user_input import validate_regions

        self.chat, self.settings, self.as_json, self.drawn_to = chat, settings, as_json, draw
        self.commands = {
            "box": self._add, "point": self._add_point, "boxes": self._boxes, "undo": self._undo, "draw": self._draw,
            "save": self._save, "reset": self._reset, "image": self._image, "picture": self._image, "help": self._help,
        }  # fmt: skip
        self._begin(name, image)
        self.new = validate_regions(boxes, (image.height, image.width))
        self._redraw()

    def run(self, lines: Iterator[str], talking: bool) -> int:
        """Takes lines to their end, or to /quit; returns the exit code."""
        failed = False
        for line in lines:
            text = line.strip()
            if text in ("/quit", "/exit"):
                break
            try:
                if text:
                    self.take(text)
            except InputError as error:
                failed = True
                output.error("gpt4roi chat", str(error))
            except KeyboardInterrupt:
                if not talking:
                    raise
                output.note("\nstopped; the question is not part of the conversation")
        return EXIT_SOME_FAILED if failed and not talking else 0

    def take(self, text: str) -> None:
        """Runs a command, or asks a question and writes its answer as it comes."""
        if not text.startswith("/"):
            self._ask(text)
            return
        name, _, rest = text[1:].partition(" ")
        if name not in self.commands:
            raise InputError(f"unknown command /{name}; commands are {', '.join('/' + one for one in self.commands)}")
        self.commands[name](rest.strip())

    @property
    def boxes(self) -> list[list[float]]:
        """All boxes in the order of their numbers, those not asked about yet last."""
        return [*self.chat.boxes_px.tolist(), *self.new.boxes_px.tolist()]

    def _ask(self, question: str) -> None:
        pieces = self.chat.stream(question, self.new, **self.settings)
        answer = ""
        try:
            for piece in pieces:
                answer += piece
                if not self.as_json:
                    output.piece(piece)
        finally:
            pieces.close()
        self.new = self.new[:0]
        if self.as_json:
            regions = [{"region": number, "box": box} for number, box in enumerate(self.boxes, start=1)]
            output.record(
                {"picture": self.name, "question": question, "regions": regions, "answer": answer}, indent=None
            )
        else:
            output.line("")

    def _begin(self, name: str, image: Any) -> None:
        from gpt4roi.structures import Regions

        self.chat.set_image(image)
        self.name, self.image, self.new = name, image, Regions()

    def _add_point(self, rest: str) -> None:
        self._add(Given.of("point")(rest))

    def _add(self, rest: str) -> None:
        from gpt4roi.processing.user_input import validate_regions

        number = len(self.boxes) + 1
        size = (self.image.height, self.image.width)
        self.new += validate_regions([parse_region(rest, number)], size, first_number=number)
        self._redraw()
        output.note(f"region {number}: {rest}; mention it as <region{number}>")

    def _boxes(self, _rest: str) -> None:
        for number, box in enumerate(self.boxes, start=1):
            output.note(f"region {number}: {box_text(box)}")

    def _undo(self, _rest: str) -> None:
        if not len(self.new):
            raise InputError("there is no box that was not asked about yet; /reset forgets all")
        self.new = self.new[:-1]
        self._redraw()

    def _draw(self, rest: str) -> None:
        target = drawing_target(rest or None, "/draw")
        if target is None:
            raise InputError("/draw: give a file name, such as /draw out.png")
        save_drawing(self.image, self.boxes, target, "/draw")

    def _redraw(self) -> None:
        if self.drawn_to is not None:
            save_drawing(self.image, self.boxes, self.drawn_to)

    def _save(self, rest: str) -> None:
        turns = [{"role": turn.role, "text": turn.text} for turn in self.chat.turns]
        content = {"picture": self.name, "boxes": self.boxes, "turns": turns}
        try:
            Path(rest).write_text(as_json(content, 2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"/save {rest}: cannot be written: {error.strerror}") from None

    def _reset(self, _rest: str) -> None:
        self.chat.reset()
        self.new = self.new[:0]
        self._redraw()

    def _image(self, rest: str) -> None:
        from gpt4roi.processing.user_input import open_image

        self._begin(rest, open_image(rest))
        self._redraw()

    def _help(self, _rest: str) -> None:
        output.note(COMMANDS)
