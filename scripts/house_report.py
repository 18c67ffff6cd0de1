"""Report on the state of the code: layout, old names, types, coverage, test time, lengths of the two walks.

PYTHONPATH=tests .venv/bin/python -m scripts.house_report [--time] [--names] [--quick]
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import time
import tokenize
from collections.abc import Iterator
from pathlib import Path

from scripts import house

ROOT, PACKAGE = house.ROOT, house.PACKAGE
COVERAGE = ROOT / "exp/coverage.json"

OLD_NAMES = """
    place_of weights_at_hand same_way HEAD_IS_NOT_ALL _learn encode_picture OpensFolders spare_our_modules
    _refuse_gaps picture_rows Stretched is_better_mixed_small WORTHWHILE _exchange without_boxes FARTHEST World
    first_alone share_from_first join_world leave_world Recall turn_to room_for_answer _prefill_beginnings
    branched settled_text look_at REGIONS_KEPT PICTURES_AT_ONCE write_whole Rates StepGuard batch_is
    _refuse_strangers thin_out save_whole KeptFeatures keep_features keep_frozen UnusableError LeftOutError
    _spelt _there FEWEST_WORDS LOWEST_SCORE SMALLEST_SIDE too_many_lost Ruler ENDLESS sideways UnclearError
    PUT_AWAY TAKES_MORE _say_what_became_of_masks take_over n_dropped_turns passages PictureFeatures
    picture_pipeline PicturePipeline pairs_per_visit held_out
"""
"""Identifiers of TERMS.md that nothing else would use: looked for everywhere in gpt4roi/."""

OLD_DEFINITIONS = {
    "models": "_enter serves",
    "distributed": "_PATIENCE",
    "generation": "said Ended Decoding View grouped",
    "io": "telling whole share",
    "train": "saw line words options held LIST seal damage room_for Shares estimate estimated plan",
    "data": "listed numbers number length text harmless LARGEST shown SHARE facts",
    "data_check": "losses _spread look _look",
    "demo": "anyway tidy at_once",
    "evaluation": "Ask Seen Answerer Reply cut",
    "checkpoint": "_complete _enter",
}
"""Common words that TERMS.md replaces: looked for as definitions in their package."""

OLD_WORDS = ("picture", "learnt", "visit", "verb", "sideways", "torn", "put away")
"""Private words, looked for in all source text; what remains should be aliases, for which CHANGELOG.md has a row."""

OUTPUT_KEYS = {
    *("pictures", "picture_missing", "picture_unreadable", "picture_small", "picture_duplicate", "picture_alike"),
    "sideways",
}
"""Keys of JSON that is written, and kinds of findings: programs read them, so they keep their spelling."""

QUESTIONS = {
    "chat template, prompt format": ("processing/templates.py", "class ChatTemplate"),
    "image preprocessing: mean, std, resize": ("processing/images.py", "def to_pixel_values"),
    "where `<region1>` becomes `<bbox>`": ("processing/mentions.py", "def write_mentions"),
    "loss masking of prompts": ("processing/tokenizer.py", "def supervised_labels"),
    "KV cache between rounds": ("generation/engine.py", "class PromptCache"),
    "sampling parameters": ("generation/sampling.py", "class SamplingParams"),
    "batched generation": ("generation/engine.py", "def generate"),
    "stop strings": ("generation/sampling.py", "stop"),
    "public chat class": ("region_chat.py", "class RegionChat"),
    "captions for many boxes": ("captioning/run.py", "def "),
    "scatter of image embeddings": ("models/placeholders.py", "def scatter"),
    "feature pyramid fusion": ("models/region_encoder.py", "class FeatureFusion"),
    "RoIAlign": ("models/kernels/roi_align.py", "def roi_align"),
    "load a checkpoint": ("checkpoint/loading.py", "def load_model"),
    "key mapping to the original": ("models/original_format.py", "NAMES"),
    "throughput, MFU": ("train/throughput.py", "class ThroughputMeter"),
    "learning-rate groups": ("train/param_groups.py", "def param_groups"),
    "NaN losses and gradients": ("train/nonfinite.py", "class NonFiniteGuard"),
    "atomic file writes": ("io/atomic.py", "def atomic_path"),
    "torch.distributed helpers": ("distributed.py", "class DistributedContext"),
}
"""HOUSE.md §1.2: where a newcomer looks for a thing, and what must stand there."""


def sources() -> dict[Path, str]:
    """Returns the text of every Python file of gpt4roi."""
    return {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def lines_of(folder: Path) -> int:
    """Counts the lines of the Python files below a folder."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob("*.py"))


def aliases() -> list[tuple[str, str]]:
    """Returns the rows (old, new) of the newest version's table of old names in CHANGELOG.md, as written."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", text, flags=re.MULTILINE)
    return [row for row in rows if row[0] != "old"]


def alias_words() -> set[str]:
    """Returns the identifiers that the left column of the table of old names holds."""
    return {word for old, _ in aliases() for code in re.findall(r"`(.+?)`", old) for word in re.findall(r"\w+", code)}


def identifiers(text: str) -> Iterator[tuple[int, str]]:
    """Yields the line and the text of each identifier in Python source."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string


