"""Times answers about boxes of one image from start to end, by the command line and by plain `generate` calls.

    python benchmarks/describe.py [--quick] [--model FOLDER]

Each way is a process of its own, from the interpreter's start to the last answer, in processor time, in float32.
`generate, box by box` opens the same folder with transformers and gives it one prompt after the other, image and all,
as a demo does. `a command for each box` is `gpt4roi describe` once for each box. The quickstart's model is taken where
exp/quickstart/stage2 is, else a tiny one of random weights, for which opening is nearly all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import Row, argument_parser, children_seconds, report, rows
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "exp" / "quickstart" / "stage2"
PLAIN, EACH, OURS = "generate, box by box", "a command for each box", "gpt4roi describe"
MAX_NEW_TOKENS = 32


def measure(quick: bool, model: Path | None = None) -> Iterator[Row]:
    """Compares the ways for a few numbers of boxes."""
    model = model or (QUICKSTART if (QUICKSTART / "trained.json").exists() else None)
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "image.png")
        noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((640, 480)).save(image)
        title = "quickstart's model" if model == QUICKSTART else "tiny model" if model is None else model.name
        place = model or make_tiny(Path(folder, "model"))
        for count in (1, 4) if quick else (1, 4, 16):
            ways = {PLAIN: count, OURS: count} if count != 4 else {PLAIN: count, EACH: count, OURS: count}
            spent: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(1 if quick else 2):
                answers = {}
                for way in ways:
                    before = children_seconds()
                    answers[way] = ask(way, place, image, draw_boxes(count))
                    spent[way].append(children_seconds() - before)
            assert all(found == answers[PLAIN] for found in answers.values()), answers
            equal = f"the same {count} answer{'s' if count > 1 else ''}"
            case = f"{title}, {count} box{'es' if count > 1 else ''}"
            yield from rows(case, spent, equal, alternatives=len(ways) - 1)


def make_tiny(place: Path) -> Path:
    """Saves the tests' tiny model of random weights with its processor."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import tiny_model, tiny_processor

    model = tiny_model()
    model.save_pretrained(place)
    tiny_processor(model.config).save_pretrained(place)
    return place


def draw_boxes(count: int) -> list[list[int]]:
    """Draws boxes inside an image of 640 x 480 pixels."""
    corners = np.random.default_rng(1).integers((0, 0), (560, 400), (count, 2))
    return [[int(x), int(y), int(x) + 79, int(y) + 79] for x, y in corners]


def ask(way: str, model: Path, image: Path, boxes: list[list[int]]) -> list[str]:
    """Runs one way in fresh processes and returns the answers."""
    if way == EACH:
        return [answer for box in boxes for answer in ask(OURS, model, image, [box])]
    if way == PLAIN:
        command = [__file__, "--model", str(model), "--plain", str(image), json.dumps(boxes)]
    else:
        flags = [word for box in boxes for word in ("--box", ",".join(map(str, box)))]
        command = ["-m", "gpt4roi.cli", "describe", str(image), *flags, "--model", str(model), "--json"]
        command += ["--dtype", "float32", "--device", "cpu", "--max-new-tokens", str(MAX_NEW_TOKENS)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    if way == PLAIN:
        return json.loads(done.stdout.splitlines()[-1])
    return [region["answer"] for region in json.loads(done.stdout)["regions"]]


def answer_plainly(model: Path, image: Path, boxes: list[list[int]]) -> list[str]:
    """Answers with transformers' classes: a prompt and a `generate` for each box."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import gpt4roi.checkpoint.auto_classes  # noqa: F401
    from gpt4roi import RegionChat, RegionSample, Turn

    network = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(model)
    question, ends = RegionChat(network, processor).default_question, processor.stop_token_ids
    answers = []
    for box in boxes:
        sample = RegionSample(image=str(image), boxes_px=[box], turns=(Turn("user", question),))
        inputs = processor([sample], generation=True)
        given = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values", "boxes")}
        ids = network.generate(**given, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, eos_token_id=list(ends))
        answers.append(processor.decode(ids[0, given["input_ids"].shape[1] :]))
    return answers


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a model's folder")
    parser.add_argument("--plain", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        image, boxes = args.plain
        answers = answer_plainly(args.model, Path(image), json.loads(boxes))
        sys.stdout.write("\n" + json.dumps(answers) + "\n")
        return
    report(measure(args.quick, args.model), args)


if __name__ == "__main__":
    main()
