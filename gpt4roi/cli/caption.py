"""`gpt4roi caption`: a file of boxes in, the same in COCO's format with a text at every box out."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpt4roi.cli import output
from gpt4roi.cli._model import (
    add_model_arguments,
    add_sampling_arguments,
    check_model_folder,
    open_chat,
    sampling_settings,
)
from gpt4roi.cli._outcome import add_bound, exit_code, name_first
from gpt4roi.cli._regions import add_frame_arguments, frame_rule
from gpt4roi.errors import InputError

HELP = "caption every box of a COCO file"
EXAMPLE = """
  gpt4roi caption annotations/instances_val2017.json --images val2017 --out captions.json
  gpt4roi caption detections.json --images photos --out captions.json --question "What is <region1>?"
  torchrun --nproc_per_node 8 -m gpt4roi.cli caption boxes.json --images photos --out captions.json

Rerun after a kill, it resumes; the result is the same whatever the number of kills and processes.
"""

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the boxes, their images, the question and the result."""
    parser.add_argument(
        "annotations",
        metavar="ANN.json",
        help="COCO or LVIS annotations, a detector's results in COCO form, the unified format (.jsonl), or a file of "
        "one image (SA-1B, Grounded-SAM-2) or a folder of such",
    )
    parser.add_argument("--images", metavar="DIR", required=True, help="the folder of the images")
    parser.add_argument(
        "--out", metavar="OUT.json", required=True, help="the result; OUT.json.parts until it is complete"
    )
    parser.add_argument("--question", metavar="TEXT", help="asked about each box, as <region1> (default: the model's)")
    parser.add_argument(
        "--field", default="caption", metavar="NAME", help="key that gets the caption (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.json if another job wrote it")
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="boxes per batch (default: %(default)s)"
    )
    parser.add_argument(
        "--engine",
        choices=("own", "vllm"),
        default="own",
        help="what decodes; vllm where it is installed, with the same texts in float32 (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON object")
    parser.add_argument("--crowds", action="store_true", help="caption boxes marked iscrowd too")
    add_bound(parser, "of the boxes gets no text")
    add_frame_arguments(parser)
    add_sampling_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Reads and checks the file, opens the model, captions what is not there yet, and writes the result."""
    if args.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, got {args.batch_size}")
    out = output.target_file("--out", args.out, "captions.json")
    from gpt4roi.captioning.source import annotation_files, read_source

    annotation_files(args.annotations)
    check_model_folder(args.model)
    if args.question is not None:
        from gpt4roi.processing.user_input import one_region_question

        args.question = one_region_question(args.question)
    if args.engine == "vllm":
        _check_vllm(args)
    if args.temperature and args.seed is None:
        raise InputError("--temperature needs --seed, so that a job that is killed and resumes draws the same")
    job = describe_job(args)
    settings = sampling_settings(args)
    if Path(args.annotations).resolve() == out.resolve():
        raise InputError(f"--out {out} is the file of boxes itself; give another name")
    if out.exists() and not args.overwrite:
        code = _already_there(args, out, job)
        if code is not None:
            return code

    source = read_source(args.annotations, args.images, args.crowds)
    return _caption(args, source, out, job, settings)


def _caption(args: argparse.Namespace, source: Any, out: Path, job: dict[str, Any], settings: dict[str, Any]) -> int:
    from gpt4roi.captioning.run import caption_file
    from gpt4roi.distributed import distributed_job
    from gpt4roi.generation.sampling import SamplingParams
    from gpt4roi.region_chat import RegionChat

    with distributed_job(out) as context:
        args.device = context.device(args.device)
        chat = _open_vllm(args) if args.engine == "vllm" else open_chat(args)
        describe = chat.describe_images if args.engine == "vllm" else None
        question = args.question or RegionChat.default_question
        params, rule = SamplingParams(**settings), frame_rule(args)
        outcome = caption_file(
            chat, source, out, job, question, params, args.batch_size, args.field, context, rule, describe
        )
    return 0 if outcome is None else _report(args, out, outcome)


def _check_vllm(args: argparse.Namespace) -> None:
    if find_spec("vllm") is None:
        raise InputError("--engine vllm needs vLLM, in an environment of its own; see docs/serving.md")
    for name in ("vision_tower", "quantize", "compile"):
        if getattr(args, name):
            raise InputError(f"--{name.replace('_', '-')} is not for --engine vllm, which opens the folder by itself")


def _open_vllm(args: argparse.Namespace) -> Any:
    from gpt4roi.devices import choose_device, choose_dtype
    from gpt4roi.serving.vllm.engine import VllmEngine

    device = choose_device(args.device)
    return VllmEngine(check_model_folder(args.model), choose_dtype(device, args.dtype), device)


def describe_job(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what the texts depend on: boxes, images, model, question, and how answers are chosen."""
    from gpt4roi.captioning.source import annotation_files
    from gpt4roi.io.digests import path_fingerprint
    from gpt4roi.io.json_files import read_bytes

    digest = hashlib.sha256(b"".join(read_bytes(file) for file in annotation_files(args.annotations)))
    names = (
        "question", "field", "batch_size", "max_new_tokens", "temperature", "top_p", "seed", "stop",
        "dtype", "quantize",
    )  # fmt: skip
    return {
        "boxes": digest.hexdigest()[:16],
        "images": str(args.images),
        "model": str(args.model),
        "weights": str(next(iter(path_fingerprint(args.model).values())))[:16],
        "vision_tower": args.vision_tower,
        **{name: getattr(args, name) for name in names},
        **({} if args.frame == "auto" else {"frame": args.frame}),  # not in the jobs of older versions
        **({"scale_boxes": True} if args.scale_boxes else {}),
        **({"crowds": True} if args.crowds else {}),
        **({} if _same_in_any_engine(args) else {"engine": args.engine}),
    }


