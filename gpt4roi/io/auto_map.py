"""auto_map: the entries and the small file by which transformers finds this package's classes for a folder of ours.

With them `AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)` opens a folder in a process that
has not imported gpt4roi. The file only imports it; without the package transformers says that it is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

AUTO_FILE = "gpt4roi_auto.py"
_CLASSES = {
    "AutoConfig": "GPT4RoIConfig",
    "AutoModelForImageTextToText": "GPT4RoIForConditionalGeneration",
    "AutoProcessor": "GPT4RoIProcessor",
}
_CONFIGURATIONS = (
    ("config.json", "model_type", "gpt4roi", ("AutoConfig", "AutoModelForImageTextToText")),
    ("processor_config.json", "processor_class", "GPT4RoIProcessor", ("AutoProcessor",)),
)
_CONTENT = f'''"""Opens this folder in transformers with the package gpt4roi, which has to be installed."""

from gpt4roi import {", ".join(_CLASSES.values())}
'''


def auto_map(*auto_classes: str) -> dict[str, str]:
    """Returns the entry `auto_map` of a configuration's file."""
    return {name: f"{Path(AUTO_FILE).stem}.{_CLASSES[name]}" for name in auto_classes}


def with_auto_map(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Returns the files of a folder by name, with the entries in our configurations and the file that they name."""
    ours: dict[str, bytes] = {}
    for name, key, value, auto_classes in _CONFIGURATIONS:
        values = json.loads(files.get(name, b"{}"))
        if values.get(key) == value:
            values["auto_map"] = auto_map(*auto_classes)
            ours[name] = json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True).encode() + b"\n"
    return {**files, **ours} | ({AUTO_FILE: _CONTENT.encode()} if ours else {})


def write_auto_file(folder: Path) -> None:
    """Writes the file beside a configuration that was saved."""
    (folder / AUTO_FILE).write_text(_CONTENT, encoding="utf-8")


class InPackage:
    """Keeps transformers from copying the modules of a class into folders that are saved after it was so opened."""

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Does nothing: the class stays the package's."""
