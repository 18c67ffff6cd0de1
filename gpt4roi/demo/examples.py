"""Example images of the page: those of a file, with boxes, or photographs that scikit-image ships."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from gpt4roi.errors import InputError
from gpt4roi.io.json_files import kind_of, read_json
from gpt4roi.processing.uploads import Upload, scaled
from gpt4roi.processing.user_input import open_image, validate_boxes_px

FILE_NAME = "examples.json"
"""Read from a model's folder, where it is there."""

MAX_EXAMPLES = 40


@dataclass(frozen=True)
class Example:
    """An image, what is on it, and the boxes that are drawn when it is chosen, xyxy in its pixels."""

    path: Path
    title: str
    boxes_px: tuple[tuple[float, ...], ...] = ()

    def open(self) -> Image.Image:
        """Opens the image, upright and RGB."""
        return open_image(self.path)


Examples = Mapping[str, Example]
"""Examples by their names."""

SHIPPED = {
    "cat": ("chelsea.png", "a cat's face"),
    "coffee": ("coffee.png", "a cup of coffee on a table"),
    "astronaut": ("astronaut.png", "an astronaut in front of a flag and a model of a space shuttle"),
    "rocket": ("rocket.jpg", "a rocket on its launch pad"),
    "motorcycle": ("motorcycle_left.png", "a motorcycle in a workshop"),
}


def shipped_examples() -> Examples:
    """Returns scikit-image's photographs; none where it is not installed."""
    if find_spec("skimage") is None:
        return {}
    folder = Path(str(files("skimage"))) / "data"
    found = {name: Example(folder / file, title) for name, (file, title) in SHIPPED.items()}
    return {name: example for name, example in found.items() if example.path.is_file()}


def read_examples(path: Path) -> Examples:
    """Reads examples from a JSON file, a list of `{"image", "title", "boxes"}`, or from `examples.json` in a folder.

    Images are relative to the file's folder, boxes `[x1, y1, x2, y2]` in pixels of the upright image; title and boxes
    may be left out. Raises InputError for an entry that cannot be shown.
    """
    file = path / FILE_NAME if path.is_dir() else path
    entries = read_json(file, "a list of example images")
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_EXAMPLES:
        got = len(entries) if isinstance(entries, list) else kind_of(entries)
        raise InputError(f"{file}: expected a list of 1 to {MAX_EXAMPLES} examples, got {got}")
    examples: dict[str, Example] = {}
    for index, entry in enumerate(entries):
        try:
            example = _example(entry, file.parent)
        except InputError as error:
            raise InputError(f"{file}#{index}: {error}") from None
        examples[example.path.stem if example.path.stem not in examples else f"{example.path.stem}-{index}"] = example
    return examples


def _example(entry: Any, folder: Path) -> Example:
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise InputError('expected an object with the path of an "image"')
    path, boxes = folder / entry["image"], entry.get("boxes") or []
    title = entry.get("title", path.stem)
    if not isinstance(title, str) or not isinstance(boxes, list):
        raise InputError("title is a text, and boxes are a list of [x1, y1, x2, y2]")
    image = open_image(path)
    valid = validate_boxes_px(boxes, (image.height, image.width))
    return Example(path, title, tuple(map(tuple, valid.round(2).tolist())))


def open_example(examples: Examples, name: object) -> tuple[Upload, list[list[float]]]:
    """Opens an example by its name, with its boxes; raises InputError where there is none of that name."""
    if not isinstance(name, str) or name not in examples:
        raise InputError(f"no such example; there are {', '.join(examples) or 'none without scikit-image'}")
    example = examples[name]
    return scaled(example.open(), example.path.stem), [list(box) for box in example.boxes_px]
