"""Data sets for regions on a pretrained vision-language model: names, phrases, captions and dialogues of regions.

What work of this kind trains on, as far as its files are public: Osprey (its Osprey-724K), VLM-FO1 and DAM (COCO, LVIS
and PACO objects, referring expressions, region captions). Licences differ and images have terms of their own; read each
before training what is to be given away.

The `unified` files are made once, from the files as they are published:

    for name in lvis/lvis_v1_train paco/paco_lvis_v1_train; do
        gpt4roi data convert data/$name.json data/$name.unified.jsonl --from lvis --img-prefix data/coco_imgs
    done
    for name in conversation detail_description short_form part_level; do
        name=osprey/osprey_$name
        gpt4roi data convert data/$name.json data/$name.unified.jsonl --from osprey --img-prefix data/coco_imgs
    done

With `--masks` they hold masks, for a model that is trained with `--region_shape mask`. COCO by proposals: train on the
categories as they are, and give a detector's proposals to `gpt4roi detect`.
"""

datasets = [
    # Objects and their category. COCO 2017, 118,000 images; annotations CC BY 4.0, images under Flickr's terms.
    {
        "type": "coco_det",
        "ann_file": "./data/coco_det/annotations/instances_train2017.json",
        "img_prefix": "./data/coco_det/train2017",
        "ratio": 0.5,
    },
    # Objects of LVIS v1, 100,000 images of COCO, 1203 categories; annotations CC BY 4.0.
    {"type": "unified", "ann_file": "./data/lvis/lvis_v1_train.unified.jsonl"},
    # Objects and their parts, as "cup handle". PACO-LVIS, 45,790 images of COCO, 75 objects and 456 parts; terms on its
    # page.
    {"type": "unified", "ann_file": "./data/paco/paco_lvis_v1_train.unified.jsonl"},
    # Phrases of objects. RefCOCO, RefCOCO+ and RefCOCOg by MDETR, 80,000 to 120,000 expressions each, on COCO's images.
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
    {
        "type": "RefCOCOG",
        "ann_file": "./data/mdetr_annotations/finetune_refcocog_train.json",
        "img_prefix": "./data/coco_all",
    },
    # Phrases of captions. Flickr30k Entities, 149,000 captions; images for research that is not commercial.
    {
        "type": "flickr30k",
        "ann_file": "./data/mdetr_annotations/final_flickr_mergedGT_train.json",
        "img_prefix": "./data/flickr30k-images",
    },
    # Captions of regions. Visual Genome by GRiT, 77,000 images; CC BY 4.0.
    {
        "type": "VGDATA",
        "ann_file": "./data/visual_genome/train.json",
        "img_prefix": "./data/visual_genome/vg_all",
    },
    # Dialogues and long descriptions of regions. Osprey-724K, on images of COCO; terms on its page.
    {"type": "unified", "ann_file": "./data/osprey/osprey_conversation.unified.jsonl"},
    {"type": "unified", "ann_file": "./data/osprey/osprey_detail_description.unified.jsonl"},
    {"type": "unified", "ann_file": "./data/osprey/osprey_short_form.unified.jsonl"},
    {"type": "unified", "ann_file": "./data/osprey/osprey_part_level.unified.jsonl"},
]
