"""Tiny files in the official format of every benchmark, with three to forty questions each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

CAPTIONS = (
    "a tall man in a red coat waits",
    "two small dogs sleep on the old sofa",
    "the left wheel of a blue truck",
    "a white cup with black stripes on it",
)
QUESTIONS = 120


def write_image(path: Path, seed: int = 0) -> None:
    """Writes an image of 96 x 64 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((96, 64), Image.Resampling.NEAREST).save(path)


def dump(path: Path, content: object) -> Path:
    """Writes JSON and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def expressions(folder: Path, name: str, split: str) -> Path:
    """MDETR's form: every `image` is one sentence. The first box has two sentences."""
    images, annotations = [], []
    for number, (caption, box) in enumerate(zip((*CAPTIONS, "that same man"), (0, 1, 2, 3, 0), strict=True), start=1):
        file_name = f"COCO_train2014_00000000000{box % 2}.jpg"
        images.append({"id": number, "file_name": file_name, "caption": caption, "height": 64, "width": 96})
        corners = [5 * box + 2, 3, 30, 40]
        annotations.append({"id": number, "image_id": number, "bbox": corners, "area": 1200, "category_id": 1})
    for number in (0, 1):
        write_image(folder / "coco_all" / f"00000000000{number}.jpg", number)
    content = {"images": images, "annotations": annotations, "categories": []}
    return dump(folder / "mdetr_annotations" / f"finetune_{name}_{split}.json", content).parent


def flickr(folder: Path) -> Path:
    """Two sentences about one image; the first box is in both."""
    sentences = ("Two men in green shirts hold a brown dog.", "A pair of men outside.")
    spans = [(0, (0, 23), [2, 3, 30, 40]), (0, (29, 40), [40, 20, 30, 30]), (1, (0, 13), [2, 3, 30, 40])]
    images = [
        {"id": n, "file_name": "1001.jpg", "caption": text, "height": 64, "width": 96}
        for n, text in enumerate(sentences)
    ]
    annotations = [
        {"id": n, "image_id": image, "bbox": box, "tokens_positive": [list(span)], "category_id": 1}
        for n, (image, span, box) in enumerate(spans)
    ]
    write_image(folder / "flickr30k-images" / "1001.jpg")
    content = {"images": images, "annotations": annotations}
    return dump(folder / "mdetr_annotations" / "final_flickr_mergedGT_test.json", content)


def visual_genome(folder: Path) -> Path:
    """GRiT's test.json."""
    annotations = [
        {"id": 10 + n, "image_id": 1 + n % 2, "bbox": [2 + 5 * n, 3, 20, 30], "caption": caption, "category_id": 1}
        for n, caption in enumerate(CAPTIONS)
    ]
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 64, "width": 96} for n in (1, 2)]
    for n in (1, 2):
        write_image(folder / "vg_all" / f"{n}.jpg", n)
    return dump(folder / "test.json", {"images": images, "annotations": annotations}).parent


def ref_l4(folder: Path) -> Path:
    """The hub's parquet; the first box has two captions."""
    rows = [
        {"id": f"{n:06}", "file_name": "images/a.jpg", "bbox": [2.0 + 5 * (n % 4), 3, 20, 30], "caption": caption}
        | {"height": 64, "width": 96, "is_rewrite": False, "ori_category_id": "o365_1"}
        for n, caption in enumerate((*CAPTIONS, "a man who waits in a long coat"))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "ref-l4-test.parquet")
    write_image(folder / "images" / "a.jpg")
    return folder


