"""`gpt4roi completion`: a script that lets a shell complete verbs, flags, choices and files."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass, field

from gpt4roi import cli
from gpt4roi.cli import output

HELP = "print the script that completes verbs and flags in a shell"
EXAMPLE = """
  source <(gpt4roi completion bash)     # for every shell: add this line to ~/.bashrc (zsh: ~/.zshrc)
  gpt4roi completion fish > ~/.config/fish/completions/gpt4roi.fish
"""


@dataclass
class Verb:
    """A verb, or a verb and its sub-verb: what follows it, and what follows its flags.

    words: sub-verbs and choices. flags: each with whether it takes a value. choices: of the flags that have some.
    """

    words: list[str] = field(default_factory=list)
    flags: dict[str, bool] = field(default_factory=dict)
    choices: dict[str, list[str]] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the shell."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="whose script to print")


def run(args: argparse.Namespace) -> int:
    """Prints the script."""
    verbs: dict[str, Verb] = {}
    for name in cli.verb_names():
        _collect(name, cli.build_parser(name), verbs)
    output.line(_fish(verbs) if args.shell == "fish" else _bash(verbs, args.shell))
    return 0


def _collect(name: str, parser: argparse.ArgumentParser, verbs: dict[str, Verb]) -> None:
    """Reads a parser, and those of its sub-verbs."""
    verb = verbs.setdefault(name, Verb())
    for action in parser._actions:
        choices = [str(choice) for choice in action.choices or ()]
        if not action.option_strings:
            verb.words += choices
        for flag in action.option_strings:
            if flag.startswith("--"):
                verb.flags[flag] = action.nargs != 0
                if choices:
                    verb.choices[flag] = choices
        if isinstance(action, argparse._SubParsersAction):
            for below, its_parser in action.choices.items():
                _collect(f"{name} {below}", its_parser, verbs)


def _bash(verbs: dict[str, Verb], shell: str) -> str:
    """Writes a function for bash, which zsh takes through bashcompinit."""
    top = " ".join([*(name for name in verbs if " " not in name), "--help", "--version"])
    sub_verbs = [f"    {shlex.quote(name)}) verb={shlex.quote(name)} ;;" for name in verbs if " " in name]
    after_flag = [
        f"      {shlex.quote(f'{name} {flag}')}) words={shlex.quote(' '.join(choices))} files=no ;;"
        for name, verb in verbs.items()
        for flag, choices in verb.choices.items()
    ]
    words = [
        f"        {shlex.quote(name)}) words={shlex.quote(' '.join([*verb.words, *verb.flags]))} ;;"
        for name, verb in verbs.items()
    ]
    return "\n".join(
        [
            *(["autoload -Uz bashcompinit && bashcompinit"] if shell == "zsh" else []),
            "_gpt4roi() {",
            '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words="" files=yes',
            '  local verb="${COMP_WORDS[1]}"',
            '  case "$verb ${COMP_WORDS[2]}" in',
            *sub_verbs,
            "  esac",
            '  if [ "$COMP_CWORD" -eq 1 ]; then',
            f"    words={shlex.quote(top)} files=no",
            "  else",
            '    case "$verb $before" in',
            *after_flag,
            '      *) case "$verb" in',
            *words,
            "      esac ;;",
            "    esac",
            "  fi",
            '  case "$word" in -*) files=no ;; esac',
            '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
            "  local IFS=$'\\n'",  # names of files may hold blanks
            '  [ "$files" = no ] || COMPREPLY+=($(compgen -f -- "$word"))',
            "}",
            "complete -o filenames -F _gpt4roi gpt4roi",
        ]
    )


def _fish(verbs: dict[str, Verb]) -> str:
    lines = []
    for name, verb in verbs.items():
        first, _, below = name.partition(" ")
        if not below:
            text = shlex.quote(cli.load_verb(first).HELP)
            lines.append(f"complete -c gpt4roi -n __fish_use_subcommand -f -a {first} -d {text}")
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in name.split())
        start = f"complete -c gpt4roi -n {shlex.quote(seen)}"
        lines += [f"{start} -a {shlex.quote(word)}" for word in verb.words]
        for flag, takes_value in verb.flags.items():
            choices = verb.choices.get(flag)
            listed = f" -f -a {shlex.quote(' '.join(choices))}" if choices else ""
            lines.append(f"{start} -l {flag[2:]}{' -r' if takes_value else ''}{listed}")
    return "\n".join(lines)