def _same_in_any_engine(args: argparse.Namespace) -> bool:
    """Tells whether the texts are those of our own engine, so that a job may be resumed by the other."""
    return args.engine == "own" or (args.dtype == "float32" and not args.temperature)


def _already_there(args: argparse.Namespace, out: Path, job: dict[str, Any]) -> int | None:
    """Says that a finished job has nothing left to do, and returns its exit code; None where its images failed.

    Raises InputError where the file is of another job.
    """
    from gpt4roi.captioning.run import outcome_of, remove_finished_journal

    outcome = before = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content = json.loads(out.read_text(encoding="utf-8"))
        outcome, before = outcome_of(content, args.field), dict(content["info"]["gpt4roi"])
        before.pop("failed", None), before.pop("left_out", None)
    if outcome is None or before != job:
        raise InputError(f"--out {out} exists and is of another job; give another name, or --overwrite")
    if outcome.may_be_rerun:
        logger.info("%s is there already, but images failed: trying these again", out)
        return None
    remove_finished_journal(out, job)
    logger.info("%s is there already, of just this job: nothing to do", out)
    return _exit_code(args, outcome)


def _exit_code(args: argparse.Namespace, outcome: Any) -> int:
    lost = outcome.regions - outcome.captioned - sum(outcome.left_out.values())
    return exit_code(lost, outcome.regions, "boxes have no text", args.max_bad_fraction)


def _report(args: argparse.Namespace, out: Path, outcome: Any) -> int:
    """Says what came of the job and returns its exit code."""
    name_first("not captioned", outcome.failed, ", listed in the file's info")
    if outcome.cut:
        logger.warning("%d boxes reached out of their image and were cut at its border", outcome.cut)
    if args.json:
        counts = {"out": str(out), "regions": outcome.regions, "captioned": outcome.captioned}
        more = {"failed": outcome.failed, "left_out": outcome.left_out, "frames": outcome.frames.as_dict()}
        output.record({**counts, **more})
    else:
        counted = f"{outcome.captioned} of {outcome.regions} boxes have a text"
        left_out = "; ".join(f"{reason}: {count}" for reason, count in outcome.left_out.items())
        parts = (counted, f"left out: {left_out}" if left_out else "", outcome.frames.text())
        output.line(f"wrote {out}: " + "; ".join(filter(None, parts)))
    return _exit_code(args, outcome)
