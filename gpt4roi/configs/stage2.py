"""Data sets of stage 2, as the original trained on them, with folders as data/README.md lays them out."""

datasets = [
    {
        "type": "flickr30k",
        "ann_file": "./data/mdetr_annotations/final_flickr_mergedGT_train.json",
        "img_prefix": "./data/flickr30k-images",
    },
    {
        "type": "RefCOCOG",
        "ann_file": "./data/mdetr_annotations/finetune_refcocog_train.json",
        "img_prefix": "./data/coco_all",
    },
    {
        "type": "VGDATA",
        "ann_file": "./data/visual_genome/train.json",
        "img_prefix": "./data/visual_genome/vg_all",
    },
    {
        "type": "det_llava",
        "ann_file": "./data/llava/llava_instruct_150k.json",
        "img_prefix": "./data/coco_all",
        "det_pkl_path": "./data/llava/llava_150k_bbox_pred_results.pkl",
    },
    {"type": "vcr", "ann_file": "./data/vcr/train.jsonl", "img_prefix": "./data/vcr/vcr1images"},
    {"type": "single_vcr", "ann_file": "./data/vcr/train.jsonl", "img_prefix": "./data/vcr/vcr1images"},
    {"type": "multi_vcr", "ann_file": "./data/vcr/train.jsonl", "img_prefix": "./data/vcr/vcr1images"},
]
