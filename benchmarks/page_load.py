"""Thirty people at once on the page: does everyone get their own answers, and does the server's memory stay flat?

    python benchmarks/page_load.py [--model exp/quickstart/stage2] [--data exp/quickstart/data] [--seconds 120]

Serves the page in a process of its own, first answering one question after the other, then in batches, in float32, and
lets as many gradio_client sessions talk to it, each about another image of the quickstart's held-out scenes. Every
answer is compared with the one that a session in this process gives to the same question about the same box of the same
image. Prints the server's resident memory as it goes.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from common import machine, say

QUESTION = "What is <region1>?"
BOXES_EACH = 3
SETTLING_SECONDS = 60


@dataclass
class Person:
    """Somebody with an image, boxes, and the answers that are right for them."""

    image: str
    boxes: list[list[float]]
    expected: list[str]
    waits: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def anew(self) -> Person:
        """Returns the same person before the first question."""
        return Person(self.image, self.boxes, self.expected)


def people(data: Path, model: Path, count: int) -> list[Person]:
    """Takes held-out scenes and answers about them by a session without a server."""
    from gpt4roi import RegionChat
    from gpt4roi.demo.session import Session
    from gpt4roi.generation.batching import BatchingWorker
    from gpt4roi.processing.uploads import open_upload

    chat = RegionChat.from_pretrained(model, dtype="float32")
    worker = BatchingWorker(chat.model, chat.processor, deterministic=True)
    scenes = [json.loads(line) for line in (data / "test.jsonl").read_text(encoding="utf-8").splitlines()[:count]]
    found = []
    for scene in scenes:
        packed = base64.b64encode((data / scene["image"]).read_bytes()).decode()
        boxes = [[float(value) for value in box] for box in scene["boxes"][:BOXES_EACH]]
        session = Session(worker)
        session.show(open_upload(packed))
        answers = []
        for box in boxes:
            *_, answer = session.ask(QUESTION, [box])
            session.start_over()
            answers.append(answer)
        found.append(Person(packed, boxes, answers))
    worker.close()
    return found


def talk(person: Person, url: str, deadline: float) -> None:
    """Talks to the page until the deadline; now and then with the image sent anew."""
    from gradio_client import Client

    client = Client(url, verbose=False, httpx_kwargs={"timeout": 300})
    turn = 0
    while time.monotonic() < deadline:
        if turn % (2 * len(person.boxes)) == 0:
            client.predict(person.image, api_name="/set_image")
        number = turn % len(person.boxes)
        start = time.monotonic()
        answer = client.predict(QUESTION, [person.boxes[number]], api_name="/ask")
        person.waits.append(time.monotonic() - start)
        record = client.predict(api_name="/conversation")
        own = [region["box"] for region in record["regions"]] == [person.boxes[number]]
        if answer != person.expected[number] or not own or len(record["rounds"]) != 1:
            person.wrong.append(f"{answer!r} in place of {person.expected[number]!r}; boxes {record['regions']}")
        client.predict(api_name="/start_over")
        turn += 1
    client.close()


def resident_mb(pid: int) -> float:
    """Returns the resident memory of a process, in MB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def watch_memory(pid: int, start: float, deadline: float) -> list[tuple[float, float]]:
    """Reads the memory every two seconds and prints it every ten."""
    seen = []
    while time.monotonic() < deadline:
        passed = time.monotonic() - start
        seen.append((passed, resident_mb(pid)))
        if len(seen) % 5 == 1:
            say(f"{passed:5.0f} s  {seen[-1][1]:7.1f} MB")
        time.sleep(2)
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("exp/quickstart/stage2"))
    parser.add_argument("--data", type=Path, default=Path("exp/quickstart/data"))
    parser.add_argument("--sessions", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 32], help="answers written together")
    args = parser.parse_args()
    say(machine())
    crowd = people(args.data, args.model, args.sessions)
    say(f"{len(crowd)} people, {len({answer for one in crowd for answer in one.expected})} different answers expected")
    return max([load(args, [one.anew() for one in crowd], together) for together in args.concurrency])


def load(args: argparse.Namespace, crowd: list[Person], together: int) -> int:
    """Lets the crowd talk to a page that writes so many answers together; 1 where an answer was another's."""
    say(f"-- {together} answers written together")
    command = [sys.executable, "-m", "gpt4roi.cli", "demo", "--model", str(args.model)]
    command += ["--max-sessions", str(len(crowd)), "--concurrency", str(together), "--dtype", "float32"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        url = server.stdout.readline().strip()
        say(f"alone: {resident_mb(server.pid):.1f} MB")
        start = time.monotonic()
        deadline = start + args.seconds
        threads = [threading.Thread(target=talk, args=(one, url, deadline)) for one in crowd]
        for thread in threads:
            thread.start()
        seen = watch_memory(server.pid, start, deadline)
        for thread in threads:
            thread.join()
        return verdict(crowd, seen)
    finally:
        server.terminate()
        server.wait()


def verdict(crowd: list[Person], seen: list[tuple[float, float]]) -> int:
    """Prints what was seen; 1 where an answer was another's."""
    waits = sorted(wait for one in crowd for wait in one.waits)
    wrong = [line for one in crowd for line in one.wrong]
    later = [memory for passed, memory in seen if passed >= SETTLING_SECONDS]
    say(f"{len(waits)} answers, at least {min(len(one.waits) for one in crowd)} each, {len(wrong)} not the asker's own")
    say(f"waited {statistics.median(waits):.2f} s in the middle, {waits[int(0.95 * len(waits))]:.2f} s at 95 %")
    if later:
        say(f"memory after the first minute: {min(later):.1f} to {max(later):.1f} MB, {later[-1] - later[0]:+.1f} MB")
    for line in wrong[:5]:
        say(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
