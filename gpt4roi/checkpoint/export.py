"""`export_folder`: a copy of a model, adapter or delta to give away, without what a training left beside it."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from gpt4roi.checkpoint.loading import load_processor, load_tokenizer
from gpt4roi.checkpoint.lora import ADAPTER_WEIGHTS, check_adapter_folder
from gpt4roi.checkpoint.writer import check_space, check_target, staged_folder
from gpt4roi.io.auto_map import with_auto_map
from gpt4roi.io.hub import is_hub_name, local_folder
from gpt4roi.io.json_files import read_json_object
from gpt4roi.io.model_folders import (
    ADAPTER,
    ADAPTER_CONFIG,
    BASE_RECORD,
    DELTA,
    DELTA_RECORD,
    ORIGINAL,
    REGION_FOLDER,
    REGIONS_ON_BASE,
    ModelFolder,
    identify,
)
from gpt4roi.io.sizes import readable_size
from gpt4roi.io.weight_files import INDEX_SUFFIX, WEIGHT_FILES, find_weight_files, is_without_base, tensor_names
from gpt4roi.models.model_card import EMPTY_FIELD, MODEL_CARD, is_written_by_user, model_card
from gpt4roi.models.original_format import tower_candidates

_CARRIED = (
    *("config.json", "generation_config.json", "*processor_config.json", "chat_template.*"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
    *(ADAPTER_CONFIG, BASE_RECORD, DELTA_RECORD, MODEL_CARD, "LICENSE*", "NOTICE*"),
)
"""Small files of what is shared. A list of what goes along, so that nothing unknown does: photographs, logs, states."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")
_LOCAL_PATH = re.compile(r"(?<![\w.:/\\~-])(?:~|[A-Za-z]:)?[/\\][\w.@+~-]+(?:[/\\][\w.@+~-]+)+[/\\]?")
_ABSOLUTE = re.compile(r"(?:~|[A-Za-z]:)?[/\\][^\n]+")
_LOCAL_ROOTS = ("home", "Users", "root", "tmp", "mnt", "media", "scratch", "workspace")


@dataclass
class _Copy:
    """What is copied: bytes of small files and the paths of large ones, by their name in the result."""

    small: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.large.values()) + sum(map(len, self.small.values()))

    def add(self, folder: Path, weights: tuple[Path, ...], inside: str = "") -> None:
        """Adds the small files of a folder and its weights, for the folder `inside` of the result."""
        for pattern in _CARRIED:
            self.small |= {inside + path.name: path.read_bytes() for path in folder.glob(pattern) if path.is_file()}
        for path in weights:
            self.large[inside + path.name] = path
        index = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
        if index is not None and index.name.endswith(INDEX_SUFFIX):
            self.small[inside + index.name] = index.read_bytes()


def export_folder(
    source: str | Path, target: str | Path, vision_tower: str | None = None, overwrite: bool = False
) -> list[str]:
    """Copies a folder of weights without optimizer states, logs, caches, watched photographs and paths of this machine.

    A tower that lies beside the weights goes along. The copy gets its name when it is complete.

    Args:
        source: Folder or hub name of a model, an adapter or a delta; a work directory or a checkpoint of a training.
        target: The folder that is written.
        vision_tower: Folder or hub name of the tower, for a model that was saved without it.
        overwrite: Replace a folder that exists.

    Returns:
        Lines about what was written and what was left out.

    Raises:
        InputError: The source is nothing of these, or incomplete.
    """
    folder, target = local_folder(source), Path(target)
    check_target(target, {"source": folder}, overwrite)
    found = identify(folder)
    if found.kind not in (ADAPTER, DELTA):
        found.require_model()
    copy = _Copy()
    copy.add(folder, _weights(found))
    if found.kind == REGIONS_ON_BASE:
        copy.add(folder / REGION_FOLDER, find_weight_files(folder / REGION_FOLDER)[0], f"{REGION_FOLDER}/")
    if found.kind == ORIGINAL and is_without_base(folder):
        found = replace(found, kind=DELTA)
    opens = found.is_model and _add_tower(copy, found, vision_tower)
    taken = {name.split("/")[0] for name in (*copy.small, *copy.large)}
    left = [path for path in sorted(folder.iterdir()) if path.name not in taken]
    _make_portable(copy, found)
    check_space(target, copy.size)
    with staged_folder(target, None) as staged:
        for name, content in copy.small.items():
            (staged / name).parent.mkdir(exist_ok=True)
            (staged / name).write_bytes(content)
        for name, path in copy.large.items():
            shutil.copyfile(path, staged / name)
        if found.is_model:
            tensor_names(staged)
            (load_processor if opens else load_tokenizer)(staged)
    size = sum(file.stat().st_size for path in left for file in (path, *path.rglob("*")) if file.is_file())
    names = ", ".join(path.name for path in left)
    written = f"{found.kind}, {readable_size(copy.size)} in {len(copy.small) + len(copy.large)} files"
    return [written, *copy.notes, *([f"left out: {names} ({readable_size(size)})"] if left else [])]


