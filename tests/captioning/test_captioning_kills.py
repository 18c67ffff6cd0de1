"""`gpt4roi caption` killed at random moments, and run by two ranks: the same file as one uninterrupted run.

With the quickstart's model where it is there (exp/quickstart), else with a tiny one.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "exp" / "quickstart"
IMAGES, BOXES_EACH, KILLS = 20, 50, 5
COMMAND = ["-m", "gpt4roi.cli", "caption"]


@pytest.fixture(scope="module")
def job(tmp_path_factory, chat):
    """The words of the command up to --out: a file of 1,000 boxes on 20 images, and a model."""
    folder = tmp_path_factory.mktemp("kills")
    shown = sorted((QUICKSTART / "data" / "images" / "test").glob("*.png"))[:IMAGES]
    if not shown or not (QUICKSTART / "stage2" / "trained.json").is_file():
        model, images = folder / "model", folder / "images"
        images.mkdir()
        chat.model.save_pretrained(model)
        chat.processor.save_pretrained(model)
        draw = np.random.default_rng(0)
        for number in range(IMAGES):
            pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((256, 256), Image.Resampling.NEAREST).save(images / f"{number}.png")
        shown = sorted(images.glob("*.png"))
    else:
        model, images = QUICKSTART / "stage2", shown[0].parent
    (folder / "ann.json").write_text(json.dumps(boxes_on(shown)))
    words = [folder / "ann.json", "--images", images, "--model", model, "--device", "cpu", "--dtype", "float32"]
    return [*COMMAND, *map(str, words), "--max-new-tokens", "8", "--batch-size", "50", "--out"]


def boxes_on(paths: list[Path]) -> dict:
    """Fifty boxes of all sizes on each image."""
    draw = np.random.default_rng(1)
    images, annotations = [], []
    for number, path in enumerate(paths, start=1):
        width, height = Image.open(path).size
        images.append({"id": number, "file_name": path.name, "width": width, "height": height})
        for _ in range(BOXES_EACH):
            (x1, x2), (y1, y2) = (np.sort(draw.uniform(0, side - 8, 2)) + np.array([0, 8]) for side in (width, height))
            bbox = [round(float(value), 1) for value in (x1, y1, x2 - x1, y2 - y1)]
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": bbox})
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}


def kill_when_done(words: list[str], parts: Path, lines: int) -> int:
    """Starts the command and kills it a moment after so many groups are done; returns how many then are."""
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and groups_done(parts) < lines:
        time.sleep(0.02)
    time.sleep(random.Random(lines).uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    process.wait()
    return groups_done(parts)


def groups_done(parts: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in parts.glob("rank-*.jsonl"))


@pytest.mark.slow
def test_kills_and_ranks_leave_no_trace_in_the_file(job, tmp_path):
    whole, killed, shared = (tmp_path / f"{name}.json" for name in ("whole", "killed", "shared"))
    subprocess.run([sys.executable, *job, str(whole)], cwd=ROOT, check=True)

    words = [sys.executable, *job, str(killed)]
    parts = tmp_path / "killed.json.parts"
    done = [kill_when_done(words, parts, lines) for lines in range(3, 3 + 3 * KILLS, 3)]
    assert not killed.exists() and done == sorted(done) and done[-1] < IMAGES
    subprocess.run(words, cwd=ROOT, check=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*torchrun, *job, str(shared)], cwd=ROOT, check=True)

    assert killed.read_bytes() == whole.read_bytes()
    assert shared.read_bytes() == whole.read_bytes()
    texts = [annotation["caption"] for annotation in COCO(str(whole)).dataset["annotations"]]
    assert len(texts) == IMAGES * BOXES_EACH and len(set(texts)) > 1
    print(f"\nkilled with {done} of {IMAGES} groups done; {len(texts)} texts, {len(set(texts))} different")