def vcr(folder: Path) -> Path:
    """val.jsonl with token lists and one metadata file; labels are spread evenly."""
    (folder / "vcr1images" / "movie").mkdir(parents=True)
    write_image(folder / "vcr1images" / "movie" / "1.jpg")
    boxes = [[5.0, 4.0, 25.0, 30.0, 0.99], [8.0, 6.0, 60.0, 50.0, 0.98]]
    dump(folder / "vcr1images" / "movie" / "1.json", {"boxes": boxes, "segms": [], "width": 96, "height": 64})
    options = [[[0], "smiles", "."], ["Because", [1], "is", "20", "years", "old", "."], [[0, 1], "sit"], ["No", "."]]
    lines = [
        {
            "annot_id": f"val-{n}",
            "img_fn": "movie/1.jpg",
            "metadata_fn": "movie/1.json",
            "objects": ["person", "dog"],
            "question": ["Why", "is", [0], "near", [1], "?"],
            "answer_choices": options,
            "answer_label": n % 4,
            "rationale_choices": options[::-1],
            "rationale_label": n // 4 % 4,
        }
        for n in range(QUESTIONS // 2)
    ]
    (folder / "val.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def visual7w(folder: Path, kind: str) -> Path:
    """dataset_v7w_{telling,pointing}.json, and the grounding annotations of telling."""
    boxes = [{"box_id": n, "name": "x", "x": 2 + 3 * (n % 9), "y": 3, "width": 20, "height": 30} for n in range(40)]
    pairs = []
    for n in range(QUESTIONS):
        candidates = [4 * (n % 10) + k for k in range(4)] if kind == "pointing" else ["red", "a dog", "two", "at night"]
        word = "which" if kind == "pointing" else ("what", "who", "why")[n % 3]
        pairs.append(
            {"qa_id": 700 + n, "question": f"{word.title()} is it?", "type": word, "image_id": 5}
            | {"answer": candidates[n % 4], "multiple_choices": candidates[: n % 4] + candidates[n % 4 + 1 :]}
        )
    image = {"image_id": 5, "filename": "v7w_5.jpg", "split": "test", "qa_pairs": pairs}
    other = {"image_id": 6, "filename": "v7w_6.jpg", "split": "train", "qa_pairs": pairs}
    write_image(folder / "visual7w_images" / "v7w_5.jpg")
    if kind == "telling":
        grounded = [{"qa_id": 700 + n, "x": 1, "y": 2, "width": 30, "height": 20, "name": "x"} for n in range(0, 60)]
        dump(folder / "v7w_telling_answers.json", {"boxes": grounded})
    return dump(
        folder / f"dataset_v7w_{kind}.json", {"dataset": "v7w", "images": [image, other], "boxes": boxes}
    ).parent


def objects(folder: Path, name: str) -> Path:
    """Osprey's list: masks as polygons and as run lengths."""
    polygon = {"segmentation": [[5, 5, 40, 5, 40, 30, 5, 30]]}
    runs = {"segmentation": {"size": [64, 96], "counts": [64 * 10 + 5, 20, 64 * 86 - 25]}}
    categories = ["trash_can", "car:wheel"]
    records = [
        {"file_name": f"{n}.jpg", "height": 64, "width": 96, "categories": categories, "annotations": [polygon, runs]}
        for n in (1, 2)
    ]
    for n in (1, 2):
        write_image(folder / "images" / f"{n}.jpg", n)
    return dump(folder / f"{name}_val_1k_category.json", records)


def instances(folder: Path, kind: str) -> Path:
    """COCO's or LVIS's instances."""
    names = ("person", "dog", "bus_(vehicle)" if kind == "lvis" else "bus")
    categories = [{"id": 10 * n, "name": name} for n, name in enumerate(names, start=1)]
    image = {"id": 1, "height": 64, "width": 96}
    if kind == "lvis":
        categories[2]["synonyms"] = ["bus_(vehicle)", "autobus"]
        image |= {"coco_url": "http://images.cocodataset.org/val2017/000000000001.jpg", "neg_category_ids": [20]}
        annotated = [10, 30]
    else:
        image |= {"file_name": "000000000001.jpg"}
        annotated = [10, 20]
    annotations = [
        {"id": n, "image_id": 1, "category_id": annotated[n % 2], "bbox": [2 + n % 40, 3, 20, 30], "iscrowd": 0}
        for n in range(QUESTIONS)
    ]
    annotations.append({**annotations[0], "id": 999, "iscrowd": 1})
    write_image(folder / "val2017" / "000000000001.jpg")
    file_name = "lvis_v1_val.json" if kind == "lvis" else "annotations/instances_val2017.json"
    return dump(folder / file_name, {"images": [image], "annotations": annotations, "categories": categories})


def unified(folder: Path) -> Path:
    """Captions, yes or no, a choice and pointing in one file; the second image's questions form a dialogue."""
    pairs = [
        ("What is <region1>?", CAPTIONS[0], "caption"),
        ("What is <region2>?", CAPTIONS[1], "caption"),
        ("Is <region1> left of <region2>?", "yes", "left"),
        ("Is <region2> left of <region1>?", "no", "left"),
        ("Is <region1> above <region2>?", "no", "left"),
        ("What colour is <region1>?\n(A) red\n(B) blue\n(C) green", "(B)", "colour"),
        ("Which regions show a dog, of <region1> and <region2>?", "region2", "which"),
    ]
    turns = [{"from": who, "value": text} for pair in pairs for who, text in zip(("human", "gpt"), pair, strict=False)]
    first = {"image": "images/1.jpg", "boxes": [[2, 3, 30, 40], [40, 5, 80, 60]], "independent": True}
    first |= {"tasks": [task for *_, task in pairs], "conversations": turns, "height": 64, "width": 96}
    said = ("What is <region1>?", CAPTIONS[2], "And what colour is it?", "blue")
    second = {"image": "images/2.jpg", "boxes": [[2, 3, 50, 60]]}
    second["conversations"] = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]
    for n in (1, 2):
        write_image(folder / "images" / f"{n}.jpg", n)
    text = "".join(json.dumps(one) + "\n" for one in (first, second, {"conversations": second["conversations"][2:]}))
    (folder / "test.jsonl").write_text(text, encoding="utf-8")
    return folder / "test.jsonl"


WRITERS: dict[str, Callable[[Path], Path]] = {
    "coco": lambda folder: instances(folder, "coco"),
    "coco-detection": lambda folder: instances(folder, "coco"),
    "coco-two-way": lambda folder: instances(folder, "coco"),
    "flickr30k": flickr,
    "lvis": lambda folder: objects(folder, "lvis"),
    "lvis-classes": lambda folder: instances(folder, "lvis"),
    "lvis-detection": lambda folder: instances(folder, "lvis"),
    "lvis-two-way": lambda folder: instances(folder, "lvis"),
    "paco": lambda folder: objects(folder, "paco"),
    "ref-l4": ref_l4,
    "refcoco": lambda folder: expressions(folder, "refcoco", "testA"),
    "refcoco+": lambda folder: expressions(folder, "refcoco+", "testA"),
    "refcocog": lambda folder: expressions(folder, "refcocog", "val"),
    "unified": unified,
    "v7w-pointing": lambda folder: visual7w(folder, "pointing"),
    "v7w-telling": lambda folder: visual7w(folder, "telling"),
    "vcr": vcr,
    "vg": visual_genome,
}
"""For each benchmark a function that writes its files into a folder and returns what `--data` takes."""
