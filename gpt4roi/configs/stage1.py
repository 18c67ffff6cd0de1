"""What stage 1 of the original learnt from, in its own spelling of the folders; see data/README.md."""

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
