"""Caption metrics BLEU, METEOR, ROUGE-L, CIDEr and SPICE by pycocoevalcap.

PTB tokenizer and METEOR are Java programs. Without Java the others are computed on a plain tokenizer's words, which is
said: such figures are not comparable with published ones. CIDEr weighs words by how rare they are among all
references given here, so it belongs to the whole set: never average it over parts, and expect another with --limit.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import shutil
import subprocess
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpt4roi.evaluation.metrics import Measure, words

logger = logging.getLogger(__name__)

PTB, PLAIN = "PTB (Stanford CoreNLP 3.4.1)", "plain words (no Java: not comparable with published figures)"
_SPICE_FILES = ("spice/spice-1.0.jar", "spice/lib/stanford-corenlp-3.6.0.jar")


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
    java, notes = has_java(), []
    if not java:
        if not quick:
            notes.append("METEOR: Java is missing (Debian, Ubuntu: apt install default-jre-headless)")
        notes.append("BLEU, ROUGE-L, CIDEr: computed without the PTB tokenizer, which needs Java; not comparable")
    try:
        predicted, expected = tokenize_all(predictions, references, java)
    except OSError as error:
        java = False
        notes.append(f"METEOR, and the PTB tokenizer of BLEU, ROUGE-L and CIDEr: Java does not run: {error}")
        predicted, expected = tokenize_all(predictions, references, java)
    measures = _bleu(predicted, expected, groups)
    if java and not quick:
        measures["METEOR"] = _meteor(predicted, expected, groups)
    measures |= _rouge_and_cider(predicted, expected, groups)
    if quick:
        return CaptionScores(measures, PTB if java else PLAIN, tuple(notes))
    if java and spice_files_there():
        try:
            measures["SPICE"] = _spice(predictions, references, groups)
        except (OSError, subprocess.SubprocessError) as error:
            notes.append(f"SPICE: its Java program failed: {error}")
    else:
        notes.append("SPICE: its files are not here (pycocoevalcap/spice/get_stanford_models.py fetches them)")
    return CaptionScores(measures, PTB if java else PLAIN, tuple(notes))


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
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    distinct = list(dict.fromkeys(texts))
    found = PTBTokenizer().tokenize({number: [{"caption": text}] for number, text in enumerate(distinct)})
    if len(found) != len(distinct):
        raise OSError(f"the PTB tokenizer returned {len(found)} of {len(distinct)} lines; does `java -version` run?")
    tokens = {text: found[number][0] for number, text in enumerate(distinct)}
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


@functools.cache
def _meteor_program():
    """Starts the METEOR program once; it ends with this process."""
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()


def _meteor(predicted: list[str], expected: list[list[str]], groups: Sequence[Hashable]) -> Measure:
    program = _meteor_program()
    lines = [program._stat(prediction, several) for prediction, several in zip(predicted, expected, strict=True)]
    statistics = np.asarray([[float(number) for number in line.split()] for line in lines])
    per_item = _meteor_of_sums(statistics)
    # An answer that is its reference word for word, in one chunk, adds no fragmentation to the corpus.
    length, reference_length, chunks = statistics[:, 0], statistics[:, 1], statistics[:, -3]
    matched = (statistics[:, -2] == length) & (statistics[:, -1] == reference_length)
    statistics[matched & (chunks == 1), -3] = 0
    return Measure(statistics, _meteor_of_sums, per_item, groups)


def _meteor_of_sums(sums: np.ndarray) -> np.ndarray:
    """Returns METEOR for rows of its own statistics, which add up over a corpus; the program itself evaluates them."""
    program = _meteor_program()
    scores = []
    for row in sums:
        numbers = " ".join(f"{number:.1f}" for number in row)
        program.meteor_p.stdin.write(f"EVAL ||| {numbers}\n".encode())
        program.meteor_p.stdin.flush()
        program.meteor_p.stdout.readline()  # the segment's score; the next line is the corpus's, here the same
        scores.append(float(program.meteor_p.stdout.readline()))
    return np.asarray(scores)


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
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        return False
    folder = Path(package.submodule_search_locations[0])
    return all((folder / name).is_file() for name in _SPICE_FILES)


def _spice(predictions: Sequence[str], references: Sequence[Sequence[str]], groups: Sequence[Hashable]) -> Measure:
    from pycocoevalcap.spice.spice import Spice

    truths = {number: list(several) for number, several in enumerate(references)}
    _, found = Spice().compute_score(truths, {number: [text] for number, text in enumerate(predictions)})
    return Measure.mean(np.nan_to_num([one["All"]["f"] for one in found]), groups)
