"""A folder of good samples with twenty faults among them, each of which somebody has had."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

QUESTION = {"from": "human", "value": "What is <region1>?"}
EMPTY_MASK = {"size": [90, 120], "counts": [10800]}


def photograph(seed: int, width: int = 120, height: int = 90) -> Image.Image:
    """An image of soft noise that looks like no other."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def pair(answer: str) -> list[dict[str, str]]:
    """A question about region 1, and its answer."""
    return [QUESTION, {"from": "gpt", "value": answer}]


def line(image: str, boxes: list | None = None, answer: str = "a thing", **more) -> dict:
    """A sample about one box."""
    return {"image": image, "boxes": boxes or [[10, 10, 60, 50]], "conversations": pair(answer)} | more


def huge_png_header() -> bytes:
    """The beginning of a PNG that claims 30,000 x 30,000 pixels."""
    data = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(data)) + b"IHDR" + data + struct.pack(">I", zlib.crc32(b"IHDR" + data))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 100) + b"IDAT"


def write_faulty_set(folder: Path, good: int = 20) -> dict[str, str]:
    """Writes train.jsonl, eval.jsonl and their images, and returns fault -> where it must be found.

    The line of a fault follows from the order in which it is written here; the good samples come first.
    """
    images = folder / "photos"
    images.mkdir(parents=True)
    lines: list[str] = []
    where: dict[str, str] = {}

    def add(kind: str | None, entry: dict | str) -> None:
        lines.append(entry if isinstance(entry, str) else json.dumps(entry))
        if kind is not None:
            where[kind] = f"{folder / 'train.jsonl'}#{len(lines)}"

    def save(name: str, seed: int, **options) -> str:
        photograph(seed).save(images / name, **options)
        return f"photos/{name}"

    for number in range(good):
        add(None, line(save(f"good{number}.jpg", number), answer=f"thing {number}"))
    add("picture_missing", line("photos/missing.jpg"))
    (images / "empty.jpg").write_bytes(b"")
    add("picture_unreadable:empty file", line("photos/empty.jpg"))
    save("cut.jpg", 101)
    whole = (images / "cut.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    add("picture_unreadable:cannot be decoded", line("photos/cut.jpg"))
    (images / "text.jpg").write_text("not an image")
    add("picture_unreadable:not an image file", line("photos/text.jpg"))
    (images / "huge.png").write_bytes(huge_png_header())
    add("picture_unreadable:too large", line("photos/huge.png"))
    photograph(102, 1, 1).save(images / "dot.png")
    add("picture_small", line("photos/dot.png", [[0, 0, 1, 1]]))
    exif = Image.Exif()
    exif[0x0112] = 6
    add("sideways", line(save("phone.jpg", 103, exif=exif)))
    add("size_differs", line(save("scaled.jpg", 104), height=900, width=1200))
    add("box_outside", line(save("a.jpg", 105), [[130, 10, 190, 50]]))
    add("box_beyond", line(save("b.jpg", 106), [[80, 10, 160, 50]]))
    add("box_inverted", line(save("c.jpg", 107), [[60, 30, 40, 50]]))
    add("box_tiny", line(save("d.jpg", 108), [[10, 10, 10.5, 50]]))
    add("box_fractions", line(save("e.jpg", 109), [[0.1, 0.1, 0.5, 0.5]]))
    add("object_unusable:empty answer", line(save("f.jpg", 110), answer=" "))
    second = [QUESTION | {"value": "What is <region2>?"}, *pair("a thing")[1:]]
    add("object_unusable:mention that fits no box", line(save("g.jpg", 111)) | {"conversations": second})
    add("box_unmentioned", line(save("h.jpg", 112), [[10, 10, 60, 50], [20, 20, 70, 60]]))
    add("object_unusable:broken JSON", '{"image": "photos/good1.jpg", "boxes": [[')
    add("rounds_lost", line(save("i.jpg", 113)) | {"conversations": pair("a thing") + pair("a very long story " * 120)})
    photograph(3).save(images / "copy.jpg")
    add("picture_duplicate", line("photos/copy.jpg", [[30, 30, 90, 80]], answer="its copy"))
    photograph(5, 240, 180).save(images / "leak.png")
    leaked = line("photos/leak.png", answer="asked in the evaluation")
    (folder / "eval.jsonl").write_text(json.dumps(leaked) + "\n")
    where["leakage"] = str(images / "leak.png")
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return where
