"""`gpt4roi evaluate`: a model's numbers on a benchmark, with a page that shows them."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from gpt4roi.cli import output
from gpt4roi.cli._model import add_model_arguments, check_model_folder, open_chat
from gpt4roi.cli._outcome import add_bound, exit_code
from gpt4roi.cli._regions import add_frame_arguments, frame_rule
from gpt4roi.errors import InputError
from gpt4roi.evaluation.benchmarks import BENCHMARKS, benchmark_name, open_benchmark
from gpt4roi.io.json_files import read_bytes

HELP = "evaluate a model on a benchmark"
EXAMPLE = """
  gpt4roi evaluate --benchmark quickstart/benchmark/stamps.py --model exp/quickstart/stage2 \\
    --data exp/quickstart/data --out exp/quickstart/eval
  gpt4roi evaluate --benchmark vg --model ./GPT4RoI-7B --data data/visual_genome --out exp/vg --limit 100 --shuffle 0
  gpt4roi evaluate --benchmark refcocog --model my_model.py --data data/mdetr_annotations --out exp/other
  torchrun --nproc_per_node 8 -m gpt4roi.cli evaluate --benchmark vcr --model ./GPT4RoI-7B --data data/vcr --out exp/vcr
docs/evaluation.md says what each benchmark needs and how a Python file wraps another model.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the benchmark, its data and where the results go."""
    parser.add_argument(
        "--benchmark",
        required=True,
        metavar="NAME|FILE.py",
        help=f"name: {', '.join(sorted(BENCHMARKS))}; or a Python file that defines a benchmark",
    )
    parser.add_argument("--data", metavar="PATH", required=True, help="the annotation file, or its folder")
    parser.add_argument("--images", metavar="DIR", help="the images' folder (default: the usual one beside the data)")
    parser.add_argument("--split", metavar="NAME", help="split of the data (default: the one that papers report)")
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="gets metrics.json, predictions.jsonl and report.html"
    )
    add_model_arguments(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="only N images (of each split), for a quick check")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="sample the N images instead of taking the first")
    parser.add_argument("--question", metavar="TEXT", help="ask this about every region instead of the usual question")
    parser.add_argument("--compare", metavar="FILE", help="metrics.json of another run: paired differences")
    parser.add_argument(
        "--explain", type=int, metavar="N", help="show in the report where the N worst answers looked (slow)"
    )
    parser.add_argument("--sentence-model", metavar="DIR", help="folder of all-MiniLM-L6-v2 (default: the package's)")
    group = parser.add_argument_group("judge", "of CLAIR and of the benchmarks that another model judges")
    group.add_argument("--judge", metavar="URL", help="OpenAI-compatible endpoint, such as http://localhost:8000/v1")
    group.add_argument("--judge-model", metavar="NAME", help="what the endpoint calls the model; a dated name is best")
    group.add_argument("--judge-key-file", metavar="FILE", help="holds its API key (default: $JUDGE_API_KEY, or none)")
    group.add_argument("--judge-prompt", metavar="FILE", help="text to ask in place of the benchmark's own")
    group.add_argument(
        "--judge-concurrency", type=int, metavar="N", default=8, help="requests at once (default: %(default)s)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="longest answer, in tokens (default: the benchmark's, else 64)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=128, metavar="N", help="prompts per batch (default: %(default)s)"
    )
    parser.add_argument("--fresh", action="store_true", help="discard the answers that an earlier run left in --out")
    parser.add_argument(
        "--phases", metavar="FILE", help='JSON object {"phase": minutes} to show in the report, such as of a training'
    )
    parser.add_argument("--json", action="store_true", help="print the main figures as one JSON object")
    add_frame_arguments(parser)
    add_bound(parser, "of the questions is left out or not answered")


def run(args: argparse.Namespace) -> int:
    """Evaluates and writes the main figures to stdout, one a line."""
    metadata = check_arguments(args)

    from gpt4roi.distributed import distributed_job
    from gpt4roi.evaluation.compare import read_run
    from gpt4roi.evaluation.evaluate import evaluate, read_items
    from gpt4roi.evaluation.items import Source
    from gpt4roi.evaluation.similarity import find_sentence_model
    from gpt4roi.io.digests import path_fingerprint

    find_sentence_model(args.sentence_model)
    source = Source(
        Path(args.data),
        images=None if args.images is None else Path(args.images),
        split=args.split,
        limit=args.limit,
        shuffle=args.shuffle,
        question=args.question,
        sentence_model=None if args.sentence_model is None else Path(args.sentence_model),
        rule=frame_rule(args),
        judge=open_judge(args),
    )
    if args.compare is not None:
        read_run(args.compare, benchmark_name(args.benchmark))  # a wrong one is reported before the model is opened
    items = read_items(args.benchmark, source)
    with distributed_job(Path(args.out)) as context:
        predictor, settings = open_predictor(args, context)
        settings |= {"model": path_fingerprint(args.model), "batch_size": args.batch_size}
        settings |= {"tower": None if args.vision_tower is None else path_fingerprint(args.vision_tower)}
        metrics = evaluate(
            args.benchmark,
            predictor,
            source,
            args.out,
            metadata=metadata,
            settings=settings,
            compare=args.compare,
            context=context,
            fresh=args.fresh,
            items=items,
            explain=args.explain or 0,
        )
    if metrics is None:
        return 0
    write_figures(metrics, args)
    lost = metrics["left_out"] + metrics["unanswered"]
    total = metrics["left_out"] + metrics["items"]
    code = exit_code(lost, total, "questions were left out or not answered", args.max_bad_fraction)
    verdicts = metrics.get("judge", {"unreadable": 0, "verdicts": 1})
    unread = exit_code(
        verdicts["unreadable"], verdicts["verdicts"], "verdicts could not be read", args.max_bad_fraction
    )
    return max(code, unread)


def open_judge(args: argparse.Namespace) -> Any:
    """Returns the judge that the arguments name, None where they name none; its verdicts are kept in --out."""
    from gpt4roi.evaluation.judge import JUDGE_FOLDER, Judge, read_key

    if args.judge is None or args.judge_model is None:
        if any((args.judge, args.judge_model, args.judge_key_file, args.judge_prompt)):
            raise InputError("a judge is named by --judge URL and --judge-model NAME; give both")
        return None
    template = None
    if args.judge_prompt is not None:
        template = read_bytes(args.judge_prompt, "--judge-prompt as a text file").decode(errors="replace")
    key = read_key(args.judge_key_file)
    folder = Path(args.out) / JUDGE_FOLDER
    return Judge(args.judge, args.judge_model, folder, key, template, args.judge_concurrency)


def check_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Checks what is quick to check and returns what belongs into the report."""
    open_benchmark(args.benchmark)
    for name in ("limit", "batch_size", "max_new_tokens", "judge_concurrency", "explain"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if args.shuffle is not None and args.limit is None:
        raise InputError("--shuffle draws the images of --limit; give --limit N too")
    if args.shuffle is not None and args.shuffle < 0:
        raise InputError(f"--shuffle must be a seed of 0 or more, got {args.shuffle}")
    if not Path(args.data).exists():
        raise InputError(f"--data {args.data}: no such file or folder; for stamps run `python -m quickstart` first")
    if args.images is not None and not Path(args.images).is_dir():
        raise InputError(f"--images {args.images}: no such folder")
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise InputError(f"--out {args.out}: is a file; give a folder")
    metadata: dict[str, Any] = {"model": str(args.model), "command": command_line(args)}
    if args.phases:
        metadata["phases"] = read_phases(Path(args.phases))
    if args.model.endswith(".py"):
        if not Path(args.model).is_file():
            raise InputError(f"--model {args.model}: no such file")
        if args.explain is not None:
            raise InputError("--explain looks into GPT4RoI's own models; leave it out for a Python file")
    else:
        check_model_folder(args.model)
    return metadata


def open_predictor(args: argparse.Namespace, context: Any) -> tuple[Any, dict[str, Any]]:
    """Opens the model, and returns it with the settings that its answers depend on."""
    from gpt4roi.evaluation.predictor import ModelPredictor, WrappedModel

    if args.model.endswith(".py"):
        return WrappedModel(args.model), {}
    args.device = context.device(args.device)
    chat = open_chat(args)
    length = args.max_new_tokens or open_benchmark(args.benchmark).max_new_tokens
    dtype = str(chat.model.get_input_embeddings().weight.dtype)
    predictor = ModelPredictor(chat.model, chat.processor, args.batch_size, length)
    settings = {"dtype": dtype, "device": chat.model.device.type, "max_new_tokens": length}
    return predictor, settings if args.quantize is None else {**settings, "quantize": args.quantize}


def write_figures(metrics: dict[str, Any], args: argparse.Namespace) -> None:
    """Writes the main figures and, where two runs are compared, their differences."""
    if args.json:
        output.record(metrics["summary"])
        return
    width = max(map(len, metrics["summary"]))
    for name, value in metrics["summary"].items():
        output.line(f"{name:<{width}}  {value:.4g}" if isinstance(value, float) else f"{name:<{width}}  {value}")
    for name, one in metrics.get("compared", {}).get("differences", {}).items():
        output.line(f"{name}: {one['value']:+.4g} ({one['low']:+.4g} to {one['high']:+.4g}) against {args.compare}")
    output.line(f"report: {Path(args.out) / 'report.html'}")


def command_line(args: argparse.Namespace) -> str:
    """Returns a command that repeats this evaluation."""
    words = ["gpt4roi", "evaluate", "--benchmark", args.benchmark]
    names = (
        "model", "vision_tower", "data", "images", "split", "out", "limit", "shuffle", "question", "sentence_model",
        "max_new_tokens", "batch_size", "compare", "explain", "judge", "judge_model", "judge_key_file",
        "judge_prompt", "device", "dtype", "quantize",
    )  # fmt: skip
    for name in names:
        value = getattr(args, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += [] if args.frame == "auto" else ["--frame", args.frame]
    return shlex.join(words + ["--scale-boxes"] * args.scale_boxes)


def read_phases(path: Path) -> dict[str, float]:
    """Reads minutes by phase. Raises InputError where the file is not such an object."""
    try:
        phases = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(minutes) for name, minutes in phases.items()}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--phases {path}: cannot be read: {error}") from None
    except (ValueError, TypeError, AttributeError):
        raise InputError(f'--phases {path}: expected a JSON object such as {{"stage 1": 0.8}}') from None
