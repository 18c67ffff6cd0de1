"""The frame of the command line: subcommands, help, exit codes, streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from gpt4roi import __version__, cli
from gpt4roi.cli import main, output
from gpt4roi.errors import InputError

PYTHON = [sys.executable, "-c"]


def test_help_lists_every_subcommand_with_its_line(capsys):
    assert main(["--help"]) == 0

    listed = capsys.readouterr().out
    for name in cli.subcommand_names():
        assert f"  {name} " in listed
        assert cli.load_subcommand(name).HELP in listed
    assert {"describe", "evaluate"} <= set(cli.subcommand_names())


def test_every_subcommand_explains_itself_with_an_example(capsys):
    for name in cli.subcommand_names():
        assert main([name, "--help"]) == 0
        explained = capsys.readouterr().out
        assert explained.startswith(f"usage: gpt4roi {name}")
        assert f"\n  gpt4roi {name} " in explained, f"{name} --help shows no example"


@pytest.mark.heavy
def test_no_help_imports_torch():
    program = "import sys; from gpt4roi.cli import main, subcommand_names\n"
    program += (
        "for words in [['--help'], *([name, '--help'] for name in subcommand_names())]: assert main(words) == 0\n"
    )
    program += "heavy = {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules); assert not heavy, heavy"

    done = subprocess.run([*PYTHON, program], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["describe", "explain"])
def test_a_wrong_box_is_told_before_torch_is_imported(command):
    program = "import sys; from gpt4roi.cli import main\n"
    program += f"assert main([{command!r}, 'photo.jpg', '--box', '1,2,3']) == 2\n"
    program += "assert 'torch' not in sys.modules"

    done = subprocess.run([*PYTHON, program], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "box 1: expected four numbers" in done.stderr


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gpt4roi {__version__}\n"


def test_python_m_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "gpt4roi.cli", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"gpt4roi {__version__}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "gpt4roi: error: which command? One of "),
        (["descibe"], "gpt4roi: error: unknown command 'descibe'; did you mean 'describe'?\n"),
        (["xyzzy"], "gpt4roi: error: unknown command 'xyzzy'; commands are "),
        (["output"], "gpt4roi: error: unknown command 'output'"),
        (["_model"], "gpt4roi: error: unknown command '_model'"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(capsys, words, message):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(message) and err.count("\n") == 1


def run_subcommand(monkeypatch, raised: BaseException | None = None, returned=0) -> int:
    """Runs `describe` with its work replaced."""

    def run(args):
        if raised is not None:
            raise raised
        return returned

    monkeypatch.setattr(cli.load_subcommand("describe"), "run", run)
    return main(["describe", "p.png", "--box", "1,2,3,4"])


def test_a_wrong_input_is_one_line_even_if_its_message_has_several(monkeypatch, capsys):
    assert run_subcommand(monkeypatch, InputError("first\n  second")) == 2
    assert capsys.readouterr().err == "gpt4roi describe: error: first second\n"


def test_an_interruption_exits_with_130(monkeypatch, capsys):
    assert run_subcommand(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "gpt4roi describe: error: interrupted\n"


def test_a_defect_of_ours_is_not_hidden(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        run_subcommand(monkeypatch, ZeroDivisionError())


def test_what_a_subcommand_returns_is_the_exit_code(monkeypatch):
    assert run_subcommand(monkeypatch, returned=None) == 0
    assert run_subcommand(monkeypatch, returned=7) == 7


def test_a_closed_pipe_ends_quietly():
    program = (
        "import sys; from gpt4roi.cli import main, output, load_subcommand; command = load_subcommand('describe')\n"
    )
    program += "command.run = lambda args: [output.line('x' * 99) for _ in range(9999)] and 0\n"
    program += "sys.exit(main(['describe', 'p', '--box', '1']))"
    with subprocess.Popen([*PYTHON, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()

    assert process.returncode == 141 and err == b""


def test_nothing_is_read_where_the_caller_closed_the_input():
    program = (
        "import sys; from gpt4roi.cli import main, output, load_subcommand; command = load_subcommand('describe')\n"
    )
    program += "command.run = lambda args: output.line(f'[{sys.stdin.buffer.read()}]')\n"
    program += "sys.exit(main(['describe', '-', '--box', '1']))"
    closed = ["bash", "-c", 'exec "$@" <&-', "bash", *PYTHON, program]
    done = subprocess.run(closed, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"[b'']\n")


def test_the_log_goes_to_stderr_and_answers_to_stdout(capsys):
    output.log_to_stderr()
    cli.output.logging.getLogger("gpt4roi.somewhere").info("told")
    output.line("answered")
    output.record({"text": "é"}, indent=None)

    assert capsys.readouterr() == ('answered\n{"text": "é"}\n', "told\n")


@pytest.mark.parametrize("encoding, line", [("utf-8:strict", "é\\udce9\n"), ("ascii", "\\xe9\\udce9\n")])
def test_what_stdout_cannot_hold_is_written_as_an_escape(encoding, line):
    program = r"from gpt4roi.cli import output; text = '\xe9\udce9'; output.line(text); output.record(text)"
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([*PYTHON, program], capture_output=True, check=True, env=environment)

    first, second = done.stdout.decode(encoding.partition(":")[0]).splitlines(keepends=True)
    assert first == line and json.loads(second) == "é\udce9"