def old_names() -> list[str]:
    """Returns each old name of TERMS.md that is still in use, as `file:line name`; aliases do not count."""
    unwanted = set(OLD_NAMES.split()) - alias_words()
    found = []
    for path, text in sources().items():
        where = path.relative_to(PACKAGE)
        found += [f"{where}:{line} {name}" for line, name in identifiers(text) if name in unwanted]
        names = OLD_DEFINITIONS.get(where.with_suffix("").parts[0], "").split()
        pattern = rf"^(?: *(?:class|def) |    (?=\w+: )|(?=\w+ = ))({'|'.join(names)})\b"
        for match in re.finditer(pattern, text, flags=re.MULTILINE) if names else ():
            line = text.count("\n", 0, match.start(1)) + 1
            found.append(f"{where}:{line} {match[1]}")
    return found


def old_words() -> dict[str, list[str]]:
    """Returns the lines with private words, by word; without the old names of aliases and the keys of output."""
    allowed = [word for word in alias_words() | OUTPUT_KEYS if any(old in word.lower() for old in OLD_WORDS)]
    found: dict[str, list[str]] = {word: [] for word in OLD_WORDS}
    for path, text in sources().items():
        for number, line in enumerate(text.splitlines(), start=1):
            for name in allowed:
                line = re.sub(rf"\b{name}\b", "", line)
            for word in OLD_WORDS:
                if re.search(rf"(?<![a-z]){word}(?:s|ed|ing)?(?![a-z])", line.lower().replace("_", " ")):
                    found[word].append(f"{path.relative_to(PACKAGE)}:{number} {line.strip()[:100]}")
    return found


def answered() -> dict[str, bool]:
    """Tells for each question whether the file that its noun names holds the answer."""
    found = {}
    for question, (file, needle) in QUESTIONS.items():
        path = PACKAGE / file
        found[question] = path.is_file() and needle in path.read_text(encoding="utf-8")
    return found


def mypy_errors() -> str:
    """Runs mypy and returns its count of errors."""
    last = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True).stdout
    summary = last.strip().splitlines()[-1]
    return "0" if summary.startswith("Success") else summary


def coverage() -> str:
    """Returns the percentage of the last measured run; .ci/run writes its file."""
    if not COVERAGE.is_file():
        return "not measured: .ci/run"
    return f"{json.loads(COVERAGE.read_text())['totals']['percent_covered']:.1f} %"


def fast_seconds() -> str:
    """Runs the fast subset and returns its seconds."""
    start = time.perf_counter()
    done = subprocess.run(["bash", "scripts/test.sh", "--fast"], cwd=ROOT, capture_output=True, text=True)
    summary = done.stdout.strip().splitlines()[-1]
    return f"{time.perf_counter() - start:.0f} s ({summary.strip('= ')})"


def rows(time_fast: bool, quick: bool) -> Iterator[tuple[str, object]]:
    """Yields the rows of the table, cheap ones first."""
    files, table = house.modules(), house.levels()
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    upward = [line for name in texts if name in table for line in house.upward_imports(name, texts[name], table)]
    questions = answered()
    yield "modules in the root of gpt4roi/", len(list(PACKAGE.glob("*.py")))
    yield "modules", len(files)
    yield "modules without a level", len(set(files) - set(table))
    yield "imports upwards", len(upward)
    yield "cycles of packages", len(house.package_cycles(texts))
    yield "lines of gpt4roi/", lines_of(PACKAGE)
    yield "lines of quickstart/", lines_of(ROOT / "quickstart")
    yield "modules beyond 300 lines", sum(text.count("\n") > 300 for text in texts.values())
    yield "lines of README.md", len((ROOT / "README.md").read_text(encoding="utf-8").splitlines())
    yield "names of TERMS.md still there", len(old_names())
    yield "lines with private words", ", ".join(f"{word} {len(lines)}" for word, lines in old_words().items())
    yield "old names with an alias", len(aliases())
    yield "questions answered by file name", f"{sum(questions.values())} of {len(questions)}"
    yield "coverage", coverage()
    if not quick:
        from scripts.walk import answer, training_sample

        to_batch, to_loss = training_sample()
        asked = answer()
        yield "walk: sample to batch", f"{len(to_batch.steps)} functions in {len(to_batch.files)} files"
        yield "walk: batch to loss", f"{len(to_loss.steps)} functions in {len(to_loss.files)} files"
        modules = len(asked.outside("models"))
        yield "walk: image and question to text", f"{len(asked.steps)} functions; {modules} modules beside models/"
        yield "mypy errors", mypy_errors()
    if time_fast:
        yield "fast subset", fast_seconds()


def main() -> None:
    """Prints the table; with --names also what is behind its counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time", action="store_true", help="run the fast subset of the tests and time it")
    parser.add_argument("--quick", action="store_true", help="only what is read from the files: no mypy, no walks")
    parser.add_argument("--names", action="store_true", help="list the old names, private words and open questions")
    args = parser.parse_args()
    for name, value in rows(args.time, args.quick):
        print(f"| {name:34} | {value} |", flush=True)
    if args.names:
        for line in old_names():
            print(line)
        for word, lines in old_words().items():
            print(f"\n{word}:", *lines, sep="\n  ")
        for question, found in answered().items():
            file, needle = QUESTIONS[question]
            print(f"{'yes' if found else 'NO ':3} {question}: gpt4roi/{file} ({needle})")


if __name__ == "__main__":
    main()
