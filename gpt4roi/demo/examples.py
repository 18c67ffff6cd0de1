"""Example images of the page: photographs that scikit-image ships."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec

from PIL import Image

from gpt4roi.errors import InputError


@dataclass(frozen=True)
class Example:
    """A photograph: its file in scikit-image and what is on it."""

    file: str
    title: str


EXAMPLES = {
    "cat": Example("chelsea.png", "a cat's face"),
    "coffee": Example("coffee.png", "a cup of coffee on a table"),
    "astronaut": Example("astronaut.png", "an astronaut in front of a flag and a model of a space shuttle"),
    "rocket": Example("rocket.jpg", "a rocket on its launch pad"),
    "motorcycle": Example("motorcycle_left.png", "a motorcycle in a workshop"),
}


@cache
def available() -> tuple[str, ...]:
    """Returns the names of the installed examples; none without scikit-image."""
    if find_spec("skimage") is None:
        return ()
    folder = files("skimage") / "data"
    return tuple(name for name, example in EXAMPLES.items() if (folder / example.file).is_file())


def open_example(name: object) -> Image.Image:
    """Opens an example by its name; raises InputError where there is none of that name."""
    if not isinstance(name, str) or name not in available():
        raise InputError(f"no such example; there are {', '.join(available()) or 'none without scikit-image'}")
    with (files("skimage") / "data" / EXAMPLES[name].file).open("rb") as file, Image.open(file) as image:
        return image.convert("RGB")
