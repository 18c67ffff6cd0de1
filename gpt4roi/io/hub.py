"""Folders by path or by hub name; what the hub gives lies in the library's cache and opens without a network later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError

ACCESS = ("revision", "token", "cache_dir", "local_files_only")
"""Arguments of `from_pretrained` that concern the hub."""

REGION_FOLDER = "region_encoder"
"""Inside the folder of a pretrained vision-language model: what is added to it for regions."""

_SMALL_FILES = ("*.json", "*.model", "*.jinja")
_OTHER_FOLDERS = [f"{REGION_FOLDER[:i]}[!{letter}]*/*" for i, letter in enumerate(REGION_FOLDER)]
"""Patterns of what lies in folders of any other name, one for each letter in which a name can differ."""


def is_hub_name(name: str) -> bool:
    """Tells whether a name could be one of the hub, `owner/name`."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def local_folder(path: str | Path, weights: bool = True, subfolder: str = "", **access: Any) -> Path:
    """Returns a folder as it is, and a hub name as the folder of the cache that its files were fetched into.

    weights: also fetch the weights, as safetensors where the hub has them. subfolder: of the model in it; what lies in
    other folders, as checkpoints of the training do, is not fetched. access: as in ACCESS.
    Raises InputError where there is neither such a folder nor such a name in cache or hub.
    """
    if Path(path).is_dir():
        return Path(path, subfolder)
    name = str(path)
    if not is_hub_name(name):
        if Path(name).is_file():
            raise InputError(f"{name} is a file; give the folder that it lies in, {Path(name).parent}")
        raise InputError(f"{name}: no such folder")
    folder = _fetch(name, [*_SMALL_FILES, *(["*.safetensors"] if weights else [])], access, subfolder)
    if weights and not any(folder.glob("*.safetensors")):
        folder = _fetch(name, ["*.bin"], access, subfolder)
    return folder


def cached_folder(name: str) -> Path | None:
    """Returns the folder of the cache with the weights of a hub name, None where they are not there."""
    if not is_hub_name(name):
        return None
    try:
        folder = local_folder(name, local_files_only=True)
    except InputError:
        return None
    return folder if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")) else None


def _fetch(name: str, patterns: list[str], access: dict[str, Any], subfolder: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = {key: value for key, value in access.items() if value is not None}
    try:
        inside = f"{subfolder.strip('/')}/" if subfolder else ""  # `*` of a pattern stands for `/` too
        patterns = [inside + pattern for pattern in patterns]
        return Path(
            snapshot_download(
                name, allow_patterns=patterns, ignore_patterns=[inside + other for other in _OTHER_FOLDERS], **wanted
            ),
            subfolder,
        )
    except LocalEntryNotFoundError:
        raise InputError(
            f"{name}: no such folder, not in the hub's cache, and the hub cannot be reached; copy the model's folder "
            "to this machine and give that"
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{name}: no such folder, and the hub does not give a model of that name ({reason})") from None
