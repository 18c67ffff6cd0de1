"""The recordings of the original's readers, and our samples written in the same form."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from gpt4roi.geometry.boxes import boxes_in_frame
from gpt4roi.processing.images import load_image, to_pixel_values
from gpt4roi.processing.mentions import number_boxes, write_mentions
from gpt4roi.processing.processor import CLIP_MEAN, CLIP_STD

GOLDEN = Path(__file__).parents[1] / "golden" / "datasets"
DATA = GOLDEN / "data"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())

_MENTIONS = re.compile(r"<image>|region\d+ <bbox>|<bbox>|region ?\d+")

COCO = {"ann_file": DATA / "coco/annotations/instances_train2017.json", "img_prefix": DATA / "coco/train2017"}
MDETR, FLAT = DATA / "mdetr_annotations", DATA / "coco_all"
VCR = {"ann_file": DATA / "vcr/train.jsonl", "img_prefix": DATA / "vcr/vcr1images"}
LLAVA = {
    "ann_file": DATA / "llava/llava_instruct_150k.json",
    "img_prefix": FLAT,
    "det_pkl_path": DATA / "llava/llava_150k_bbox_pred_results.pkl",
}
ENTRIES = {
    "coco_det_train": {"type": "coco_det", **COCO},
    "coco_det_test": {"type": "coco_det", **COCO, "test_mode": True},
    "coco_det_train_max2": {"type": "coco_det", **COCO, "max_gt_per_img": 2},
    "coco_det_tiny": {
        "type": "coco_det",
        "test_mode": True,
        "ann_file": DATA / "coco_tiny/annotations/instances_val2017.json",
        "img_prefix": DATA / "coco_tiny/val2017",
    },
    "refcoco": {"type": "RefCOCO", "ann_file": MDETR / "finetune_refcoco_train.json", "img_prefix": FLAT},
    "refcocop": {"type": "RefCOCOP", "ann_file": MDETR / "finetune_refcoco+_train.json", "img_prefix": FLAT},
    "refcocog": {"type": "RefCOCOG", "ann_file": MDETR / "finetune_refcocog_train.json", "img_prefix": FLAT},
    "flickr30k": {
        "type": "flickr30k",
        "ann_file": MDETR / "final_flickr_mergedGT_train.json",
        "img_prefix": DATA / "flickr30k-images",
    },
    "vg": {
        "type": "VGDATA",
        "ann_file": DATA / "visual_genome/train.json",
        "img_prefix": DATA / "visual_genome/vg_all",
    },
    "vcr": {"type": "vcr", **VCR},
    "vcr_single": {"type": "single_vcr", **VCR},
    "vcr_multi": {"type": "multi_vcr", **VCR},
    "det_llava": {"type": "det_llava", **LLAVA},
}
"""Each recorded set as an entry of a list of data sets."""


def rounds_of(sample):
    """Writes the turns of a sample as the recordings do: mentions of the questions, texts of the answers."""
    texts = [turn.text for turn in sample.turns]
    written, _ = write_mentions(texts, number_boxes(texts, len(sample.boxes_px)))
    return [
        {"from": "human", "mentions": _MENTIONS.findall(text)}
        if turn.role == "user"
        else {"from": "gpt", "value": text}
        for turn, text in zip(sample.turns, written, strict=True)
    ]


def boxes_of(sample):
    """Returns the boxes of a sample as the model gets them, float32[N, 4]."""
    size = (1, 1)
    if sample.box_frame == "pixels":
        image = load_image(sample.image, sample.image_pipeline)
        size = (image.height, image.width)
    boxes = boxes_in_frame(sample.boxes_px, size, sample.image_pipeline, 224, sample.augmentation)
    return (boxes / 224).astype(np.float32)


def pixels_of(sample):
    """Returns the image of a sample as the model gets it, float32[3, 224, 224]."""
    image = load_image(sample.image, sample.image_pipeline)
    return to_pixel_values(image, sample.image_pipeline, 224, CLIP_MEAN, CLIP_STD, sample.augmentation).numpy()
