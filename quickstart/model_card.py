"""Writes the model card of the quickstart's model, what it can and cannot do: `python -m quickstart.model_card MODEL`.

The page shows the limitations below its title. They follow from the model's own configuration: one with the vision
tower's classifier knows the classifier's names, another one only what it was trained on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jinja2

from gpt4roi.io.atomic import atomic_write_text
from gpt4roi.io.json_files import read_json_object
from gpt4roi.models.model_card import MODEL_CARD

OTHERS = "It knows no people, reads no text, describes no scene and holds no conversation: such answers mean nothing."


def limitations(class_names: int) -> str:
    """Says what a model can and cannot do; class_names: how many names its classifier has, 0 without one."""
    compares = "says which of two boxes is larger, further left or higher"
    if class_names:
        return f"It names what a box holds, among {class_names:,} kinds of animals and things, and {compares}. {OTHERS}"
    return f"It names the drawings and cut-outs that it was trained on, no photographs, and {compares}. {OTHERS}"


def write_card(model: Path) -> None:
    """Writes README.md into a model's folder."""
    names = len(read_json_object(model / "config.json").get("class_names") or ())
    source = Path(__file__).with_suffix(".md.jinja").read_text(encoding="utf-8")
    photographs = ", and boxes on photographs that the tower's own classifier named" if names else ""
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(source)
    card = template.render(limitations=limitations(names), photographs=photographs)
    atomic_write_text(model / MODEL_CARD, card + "\n")


if __name__ == "__main__":
    write_card(Path(sys.argv[1]))
