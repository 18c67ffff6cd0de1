"""Caption metrics BLEU, METEOR, ROUGE-L, CIDEr and SPICE by pycocoevalcap.

PTB tokenizer and METEOR are Java programs. Without Java the others are computed on a plain tokenizer's words, which is
said: such figures are not comparable with published ones. CIDEr weighs words by how rare they are among all
references given here, so it belongs to the whole set: never average it over parts, and expect another with --limit.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gpt4roi.evaluation.java_programs import JavaProgramError, linked_folder, program_folder, run_java
from gpt4roi.evaluation.metrics import Measure, as_utf8, words

logger = logging.getLogger(__name__)

PTB, PLAIN = "PTB (Stanford CoreNLP 3.4.1)", "plain words (no Java: not comparable with published figures)"
_PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
_SPICE_FILES = ("spice-1.0.jar", "lib/stanford-corenlp-3.6.0.jar")


@dataclass(frozen=True)
class CaptionScores:
    """Measures by name, the tokenizer they stand on, and what could not be computed, in words."""

    measures: dict[str, Measure]
    tokenizer: str
    notes: tuple[str, ...] = field(default_factory=tuple)


def has_java() -> bool:
    """Tells whether a Java runtime is on the path."""
    return shutil.which("java") is not None


def score_captions(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    groups: Sequence[Hashable] | None = None,
    quick: bool = False,
) -> CaptionScores:
    """Scores one text for each item against one or several references.

    Args:
        predictions: n texts.
        references: For each at least one.
        groups: The image of each, for the intervals.
        quick: Without METEOR and SPICE, whose programs take seconds to start.
    """
    groups = range(len(predictions)) if groups is None else groups
    if importlib.util.find_spec("pycocoevalcap") is None:
        note = "BLEU, METEOR, ROUGE-L, CIDEr: pycocoevalcap is not installed; pip install 'gpt4roi[eval]'"
        return CaptionScores({}, PLAIN, (note,))
    if not len(predictions):
        return CaptionScores({}, PLAIN)
    predictions = [as_utf8(text) for text in predictions]
    references = [[as_utf8(text) for text in several] for several in references]
    java, notes = has_java(), []
    if not java:
        if not quick:
            notes.append("METEOR: Java is missing (Debian, Ubuntu: apt install default-jre-headless)")
        notes.append("BLEU, ROUGE-L, CIDEr: computed without the PTB tokenizer, which needs Java; not comparable")
    try:
        said, asked = tokenize_all(predictions, references, java)
    except (JavaProgramError, OSError) as error:
        java, reason = False, error if isinstance(error, JavaProgramError) else f"Java does not run: {error}"
        notes.append(f"METEOR, and the PTB tokenizer of BLEU, ROUGE-L and CIDEr (not comparable): {reason}")
        said, asked = tokenize_all(predictions, references, java)
    measures = _bleu(said, asked, groups)
    if java and not quick:
        measures |= _if_it_runs("METEOR", lambda: _meteor(said, asked, groups), notes)
    measures |= _rouge_and_cider(said, asked, groups)
    if len(said) == 1:
        notes.append("CIDEr of one item is 0 by construction: it weighs words by how rare they are among all items")
    if java and not quick and spice_files_there():
        measures |= _if_it_runs("SPICE", lambda: _spice(predictions, references, groups), notes)
    elif not quick:
        notes.append("SPICE: its files are not here (pycocoevalcap/spice/get_stanford_models.py fetches them)")
    return CaptionScores(measures, PTB if java else PLAIN, tuple(notes))


def _if_it_runs(name: str, compute: Callable[[], Measure], notes: list[str]) -> dict[str, Measure]:
    """Returns a measure by its name; none, and a note, where its program fails or prints what is no figure."""
    try:
        return {name: compute()}
    except (JavaProgramError, OSError, ValueError, KeyError, TypeError) as error:
        notes.append(f"{name}: {error if isinstance(error, JavaProgramError) else f'its program gave {error!r:.200}'}")
        return {}


def tokenize_all(
    predictions: Sequence[str], references: Sequence[Sequence[str]], java: bool
) -> tuple[list[str], list[list[str]]]:
    """Returns both sides tokenized, lower case, without punctuation, words parted by one blank."""
    flat = [" ".join(text.split()) for text in predictions]
    flat += [" ".join(text.split()) for several in references for text in several]
    tokenized = _ptb(flat) if java else [" ".join(words(text)) for text in flat]
    rest = iter(tokenized[len(predictions) :])
    return tokenized[: len(predictions)], [[next(rest) for _ in several] for several in references]


def _ptb(texts: list[str]) -> list[str]:
    distinct = list(dict.fromkeys(texts))
    program = ("edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase")
    with linked_folder("tokenizer") as (folder, _):
        lines = run_java(["-cp", folder / "stanford-corenlp-3.4.1.jar", *program], distinct)
    if len(lines) != len(distinct):
        raise JavaProgramError(f"the PTB tokenizer returned {len(lines)} of {len(distinct)} lines")
    tokens = {
        text: " ".join(word for word in line.rstrip().split(" ") if word not in _PUNCTUATION)
        for text, line in zip(distinct, lines, strict=True)
    }
    return [tokens[text] for text in texts]


def _bleu(predicted: list[str], expected: list[list[str]], groups: Sequence[Hashable]) -> dict[str, Measure]:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for prediction, several in zip(predicted, expected, strict=True):
        scorer += (prediction, several)
    _, per_item = scorer.compute_score(option="closest")
    rows = [
        [
            one["testlen"],
            min((abs(length - one["testlen"]), length) for length in one["reflen"])[1],
            *one["correct"],
            *one["guess"],
        ]
        for one in scorer.ctest
    ]
    statistics = np.asarray(rows, dtype=np.float64)
    return {
        f"BLEU-{n}": Measure(statistics, functools.partial(_bleu_of_sums, n), np.asarray(per_item[n - 1]), groups)
        for n in (1, 2, 3, 4)
    }


def _bleu_of_sums(n: int, sums: np.ndarray) -> np.ndarray:
    """Returns corpus BLEU-n from (length, reference length, 4 counts right, 4 counts), with the tool's guards."""
    correct, guess = sums[:, 2 : 2 + n], sums[:, 6 : 6 + n]
    precision = np.prod((correct + 1e-15) / (guess + 1e-9), axis=1) ** (1 / n)
    ratio = (sums[:, 0] + 1e-15) / (sums[:, 1] + 1e-9)
    return precision * np.exp(np.minimum(0.0, 1 - 1 / ratio))


