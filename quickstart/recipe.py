"""The recipe of a training: shares of each task, steps and rates of both stages, in one JSON file.

`python -m quickstart.recipe STAGE RECIPE FOLDER` writes the stage's list of data sets into the folder, and prints the
arguments of `gpt4roi train`, one a line. A file of questions that the folder's data lack is left out, with a word.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.io.atomic import atomic_write_text
from gpt4roi.io.json_files import read_json_object

PARTS = ("vision_tower", "classifier_head")
"""Settings of the model that are paths inside of the data's folder."""


def data_sets(questions: dict[str, dict[str, int]], data: Path) -> list[dict[str, Any]]:
    """Returns the list of data sets for `--dataset_config`; questions: file -> task -> questions an image and epoch."""
    found = [name for name in questions if (data / name).is_file()]
    for name in questions.keys() - set(found):
        print(f"{data / name} is not there: trained without it", file=sys.stderr)
    if not found:
        raise InputError(f"none of {', '.join(questions)} is in {data}; make the data first: python -m quickstart")
    return [
        {
            "type": "unified",
            "ann_file": f"{data / name}",
            "image_pipeline": "detection",
            "pairs_per_epoch": questions[name],
        }
        for name in found
    ]


def arguments(stage: str, recipe: dict[str, Any], folder: Path) -> list[str]:
    """Writes the stage's list of data sets, and returns the command line of its training, without its start."""
    data = folder / "data"
    settings = dict(recipe[stage])
    config = folder / f"{stage}.json"
    atomic_write_text(config, json.dumps(data_sets(settings.pop("questions"), data)) + "\n")
    settings |= recipe["both_stages"] | {"dataset_config": config, "feature_cache": folder / "features"}
    if stage == "stage1":
        settings |= {name: data / value if name in PARTS else value for name, value in recipe["model"].items()}
        settings["model_name_or_path"] = data / "parts/language_model"
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def main(stage: str, recipe: str, folder: str) -> None:
    """Prints the arguments of a stage, one a line."""
    values = read_json_object(Path(recipe))
    missing = [name for name in ("model", "both_stages", "stage1", "stage2") if name not in values]
    if missing:
        raise InputError(f"{recipe}: expected a recipe with {', '.join(missing)}; quickstart/recipe.json is one")
    print("\n".join(arguments(stage, values, Path(folder))))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except InputError as error:
        sys.exit(f"quickstart: {error}")
