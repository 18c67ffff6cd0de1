"""What a shell offers after `gpt4roi completion` was sourced."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from gpt4roi import cli
from gpt4roi.cli import main


@pytest.fixture(scope="module")
def scripts():
    """The script of each shell."""
    import contextlib
    import io

    written = {}
    for shell in ("bash", "zsh", "fish"):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(["completion", shell]) == 0
        written[shell] = out.getvalue()
    return written


def offered(script: str, *words: str, folder="/") -> list[str]:
    """What bash offers for the last word, in a folder."""
    program = f"{script}\nCOMP_WORDS=(gpt4roi {shlex.join(words)}); COMP_CWORD={len(words)}; _shtab_gpt4roi\n"
    program += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, cwd=folder)
    return done.stdout.splitlines()


def test_bash_offers_subcommands_flags_choices_and_files(scripts):
    script = scripts["bash"]
    assert set(cli.subcommand_names()) == set(offered(script, ""))
    assert offered(script, "--v") == ["--version"] and offered(script, "--h") == ["--help"]
    assert offered(script, "desc") == ["describe"]
    assert offered(script, "describe", "--qua") == ["--quantize"]
    assert offered(script, "describe", "--quantize", "") == ["4bit", "8bit"]
    assert offered(script, "data", "make-st") == ["make-stamps"]
    assert offered(script, "data", "make-stamps", "--shap") == ["--shapes"]
    assert offered(script, "describe", "et") == ["etc"]
    assert offered(script, "describe", "x.jpg", "--regions", "et") == ["etc"]
    assert offered(script, "demo", "--port", "et") == [""], "a number is no file"


def test_a_file_whose_name_holds_blanks_is_offered_whole(scripts, tmp_path):
    (tmp_path / "my photo 1.jpg").touch()
    assert offered(scripts["bash"], "describe", "my", folder=tmp_path) == ["my photo 1.jpg"]


def test_every_script_knows_every_subcommand(scripts):
    assert scripts["zsh"].startswith("#compdef gpt4roi\n")
    for name in (*cli.subcommand_names(), "make-stamps"):
        assert all(name in script for script in scripts.values())
    assert "-n '_shtab_gpt4roi_using describe' -l quantize -xka \"4bit 8bit\"" in scripts["fish"]
    assert "-n '_shtab_gpt4roi_using data make-stamps' -l shapes" in scripts["fish"]


def test_bash_parses_its_script(scripts):
    assert subprocess.run(["bash", "-n"], input=scripts["bash"], text=True, check=False).returncode == 0
