"""Times questions of many clients at once, joined into batches, against one after the other.

    python benchmarks/serving.py [--quick] [--model exp/quickstart/stage2] [--data exp/quickstart/data]

As many threads as clients ask at the same time about boxes of four images, each client three questions in a row. `one
by one` gives each question to RegionChat as it comes, image and all, while the others wait, as a server without
batching does; `one by one, images encoded once` spares it the vision tower and the pyramid. Ours is BatchingWorker.
All are greedy, in float32, and must give the same answers. CPU-seconds are of all questions together; waiting times are
by the clock, from a question to its answer. The quickstart's model and its held-out scenes are taken where they are,
else a tiny model of random weights and random images. HTTP is left out.

Where vLLM is installed (`.venv-vllm/bin/python benchmarks/serving.py`, see scripts/test_vllm.sh), its engine answers
the same questions beside ours; its seconds are those of all its processes, without the start.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import count, islice
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
from gpt4roi.generation.sampling import SamplingParams, answer_text

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from tiny import tiny_model, tiny_processor

MODEL, DATA = Path("exp/quickstart/stage2"), Path("exp/quickstart/data")
EACH, ONCE, OURS = "one by one", "one by one, images encoded once", "batched"
VLLM = "vLLM"
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
        ways = [(EACH, one_by_one), (ONCE, encoded_once), (OURS, batched)]
        if find_spec("vllm") and model.is_dir():
            ways.insert(0, (VLLM, through_vllm))
        for way, make in ways:
            for _ in range(1 if quick or way == VLLM else 2):
                ask, close = make(chat, [image for image, _ in scenes])
                begun = cpu_seconds()
                answers, waited = crowd(ask, scenes, clients)
                spent.setdefault(way, []).append(cpu_seconds() - begun)
                waits.setdefault(way, []).append(waited)
                close()
                expected = expected or answers
                assert answers == expected, (way, answers, expected)
        equal = f"the same {len(waits[OURS][0])} answers"
        case = f"{title}, {clients} client{'s' if clients > 1 else ''}"
        yield from rows(f"{case}: processor", spent, equal, CPU_SECONDS, alternatives=len(ways) - 1)
        for name, share in (("waiting time, median", 0.5), ("waiting time, 95 %", 0.95)):
            by_way = {way: [float(np.quantile(one, share)) for one in found] for way, found in waits.items()}
            yield from rows(f"{case}: {name}", by_way, equal, SECONDS, alternatives=len(ways) - 1)


def cpu_seconds() -> float:
    """Returns the CPU-seconds of this process, and of those that it has started where vLLM is one of them."""
    if not find_spec("vllm"):
        return time.process_time()
    import psutil  # of vLLM's environment

    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(one.user + one.system for one in times)


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


def through_vllm(chat: RegionChat, images: list[Image.Image]) -> tuple[Ask, Callable[[], None]]:
    """Gives every question to vLLM's engine, in a process of its own."""
    from vllm import AsyncEngineArgs
    from vllm import SamplingParams as VllmParams
    from vllm.v1.engine.async_llm import AsyncLLM

    from gpt4roi.serving.vllm.items import image_item, tokens_prompt
    from gpt4roi.structures import RegionSample, Turn

    loop, numbers = asyncio.new_event_loop(), count()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    settings: dict[str, Any] = {
        "tokenizer_mode": "gpt4roi",
        "dtype": "float32",
        "block_size": 32,
        "max_model_len": 1024,
    }
    arguments = AsyncEngineArgs(chat.model.name_or_path, enforce_eager=True, **settings)

    async def start() -> Any:
        return AsyncLLM.from_engine_args(arguments)

    engine = asyncio.run_coroutine_threadsafe(start(), loop).result()
    stops = chat.processor.stop_token_ids
    params = VllmParams(temperature=0, max_tokens=PARAMS.max_new_tokens, stop_token_ids=stops, detokenize=False)
    items: dict[int, Any] = {}

    async def answer(prompt: Any) -> list[int]:
        async for output in engine.generate(prompt, params, str(next(numbers))):
            tokens = list(output.outputs[0].token_ids)
        return tokens

    def ask(number: int, box: list[float]) -> str:
        if number not in items:
            prepared = prepare_image(chat.processor, images[number])
            items[number] = prepared.size, image_item(prepared)
        size, item = items[number]
        sample = RegionSample("the image", (Turn("user", chat.default_question),), np.asarray([box], dtype=np.float64))
        prompt = tokens_prompt(chat.processor.encode_text(sample, generation=True, image_size=size), item)
        return answer_text(chat.processor, asyncio.run_coroutine_threadsafe(answer(prompt), loop).result())

    return ask, lambda: engine.shutdown()


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, metavar="FOLDER", help="a model's folder")
    parser.add_argument("--data", type=Path, default=DATA, metavar="FOLDER", help="the quickstart's data")
    args = parser.parse_args()
    report(measure(args.quick, args.model, args.data), args)


if __name__ == "__main__":
    main()
