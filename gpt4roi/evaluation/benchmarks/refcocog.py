"""RefCOCOg captions.

Source    MDETR's finetune_refcocog_val.json; images of COCO train2014, flat.
Split     val (default), test: the UMD split, as MDETR has it.
Prompt    GLaMM's, since the paper states none for this set [guess that the original used a similar one].
Metric    CIDEr, METEOR, BLEU, ROUGE-L (pycocoevalcap).
Protocol  both, and the table says which: "one reference per expression" (GLaMM, Osprey: an entry of the file is an
          item) and "all references of a box". A box is asked about once and its answer counts for each expression.
Pitfalls  papers differ by about 5 points of METEOR at equal CIDEr, probably because of the protocol [guess]; images
          of val and test occur in COCO train2017 and in Visual Genome, so check what a model was trained with.
"""

from __future__ import annotations

from gpt4roi.evaluation.benchmarks._expressions import expressions

QUESTION = "Can you provide me with a detailed description of the region in the image marked by <region1>?"

BENCHMARK = expressions("RefCOCOg captions", "refcocog", ("val", "test"), QUESTION)
