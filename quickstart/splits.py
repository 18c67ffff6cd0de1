"""The splits of the embedded data set: which scenes, which questions, and the files that hold them."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gpt4roi.errors import InputError
from gpt4roi.io.atomic import atomic_write_text
from quickstart import questions, scenes
from quickstart.library import Photograph, Stamp

FORMAT = 8
"""Bump when the same arguments give other files."""
SPLITS = ("train", "val", "test", "test_unseen")
PHOTOGRAPHS = ("train_photographs", "test_photographs")
"""Files of regions of photographs, beside those of the splits."""
NAMES = "train_names"
"""File of regions of the training's photographs by the classifier's likeliest class, sure or not, rare ones first.

From these, stage 2 learns to say what a region's tokens say, which takes more names than those that are sure.
"""
PASTED = "train_pasted"
"""File of scenes on backgrounds with things of their own (copy-paste augmentation): a stamp on a cat is the stamp."""
PASTED_SCENES = 480
SEEDS = {"train": 0, "val": 1, "test": 2, "test_unseen": 3, PASTED: 9}
RELATIONS_IN_TEST = 400
"""Questions of each relation in the test split."""
UNSEEN_CAPTIONS = 24
"""Captions, with all their stamps, that only the split test_unseen shows."""


@dataclass(frozen=True)
class StampArguments:
    """What decides the content of the data set.

    scenes: training scenes; size: side of a scene, pixels; shapes: draw the stamps instead of fetching them; parts:
    also prepare the language model and the vision tower; photographs: also name regions of photographs.
    """

    scenes: int = 1000
    val_scenes: int = 50
    test_scenes: int = 110
    unseen_scenes: int = 30
    seed: int = 0
    size: int = 256
    shapes: bool = False
    parts: bool = True
    photographs: bool = True

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
        counts = {"train": self.scenes, "val": self.val_scenes, "test": self.test_scenes, PASTED: PASTED_SCENES}
        return counts.get(split, self.unseen_scenes)


@dataclass(frozen=True)
class Material:
    """What scenes are composed from. stamps_from: what the manifest says about their origin."""

    stamps: Sequence[Stamp]
    photographs: Sequence[Photograph]
    held_out_photographs: Sequence[Photograph]
    stamps_from: str


def write_splits(out: Path, arguments: StampArguments, material: Material, workers: int) -> dict:
    """Writes images and questions of the splits that are not there yet, and returns the manifest's part on them."""
    settings = {name: value for name, value in asdict(arguments).items() if name not in ("parts", "photographs")}
    asked_for = {"format": FORMAT, "arguments": settings, "stamps": material.stamps_from}
    begun = out / "scenes.json"
    if not begun.exists() or json.loads(begun.read_text(encoding="utf-8")) != asked_for:
        for split in (*SPLITS, *PHOTOGRAPHS, NAMES, PASTED):
            (out / f"{split}.jsonl").unlink(missing_ok=True)
            shutil.rmtree(out / "images" / split, ignore_errors=True)
        atomic_write_text(begun, json.dumps(asked_for, indent=1) + "\n")
    seen, unseen = _seen_and_unseen(arguments.seed, material.stamps)
    splits = {}
    for split in SPLITS:
        photographs = material.photographs if split in ("train", "val") else material.held_out_photographs
        chosen = unseen if split == "test_unseen" else seen
        path = _write_split(out, split, arguments, material.stamps, chosen, photographs, workers)
        splits[split] = _describe_split(path) | {"photographs": [photograph.name for photograph in photographs]}
        splits[split]["images_sha256"] = images_hash(out / "images" / split)
    unseen_captions = [material.stamps[group[0]].caption for group in unseen]
    return {"splits": splits, "captions": {"seen": len(seen), "unseen": unseen_captions}}


def write_pasted(
    out: Path, arguments: StampArguments, stamps: Sequence[Stamp], photographs: Sequence[Photograph], workers: int
) -> Path:
    """Writes scenes of the training's stamps on photographs of things, and returns their file."""
    seen, _ = _seen_and_unseen(arguments.seed, stamps)
    return _write_split(out, PASTED, arguments, stamps, seen, photographs, workers)


