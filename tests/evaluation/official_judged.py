"""Tiny files of the benchmarks that a judge scores, as `official` has them of the others, and an impartial judge."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from official import CAPTIONS, dump, write_image
from stub_judge import text_of

RUNS = {"size": [64, 96], "counts": [64 * 10 + 5, 20, 64 * 86 - 25]}


def lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def dlc_bench(folder: Path) -> Path:
    """Two masks; the second without negative questions."""
    write_image(folder / "images" / "a.jpg")
    images = [{"id": 1, "file_name": "a.jpg", "height": 64, "width": 96}]
    annotations = [{"id": n, "image_id": 1, "segmentation": RUNS, "category_id": 1} for n in (7, 8)]
    dump(folder / "annotations.json", {"images": images, "annotations": annotations, "categories": []})
    first = [
        {"question": "What is it?", "choices": [["a red mug", 1], ["a lamp", 0], ["none of these", 0]]},
        {"question": "What is on it?", "choices": [["a white star", 1], ["a blue star", -1], ["nothing is said", 0]]},
        {"question": "Has it a lid?", "choices": [["a lid", -1], ["without a lid", 1], ["no lid is mentioned", 1]]},
    ]
    kinds = ("recognition", "positive", "negative")
    first = [{**one, "type": kind} for one, kind in zip(first, kinds, strict=True)]
    dump(folder / "qa.json", {"7": first, "8": first[:2]})
    return folder


def ferret_bench(folder: Path) -> Path:
    """Three parts of two questions, the first in the folder as it is shipped."""
    write_image(folder / "images" / "1.jpg")
    texts = {
        "refer_caption": "What is [0.25, 0.1, 0.75, 0.5] doing?",
        "refer_reason": "Why is [0.1, 0.1, 0.5, 0.5] near [0.5,0.5,1.0,1.0], and not on [0.1, 0.1, 0.5, 0.5]?",
        "ground_conv": "Where is the dog?",
    }
    for part, text in texts.items():
        asked = [{"question_id": n, "image": "1.jpg", "text": text, "category": part} for n in (0, 1)]
        lines(folder / part / "question.jsonl", asked)
        lines(folder / part / "answer.jsonl", [{"question_id": n, "text": CAPTIONS[n]} for n in (0, 1)])
        lines(folder / part / "context.jsonl", [{"image": "1.jpg", "text": "a street with two dogs"}])
    return folder


def vip_bench(folder: Path) -> Path:
    """Three questions of each split."""
    for split in ("bbox", "human"):
        asked = [
            {"question_id": f"v1_{n}", "image": "1.jpg", "text": "What is <obj>?", "bbox": [[2, 3, 30 + n, 40]]}
            for n in range(3)
        ]
        lines(folder / split / "questions.jsonl", asked)
        write_image(folder / split / "source_image" / "1.jpg")
    kinds = (["rec"], ["rec", "ocr"], ["math"])
    truths = {f"v1_{n}": {"answer": CAPTIONS[n], "capability": kinds[n]} for n in range(3)}
    return dump(folder / "vip-bench-meta-data.json", truths).parent


def mdvp_bench(folder: Path) -> Path:
    """Two of the six parts."""
    write_image(folder / "images" / "1.jpg")
    for part in ("natural", "web"):
        said = ("<image>\nCompare <region> and <region>.", CAPTIONS[0], "What is marked?", CAPTIONS[1])
        records = [
            {"image": "1.jpg", "bbox": [[2, 3, 30, 40], [40, 5, 80, 60]], "conversations": _turns(said[:2])},
            {"image": "1.jpg", "bbox": [[2, 3, 30, 41]], "conversations": _turns(said[2:])},
        ]
        dump(folder / f"{part}.json", records)
    return folder


def _turns(said: tuple[str, ...]) -> list[dict]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]


def gar_bench(folder: Path) -> Path:
    """Questions about two masks, and descriptions of them."""
    write_image(folder / "images" / "1.jpg")
    record = {"image": "1.jpg", "mask_rles": [RUNS, RUNS], "question": "What is <Prompt1> to <Prompt0>?"}
    choices = ["on it", "below it", "in it", "it"]
    vqa = [{**record, "choices": choices, "answer": "ABCD"[n % 4], "type": "relation"} for n in range(40)]
    dump(folder / "annotations" / "GAR-Bench-VQA.json", vqa)
    for kind in ("Simple", "Detailed"):
        captions = [{**record, "caption": text} for text in CAPTIONS[:2]]
        dump(folder / "annotations" / f"GAR-Bench-Caption-{kind}.json", captions)
    return folder


JUDGED: dict[str, Callable[[Path], Path]] = {
    "dlc-bench": dlc_bench,
    "ferret-bench": ferret_bench,
    "gar-caption": gar_bench,
    "mdvp-bench": mdvp_bench,
    "vip-bench": vip_bench,
}


def impartial(body: dict) -> str:
    """Rates what is the reference best, everything else worst; picks the longest option that a description holds."""
    text = text_of(body)
    if "[Assistant 1]" in text:
        reference, candidate = re.search(r"\[Assistant 1\]\n(.*)\n\[Assistant 2\]\n(.*)", text, re.S).groups()
        return "10 10\nEqual." if reference == candidate else "10 1\nWorse."
    if "Correctness score:" in text:
        truth, said = re.search(r"Ground truth: (.*)\nPrediction: (.*)\nCorrectness", text, re.S).groups()
        return "1.0" if truth == said else "0.0"
    if "Reference:" in text and "Description:" in text:
        truth, said = re.search(r"Reference: (.*)\nDescription: (.*)", text, re.S).groups()
        return "Yes." if truth == said else "no"
    description = text.partition("\n")[2].partition("\n\n")[0]
    options = re.findall(r"^([A-J])\. (.*)$", text, re.M)
    held = [(len(said), letter) for letter, said in options if said in description]
    return max(held)[1] if held else options[-1][0]
