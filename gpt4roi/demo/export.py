"""Export: a conversation drawn as one image, boxes on the photograph, questions and answers below."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gpt4roi.demo.session import Session
from gpt4roi.geometry.masks import to_pixels
from gpt4roi.processing.mentions import MAX_DIGITS
from gpt4roi.report.drawing import Font, draw_boxes, region_color

MENTION = re.compile(rf"<region(\d{{1,{MAX_DIGITS}}})>|\bregion ?(\d{{1,{MAX_DIGITS}}})\b", re.IGNORECASE)

WIDTH = 960
MARGIN = 32
SIZE = 22
LINE = 34
INK, SOFT, PAPER = "#1b1f24", "#667080", "#ffffff"
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "msgothic.ttc", "DejaVuSans.ttf")


@dataclass(frozen=True)
class Piece:
    """A word, or a mention of a region where `number` is not 0."""

    text: str
    number: int = 0


def pieces_of(text: str, num_boxes: int) -> list[Piece]:
    """Splits a text into words and mentions of boxes that there are."""
    found: list[Piece] = []
    end = 0
    for match in MENTION.finditer(text):
        number = int(match.group(1) or match.group(2))
        if not 1 <= number <= num_boxes:
            continue
        found += [Piece(word) for word in text[end : match.start()].split()]
        found.append(Piece(f"region{number}", number))
        end = match.end()
    return found + [Piece(word) for word in text[end:].split()]


def conversation_image(session: Session) -> Image.Image:
    """Draws a session on one sheet, WIDTH pixels wide. There must be an image in it."""
    assert session.image is not None
    photograph = _with_shapes(session)
    photograph = draw_boxes(photograph, session.boxes_in_stored_image())
    photograph.thumbnail((WIDTH - 2 * MARGIN, 1200), Image.Resampling.LANCZOS)
    font = _font_for(" ".join(one.question + one.answer for one in session.rounds))
    count = len(session.boxes_px)
    paragraphs = [
        [line for row in text.split("\n") for line in _wrap(pieces_of(row, count), font)]
        for one in session.rounds
        for text in (one.question, one.answer or "(no words)")
    ]
    gaps = [LINE // 2, LINE // 5] * len(session.rounds)
    height = sum(gaps) + LINE * sum(map(len, paragraphs)) + photograph.height + 3 * MARGIN
    sheet = Image.new("RGB", (WIDTH, height), PAPER)
    sheet.paste(photograph, ((WIDTH - photograph.width) // 2, MARGIN))
    pen = ImageDraw.Draw(sheet)
    y = photograph.height + 2 * MARGIN
    for index, (lines, gap) in enumerate(zip(paragraphs, gaps, strict=True)):
        y += gap
        for line in lines:
            _draw_line(pen, y, line, font, SOFT if index % 2 == 0 else INK)
            y += LINE
    return sheet


def _with_shapes(session: Session) -> Image.Image:
    """Returns the photograph with each region's shape in its colour."""
    photograph = session.image.convert("RGB") if session.image else Image.new("RGB", (1, 1))
    for index, mask in enumerate(session.masks):
        if mask is not None:
            own, size = session.size[::-1], (photograph.height, photograph.width)
            shape = Image.fromarray(to_pixels(mask, size, own) * np.uint8(110))
            photograph.paste(region_color(index), mask=shape)
    return photograph


def _font_for(text: str) -> Font:
    """Returns PIL's own font, which has Latin letters; for others one of the system's, where it has one."""
    if any(ord(letter) > 0x24F and not 0x2010 <= ord(letter) <= 0x2122 for letter in text):
        for name in _WIDE_FONTS:
            try:
                return ImageFont.truetype(name, SIZE)
            except OSError:
                continue
    return ImageFont.load_default(SIZE)


def _wrap(pieces: list[Piece], font: Font) -> list[list[tuple[int, Piece]]]:
    """Wraps the pieces into lines; each piece with its offset from the left."""
    blank, room = font.getlength(" "), WIDTH - 2 * MARGIN
    lines: list[list[tuple[int, Piece]]] = [[]]
    x = 0.0
    for piece in pieces:
        for part in _fitting(piece, font, room):
            width = font.getlength(part.text) + (14 if part.number else 0)
            if x and x + width > room:
                lines.append([])
                x = 0.0
            lines[-1].append((round(x), part))
            x += width + blank
    return lines


def _fitting(piece: Piece, font: Font, room: float) -> list[Piece]:
    """Cuts a word that is wider than the sheet."""
    if font.getlength(piece.text) <= room:
        return [piece]
    count = max(1, int(len(piece.text) * room / font.getlength(piece.text)) - 1)
    return [Piece(piece.text[start : start + count]) for start in range(0, len(piece.text), count)]


def _draw_line(pen: ImageDraw.ImageDraw, y: int, line: list[tuple[int, Piece]], font: Font, ink: str) -> None:
    for x, piece in line:
        left = MARGIN + x
        if piece.number:
            box = (left, y, left + font.getlength(piece.text) + 14, y + LINE - 6)
            pen.rounded_rectangle(box, radius=7, fill=region_color(piece.number - 1))
            pen.text((left + 7, y), piece.text, fill="white", font=font)
        else:
            pen.text((left, y), piece.text, fill=ink, font=font)