def _seen_and_unseen(seed: int, stamps: Sequence[Stamp]) -> tuple[list[list[int]], list[list[int]]]:
    """Groups stamps (indices) by caption: those of the training, and those that only test_unseen shows."""
    groups = scenes.captions_to_stamps(stamps, range(len(stamps)))
    held_out = set(np.random.default_rng([seed, 99]).choice(len(groups), UNSEEN_CAPTIONS, False).tolist())
    return [group for i, group in enumerate(groups) if i not in held_out], [groups[i] for i in sorted(held_out)]


def _write_split(
    out: Path,
    split: str,
    arguments: StampArguments,
    stamps: Sequence[Stamp],
    groups: Sequence[Sequence[int]],
    photographs: Sequence[Photograph],
    workers: int,
) -> Path:
    """Writes images and questions of a split, unless they are there, and returns its file."""
    path = out / f"{split}.jsonl"
    if not path.exists() or image_count(out, split) != arguments.scenes_of(split):
        laid = _lay_out_split(split, arguments, stamps, groups, photographs)
        path.unlink(missing_ok=True)  # while it is there, all images counted are whole
        shutil.rmtree(out / "images" / split, ignore_errors=True)
        written = scenes.write_images(laid, stamps, photographs, out / "images" / split, workers)
        for _ in tqdm(written, desc=f"{split} scenes", total=len(laid), file=sys.stderr):
            pass
        records = _records(split, arguments, laid, stamps)
        atomic_write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


def _lay_out_split(split, arguments, stamps, groups, photographs) -> list[scenes.Scene]:
    hands = scenes.deal(np.random.default_rng([arguments.seed, SEEDS[split]]), groups, arguments.scenes_of(split))
    return [
        scenes.lay_out(
            np.random.default_rng([arguments.seed, SEEDS[split], index]),
            f"{index:06d}",
            arguments.size,
            stamps,
            hand,
            photographs,
        )
        for index, hand in enumerate(hands)
    ]


def _records(split: str, arguments: StampArguments, laid: Sequence[scenes.Scene], stamps) -> list[dict]:
    """Builds the objects of a split's file: captions of all regions, relations, how many (animals, in the tests)."""
    unit = arguments.size / scenes.REFERENCE_SIZE
    truths = [([o.box for o in scene.objects], [stamps[o.stamp].caption for o in scene.objects]) for scene in laid]
    rng = np.random.default_rng([arguments.seed, SEEDS[split], 1 << 30])
    if split == "test":
        relations = questions.draw_balanced(rng, truths, RELATIONS_IN_TEST, unit)
    else:
        relations = [questions.draw_relations(rng, boxes, captions, unit) for boxes, captions in truths]
    records = []
    near, counts, which = (np.random.default_rng([arguments.seed, SEEDS[split], 1 << bit]) for bit in (31, 29, 28))
    for scene, (boxes, captions), of_scene in zip(laid, truths, relations, strict=True):
        asked = [questions.ask("caption", boxes, captions, [region]) for region in range(len(boxes))]
        asked += of_scene
        if not split.startswith("test"):
            asked.append(questions.ask("count", boxes, captions))
            asked += questions.draw_near(near, boxes, captions, unit)
        kinds = [stamps[o.stamp].kind for o in scene.objects]
        asked += [questions.draw_counts(counts, kinds) for _ in range(questions.COUNTS_PER_SCENE)]
        asked += questions.draw_which(which, kinds, captions)
        records.append(_record(split, scene, stamps, asked))
    return records


def _record(split: str, scene: scenes.Scene, stamps, asked: Sequence[questions.Question]) -> dict:
    placed = [stamps[o.stamp] for o in scene.objects]
    return {
        "id": f"{split}-{scene.name}",
        "image": f"images/{split}/{scene.name}.png",
        "height": scene.size,
        "width": scene.size,
        "boxes": [list(o.box) for o in scene.objects],
        "conversations": questions.conversations(asked),
        "independent": True,
        "objects": [{"caption": s.caption, "stamp": s.name, "kind": s.kind} for s in placed],
        "tasks": [question.task for question in asked],
        "pairs": [question.pair for question in asked],
    }


def image_count(out: Path, split: str) -> int:
    """Returns how many images of a split lie under out."""
    return sum(1 for path in (out / "images" / split).glob("*") if path.suffix in (".png", ".jpg", ".jpeg"))


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


def images_hash(folder: Path) -> str:
    """Returns one SHA-256 over all images of a folder, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.png")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
