"""Special tokens and IGNORE_INDEX. The order of ADDED_TOKENS decides the rows of released checkpoints."""

IGNORE_INDEX = -100

IMAGE_TOKEN = "<image>"
"""What users write for the image; the prompt expands it."""

PAD_TOKEN = "[PAD]"
IMAGE_PATCH_TOKEN = "<im_patch>"
REGION_TOKEN = "<bbox>"
POINT_TOKEN = "<point>"
IMAGE_START_TOKEN = "<im_start>"
IMAGE_END_TOKEN = "<im_end>"

ADDED_TOKENS = (IMAGE_PATCH_TOKEN, REGION_TOKEN, POINT_TOKEN, IMAGE_START_TOKEN, IMAGE_END_TOKEN)
"""Added to a tokenizer in this order, after PAD_TOKEN where the tokenizer has no padding token of its own."""
