"""Times questions of many clients at once, joined into batches, against one after the other.

    python benchmarks/serving.py [--quick] [--model exp/quickstart/stage2] [--data exp/quickstart/data]

As many threads as clients ask at the same time about boxes of four images, each client three questions in a row. `one
by one` gives each question to RegionChat as it comes, image and all, while the others wait, as a server without
batching does; `one by one, images encoded once` spares it the vision tower and the pyramid. Ours is BatchingWorker.
All are greedy, in float32, and must give the same answers. CPU-seconds are of all questions together; waiting times are
by the clock, from a question to its answer. The quickstart's model and its held-out scenes are taken where they are,
else a tiny model of random weights and random images. HTTP is left out.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CPU_SECONDS, SECONDS, Row, argument_parser, report, rows
from PIL import Image

from gpt4roi import RegionChat
from gpt4roi.generation.batching import BatchingWorker
from gpt4roi.generation.encoded_image import encode_images, prepare_image
from gpt4roi.generation.many import region_prompts
from gpt4roi.generation.sampling import SamplingParams
from gpt4roi.generation.stopping import answer_text

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from tiny import tiny_model, tiny_processor

MODEL, DATA = Path("exp/quickstart/stage2"), Path("exp/quickstart/data")
EACH, ONCE, OURS = "one by one", "one by one, images encoded once", "batched"
NUM_IMAGES, QUESTIONS_EACH = 4, 3
PARAMS = SamplingParams(64)

Ask = Callable[[int, list[float]], str]
"""Answers the default question about a box of an image, by the image's number."""


def measure(quick: bool, model: Path = MODEL, data: Path = DATA) -> Iterator[Row]:
    """Compares the ways for a few numbers of clients."""
    chat, title = open_model(model)
    scenes = list(islice(open_scenes(data), NUM_IMAGES))
    for clients in (1, 8) if quick else (1, 8, 32):
        spent: dict[str, list[float]] = {}
        waits: dict[str, list[list[float]]] = {}
        expected: dict[tuple, str] = {}
        for way, make in ((EACH, one_by_one), (ONCE, encoded_once), (OURS, batched)):
            for _ in range(1 if quick else 2):
                ask, close = make(chat, [image for image, _ in scenes])
                begun = time.process_time()
                answers, waited = crowd(ask, scenes, clients)
                spent.setdefault(way, []).append(time.process_time() - begun)
                waits.setdefault(way, []).append(waited)
                close()
                expected = expected or answers
                assert answers == expected, (way, answers, expected)
        equal = f"the same {len(waits[OURS][0])} answers"
        case = f"{title}, {clients} client{'s' if clients > 1 else ''}"
        yield from rows(f"{case}: processor", spent, equal, CPU_SECONDS, alternatives=2)
        for name, share in (("waiting time, median", 0.5), ("waiting time, 95 %", 0.95)):
            by_way = {way: [float(np.quantile(one, share)) for one in found] for way, found in waits.items()}
            yield from rows(f"{case}: {name}", by_way, equal, SECONDS, alternatives=2)


def open_model(folder: Path) -> tuple[RegionChat, str]:
    """Opens the model in float32 on the CPU, or makes a tiny one."""
    if (folder / "config.json").is_file():
        return RegionChat.from_pretrained(folder, device="cpu", dtype=torch.float32), "quickstart's model"
    model = tiny_model("pyramid")
    return RegionChat(model, tiny_processor(model.config)), "tiny model"


def open_scenes(data: Path) -> Iterator[tuple[Image.Image, list[list[float]]]]:
    """Yields images with their boxes, in pixels."""
    if (data / "test.jsonl").is_file():
        for line in (data / "test.jsonl").read_text(encoding="utf-8").splitlines():
            scene = json.loads(line)
            yield Image.open(data / scene["image"]).convert("RGB"), scene["boxes"]
    draw = np.random.default_rng(0)
    while True:
        pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        yield Image.fromarray(pixels).resize((256, 256)), [[20, 30, 120, 150], [90, 20, 200, 220]]


def crowd(ask: Ask, scenes: list[tuple], clients: int) -> tuple[dict[tuple, str], list[float]]:
    """Lets all clients ask at once; returns the answers by client and question, and how long each waited."""
    answers: dict[tuple, str] = {}
    waited: list[float] = []

    def talk(client: int) -> None:
        number = client % len(scenes)
        for question in range(QUESTIONS_EACH):
            boxes = scenes[number][1]
            begun = time.monotonic()
            answers[client, question] = ask(number, boxes[(client // len(scenes) + question) % len(boxes)])
            waited.append(time.monotonic() - begun)

    threads = [threading.Thread(target=talk, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(sorted(answers.items())), waited


def one_by_one(chat: RegionChat, images: list[Image.Image]) -> tuple[Ask, Callable[[], None]]:
    """Computes everything for each question, behind a lock."""
    lock = threading.Lock()

    def ask(number: int, box: list[float]) -> str:
        with lock:
            return chat.describe(images[number], [box], max_new_tokens=PARAMS.max_new_tokens)[0]

    return ask, lambda: None


def encoded_once(chat: RegionChat, images: list[Image.Image]) -> tuple[Ask, Callable[[], None]]:
    """Computes every image once, and what belongs to a question for each, behind a lock."""
    lock = threading.Lock()
    talks: dict[int, RegionChat] = {}

    def ask(number: int, box: list[float]) -> str:
        with lock:
            if number not in talks:
                talks[number] = RegionChat(chat.model, chat.processor)
                talks[number].set_image(images[number])
            return talks[number].describe(None, [box], max_new_tokens=PARAMS.max_new_tokens)[0]

    return ask, lambda: None


def batched(chat: RegionChat, images: list[Image.Image]) -> tuple[Ask, Callable[[], None]]:
    """Gives every question to one worker."""
    worker = BatchingWorker(chat.model, chat.processor)
    encoded: dict[int, Any] = {}

    def ask(number: int, box: list[float]) -> str:
        def prompt() -> Any:
            if number not in encoded:
                (encoded[number],) = encode_images(chat.model, [prepare_image(chat.processor, images[number])])
            boxes = np.asarray([box], dtype=np.float64)
            return region_prompts(chat.processor, encoded[number], boxes, chat.default_question)[0]

        return answer_text(chat.processor, list(worker.submit(prompt, PARAMS)))

    return ask, worker.close


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, metavar="FOLDER", help="a model's folder")
    parser.add_argument("--data", type=Path, default=DATA, metavar="FOLDER", help="the quickstart's data")
    args = parser.parse_args()
    report(measure(args.quick, args.model, args.data), args)


if __name__ == "__main__":
    main()
