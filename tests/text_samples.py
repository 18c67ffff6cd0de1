"""What the tests of the processor share: two small tokenizers, and samples about one image."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gpt4roi.processing.processor import GPT4RoIProcessor
from gpt4roi.processing.tokenizer import add_special_tokens
from gpt4roi.structures import RegionSample, Turn

LLAMA_LIKE = Path(__file__).parent / "golden" / "text" / "tokenizer"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PATCHES = "<im_start><im_patch><im_patch><im_patch><im_end>"
IMAGE = np.full((40, 80, 3), 200, dtype=np.uint8)
BOXES = [[8, 4, 40, 20], [40, 0, 80, 40], [0, 0, 20, 10]]
QUESTIONS = ("What is <region2>?", "a dog", "Is <region1> left of <region2>?", "yes", "How many?", "two")

NORMALISED = [[0.1, 0.1, 0.5, 0.5], [0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 0.25, 0.25]]


def bytes_tokenizer(chat_template=CHATML):
    """A tokenizer of 256 bytes without merges, and the two marks of its chat template."""
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.add_tokens(["<|im_start|>"], special_tokens=True)
    made.chat_template = chat_template
    return made


def make(prompt_format="v0", **kwargs):
    tokenizer = bytes_tokenizer() if prompt_format == "chat" else AutoTokenizer.from_pretrained(LLAMA_LIKE)
    add_special_tokens(tokenizer, pad_with_unknown=prompt_format == "v1")
    return GPT4RoIProcessor(
        tokenizer, **{"image_size": 32, "image_seq_length": 3, **kwargs}, prompt_format=prompt_format
    )


def sample(*texts, image=IMAGE, boxes=BOXES, **kwargs):
    turns = [Turn(("user", "assistant")[index % 2], text) for index, text in enumerate(texts)]
    return RegionSample(image, turns, boxes_px=boxes if image is not None else [], source="d.json#7", **kwargs)


def text_of(processor, ids):
    """Spells ids out, special tokens included."""
    return processor.tokenizer.decode(ids, skip_special_tokens=False)