def _meteor(said: list[str], asked: list[list[str]], groups: Sequence[Hashable]) -> Measure:
    pairs = zip(said, asked, strict=True)
    questions = [
        f"SCORE ||| {' ||| '.join(several)} ||| {one.replace('|||', '').replace('  ', ' ')}" for one, several in pairs
    ]
    with linked_folder("meteor") as (folder, _):
        # Told where its paraphrases are, as it loses them where the jar's own path has a blank, link or not.
        options = ["-", "-", "-stdio", "-l", "en", "-norm", "-a", folder / "data" / "paraphrase-en.gz"]
        lines = run_java(["-Xmx2G", "-jar", folder / "meteor-1.5.jar", *options], questions)
    statistics = np.asarray([[float(number) for number in line.split()] for line in lines])
    if statistics.shape != (len(said), 23):
        raise JavaProgramError(f"its program gave figures of {statistics.shape}, expected {(len(said), 23)}")
    per_item = _meteor_of_sums(statistics)
    # An answer that is its reference word for word, in one chunk, adds no fragmentation to the corpus.
    statistics[_is_whole(statistics), 20] = 0
    return Measure(statistics, _meteor_of_sums, per_item, groups)


def _is_whole(sums: np.ndarray) -> np.ndarray:
    return (sums[:, 21] == sums[:, 0]) & (sums[:, 22] == sums[:, 1]) & (sums[:, 20] == 1)


def _meteor_of_sums(sums: np.ndarray) -> np.ndarray:
    """Returns METEOR 1.5 with its weights for English, to 1e-15 what the program says of the same statistics.

    Args:
        sums: float[n, 23], which add up over a corpus: words of the answer and of the reference; function words of
            both; words matched by form, stem, synonym and paraphrase, each as content words of the answer and of the
            reference and function words of both; chunks; words matched in both.
    """
    alpha, beta, gamma, content = 0.85, 0.2, 0.6, 0.75
    matched = np.einsum("nkf,k->nf", sums[:, 4:20].reshape(-1, 4, 4), [1.0, 0.6, 0.8, 0.6])
    weighted = content * matched[:, :2] + (1 - content) * matched[:, 2:]
    length = content * (sums[:, :2] - sums[:, 2:4]) + (1 - content) * sums[:, 2:4]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = (weighted / length).T
        mean = 1 / ((1 - alpha) / precision + alpha / recall)
        fragmentation = np.where(_is_whole(sums), 0, sums[:, 20] / (sums[:, 21:23].sum(axis=1) / 2))
        return np.nan_to_num(mean * (1 - gamma * fragmentation**beta))


def _rouge_and_cider(predicted: list[str], expected: list[list[str]], groups: Sequence[Hashable]) -> dict[str, Measure]:
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    results = {number: [text] for number, text in enumerate(predicted)}
    truths = dict(enumerate(expected))
    return {
        name: Measure.mean(scorer.compute_score(truths, results)[1], groups)
        for name, scorer in (("ROUGE-L", Rouge()), ("CIDEr", Cider()))
    }


def spice_files_there() -> bool:
    """Tells whether SPICE and the models that it needs were fetched; nothing is downloaded here."""
    return all((program_folder("spice") / name).is_file() for name in _SPICE_FILES)


def _spice(predictions: Sequence[str], references: Sequence[Sequence[str]], groups: Sequence[Hashable]) -> Measure:
    pairs = enumerate(zip(predictions, references, strict=True))
    asked = [{"image_id": number, "test": text, "refs": list(several)} for number, (text, several) in pairs]
    with linked_folder("spice") as (folder, work):
        (work / "in.json").write_text(json.dumps(asked), encoding="utf-8")
        cache = folder / "cache" if os.access(folder, os.W_OK) else work / "cache"
        cache.mkdir(exist_ok=True)
        options = ["-cache", cache, "-out", work / "out.json", "-subset", "-silent"]
        run_java(["-Xmx8G", "-jar", folder / "spice-1.0.jar", work / "in.json", *options])
        found = {one["image_id"]: one["scores"]["All"]["f"] for one in json.loads((work / "out.json").read_bytes())}
    return Measure.mean(np.nan_to_num(np.asarray([found[number] for number in range(len(asked))], float)), groups)
