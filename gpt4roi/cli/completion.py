"""`gpt4roi completion`: a script that completes commands, flags, choices and files in a shell (shtab)."""

from __future__ import annotations

import argparse

from gpt4roi import cli
from gpt4roi.cli import output

HELP = "print the script that completes commands and flags in a shell"
EXAMPLE = """
  source <(gpt4roi completion bash)     # for every shell: add this line to ~/.bashrc (zsh: ~/.zshrc, after compinit)
  gpt4roi completion fish > ~/.config/fish/completions/gpt4roi.fish
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the shell."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="shell to print the script for")


def run(args: argparse.Namespace) -> int:
    """Prints the script."""
    import shtab

    root = argparse.ArgumentParser(prog="gpt4roi")
    root.add_argument("-V", "--version", action="version", help="print the version")
    commands = root.add_subparsers()
    for name in cli.subcommand_names():
        module = cli.load_subcommand(name)
        module.add_arguments(commands.add_parser(name, help=module.HELP))
    _complete_files(root, shtab.FILE)
    output.line(shtab.complete(root, args.shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser, completer: dict) -> None:
    """Lets every argument that is neither a number nor a choice complete to files, subcommands included."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _complete_files(below, completer)
        elif action.nargs != 0 and not action.choices and action.type not in (int, float):
            vars(action)["complete"] = completer  # where shtab looks for it
