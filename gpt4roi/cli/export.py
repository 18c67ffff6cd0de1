"""`gpt4roi export`: a copy of a model's folder to give away, without a training's states and paths of this machine."""

from __future__ import annotations

import argparse

from gpt4roi.cli import output

HELP = "copy a model, adapter or delta to give away: no optimizer states, logs, photographs or local paths"
EXAMPLE = """
  gpt4roi export exp/stage2 share/my-model
  gpt4roi export exp/lora share/my-model --merge
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("source", metavar="SRC", help="a training's work directory, a model's, adapter's or delta's")
    parser.add_argument("target", metavar="OUT", help="where the copy goes")
    parser.add_argument("--merge", action="store_true", help="join an adapter with its base, into one model")
    parser.add_argument("--vision-tower", metavar="FOLDER", help="tower to put inside, for a model saved without it")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists, once the copy is complete")


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand."""
    settings = {"vision_tower": args.vision_tower, "overwrite": args.overwrite}
    if args.merge:
        from gpt4roi.checkpoint.adapter import merge_adapter
        from gpt4roi.io.model_folders import identify

        base = identify(args.source).require_adapter().base_folder()
        lines = [merge_adapter(base, args.source, args.target, **settings)]
    else:
        from gpt4roi.checkpoint.export import export_folder

        lines = export_folder(args.source, args.target, **settings)
    output.line(f"wrote {args.target}: {lines[0]}")
    for line in lines[1:]:
        output.note(line)
    return 0
