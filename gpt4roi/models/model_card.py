"""Model card: the README.md of every model folder and delta that is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gpt4roi.io.model_folders import OUR_MODEL_TYPE, REGION_FOLDER, is_original
from gpt4roi.models.original_format import portable_name

MODEL_CARD = "README.md"

EMPTY_FIELD = "[More Information Needed]"
"""In the cards that transformers and peft write."""
_EMPTY_FIELDS = 30  # of the 39 of transformers' card
_MARKER = "Written by gpt4roi, which replaces this file; without this line it never does."


def model_card(config: dict[str, Any], kind: str = "model") -> str:
    """Makes the card of a folder with this config.json: ours, the original's, or that of a base with regions.

    kind: model, delta or adapter.
    """
    import jinja2

    text, vision = config.get("text_config") or config, config.get("vision_config") or {}
    decoder = (
        (text.get("architectures") or [text.get("model_type", "llama")])[0] if "text_config" in config else "llama"
    )
    sizes = f"{text.get('num_hidden_layers')} layers, width {text.get('hidden_size')}"
    base = portable_name(text.get("_name_or_path") or None) if "text_config" in config else None
    is_ours = is_original(config) or config.get("model_type") == OUR_MODEL_TYPE
    tower = portable_name(config.get("mm_vision_tower")) or (not is_ours and vision.get("model_type")) or "not named"
    written = "transformers' (`hf`)" if is_ours else f"that of its base, `{config.get('model_type')}`"
    side = config.get("image_size") or vision.get("image_size")
    environment = jinja2.Environment(loader=jinja2.PackageLoader("gpt4roi", "models"), undefined=jinja2.StrictUndefined)
    card = environment.get_template("model_card.md.jinja").render(
        marker=_MARKER,
        kind=kind,
        language_model=", ".join([decoder, sizes, *([base] if base else [])]),
        vision_tower=f"{tower}, {side} px" if side else tower,
        region_encoder=config.get("region_encoder_type", "gpt4roi" if is_ours else f"folder `{REGION_FOLDER}`"),
        checkpoint_format="the original's (`original`)" if is_original(config) else written,
    )
    return card + "\n"


def limitations(folder: Path) -> str:
    """Returns the first paragraph below `## Limitations` in the card of a model's folder; empty where there is none."""
    card = folder / MODEL_CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = re.search(r"^##+ Limitations\s*\n+((?:(?!#).+\n?)+)", text, flags=re.MULTILINE)
    return " ".join(found.group(1).split()) if found else ""


def is_written_by_user(path: Path) -> bool:
    """Tells whether a README.md exists that must not be replaced."""
    return path.exists() and _MARKER not in path.read_text(encoding="utf-8", errors="replace")


def remove_empty_card(folder: Path) -> None:
    """Deletes a README.md that is a library's template with (nearly) all of its fields left empty."""
    path = folder / MODEL_CARD
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace").count(EMPTY_FIELD) > _EMPTY_FIELDS:
        path.unlink()


def write_model_card(folder: Path, config: dict[str, Any], kind: str = "model") -> None:
    """Writes the card of a folder, unless a README.md of the user is there; peft's, which is empty, is replaced."""
    if kind == "adapter" or not is_written_by_user(folder / MODEL_CARD):
        (folder / MODEL_CARD).write_text(model_card(config, kind), encoding="utf-8")
