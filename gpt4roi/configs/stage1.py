"""Data sets of stage 1, as the original trained on them, with folders as data/README.md lays them out."""

datasets = [
    {
        "type": "coco_det",
        "ann_file": "./data/coco/annotations/instances_train2017.json",
        "img_prefix": "./data/coco/train2017",
    },
    {
        "type": "RefCOCO",
        "ann_file": "./data/mdetr_annotations/finetune_refcoco_train.json",
        "img_prefix": "./data/coco_all",
    },
    {
        "type": "RefCOCOP",
        "ann_file": "./data/mdetr_annotations/finetune_refcoco+_train.json",
        "img_prefix": "./data/coco_all",
    },
]