def _weights(found: ModelFolder) -> tuple[Path, ...]:
    if found.kind != ADAPTER:
        return find_weight_files(found.path, found.kind if found.kind == DELTA else "model")[0]
    check_adapter_folder(found.path)
    return tuple(found.path / name for name in ADAPTER_WEIGHTS if (found.path / name).is_file())[:1]


def _add_tower(copy: _Copy, found: ModelFolder, wanted: str | None) -> bool:
    """Adds the tower of a model that was saved without it; tells whether the copy opens without another folder."""
    name = found.config.get("mm_vision_tower")
    if "vision_config" in found.config or name is None:
        return True
    places = [local_folder(wanted)] if wanted else tower_candidates(str(name), found.path)
    tower = next((place for place in places if (place / "config.json").is_file()), None)
    if tower is None:
        copy.notes.append(f"the vision tower {Path(str(name)).name} is not inside; --vision-tower FOLDER adds it")
        return False
    copy.add(tower, find_weight_files(tower, "tower")[0], f"{Path(str(name)).name}/")
    return True


def _make_portable(copy: _Copy, found: ModelFolder) -> None:
    """Replaces paths of this machine in configurations and the card by their last part, and notes each."""
    replaced: dict[str, str] = {}
    for path, content in copy.small.items():
        name = Path(path).name
        if name.endswith(".json") and name not in _VOCABULARIES and not name.endswith(INDEX_SUFFIX):
            values = _with_names(json.loads(content), replaced)
            if name == ADAPTER_CONFIG:
                base = _base_name(found)
                copy.notes.append(f"it needs its base: the model {base}, in a folder of that name beside it")
                values["base_model_name_or_path"] = base
            copy.small[path] = json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n"
    card = _card(found)
    copy.small[MODEL_CARD] = _LOCAL_PATH.sub(lambda match: _name_of_path(match[0], replaced), card).encode()
    if found.kind != DELTA:
        copy.small = with_auto_map(copy.small)
    copy.notes += [f"the path {path} of this machine is written as {name}" for path, name in replaced.items()]


def _card(found: ModelFolder) -> str:
    """Returns the user's card, an adapter's of our training, or a new one; peft's is empty."""
    path = found.path / MODEL_CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if text and EMPTY_FIELD not in text and (found.kind == ADAPTER or is_written_by_user(path)):
        return text
    if found.kind != ADAPTER:
        return model_card(found.config, "delta" if found.kind == DELTA else "model")
    base = local_folder(found.base_folder(), weights=False)
    return model_card(read_json_object(base / "config.json"), "adapter")


def _base_name(found: ModelFolder) -> str:
    is_of_hub = is_hub_name(found.base) and not Path(found.base).is_dir() and not (found.path / BASE_RECORD).is_file()
    return found.base if is_of_hub else Path(found.base).name


def _with_names(value: Any, replaced: dict[str, str]) -> Any:
    """Returns a JSON value in which strings that are paths of this machine are their last part."""
    if isinstance(value, dict):
        return {key: _with_names(item, replaced) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_names(item, replaced) for item in value]
    return _name_of_path(value, replaced) if isinstance(value, str) and _ABSOLUTE.fullmatch(value) else value


def _name_of_path(path: str, replaced: dict[str, str]) -> str:
    """Returns the last part of a path of this machine, and other text, such as a route of an API, as it is."""
    parts = PureWindowsPath(path).parts  # knows both slashes
    is_local = path[0] == "~" or path[1:2] == ":" or {*parts[1:2]} <= {*_LOCAL_ROOTS} or os.path.exists(path)
    if is_local:
        replaced[path] = parts[-1]
    return parts[-1] if is_local else path
