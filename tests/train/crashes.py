"""Kills a training again and again, and compares what it learnt with an uninterrupted run, bit for bit.

    python tests/train/crashes.py --kills 20 --steps 200

One parent imports everything once; every life of the training is a fork of it, which SIGKILL ends at a random moment:
while it starts, between steps, in a step or while a checkpoint is written. Every loss that any life has reported must
be the uninterrupted run's loss of that step, and the trained weights must be the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch  # noqa: E402
from squares import write_parts  # noqa: E402

from gpt4roi.train import main, saving, training  # noqa: E402

SAVE_STEPS = 3
LATEST = 8
"""Steps after the intended one at which a life waits for its end; at the last step at the latest."""


@dataclass
class Life:
    """What one life of the training did, and what it left behind."""

    seconds: float
    began: int
    """The step of the checkpoint that it went on from."""
    seen: int
    """The last step whose loss it reported."""
    unfinished: str
    """The checkpoint that it was writing when it was killed."""
    equal: int
    losses: int


def arguments(parts: Path, folder: Path, steps: int) -> list[str]:
    """Returns a training of the light encoder with noise, over images that do not fill the last step of an epoch."""
    return [
        *("--stage", "1", "--output_dir", str(folder), "--max_steps", str(steps), "--save_steps", str(SAVE_STEPS)),
        *("--model_name_or_path", f"{parts}/language_model", "--vision_tower", f"{parts}/pyramid"),
        *("--region_encoder_type", "light", "--region_noise", "0.5", "--prompt_format", "chat"),
        *("--dataset_config", f"{parts}/train.jsonl", "--feature_cache", f"{parts}/features"),
        *("--global_batch_size", "4", "--per_device_train_batch_size", "2", "--learning_rate", "3e-3"),
        *("--report_to", "none", "--disable_tqdm", "true", "--attn_implementation", "eager"),
    ]


def start(argv: list[str], trace: Path, limit: float = math.inf) -> int:
    """Forks a life of the training, which adds every loss to `trace`, and returns its process id.

    limit: the step at which it waits to be killed, should the killer come late on a busy machine.
    """
    process = os.fork()
    if process:
        return process
    output = os.open(trace.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    log = training.GPT4RoITrainer.log

    def log_and_tell(self, logs, *args, **kwargs):
        if "loss" in logs:
            line = f"{self.state.global_step} {float(logs['loss']).hex()}\n"
            with trace.open("a") as file:
                file.write(line)
        while self.state.global_step >= limit:
            time.sleep(0.01)
        log(self, logs, *args, **kwargs)

    training.GPT4RoITrainer.log = log_and_tell
    code = 1
    try:
        main(argv)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def told(trace: Path) -> list[tuple[int, str]]:
    """Reads the steps and losses of a trace; a line that was cut off is left out."""
    text = trace.read_text() if trace.exists() else ""
    lines = [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]
    return [(int(step), loss) for step, loss in lines]


def finish(argv: list[str], trace: Path) -> None:
    """Runs a life to its own end."""
    _, status = os.waitpid(start(argv, trace), 0)
    if status:
        raise SystemExit(f"a life ended with status {status}: {trace.with_suffix('.log').read_text()[-2000:]}")


def kill_at(process: int, trace: Path, step: int | None, pause: float) -> None:
    """Kills a life `pause` seconds after it reported `step`, or after its start."""
    while step is not None and (not (lines := told(trace)) or lines[-1][0] < step):
        if os.waitpid(process, os.WNOHANG) != (0, 0):
            raise SystemExit(f"a life ended by itself: {trace.with_suffix('.log').read_text()[-2000:]}")
        time.sleep(0.005)
    time.sleep(pause)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def crash(root: Path, kills: int, steps: int, seed: int) -> tuple[list[Life], bool]:
    """Kills a training `kills` times and lets it end; returns its lives, and whether the trained weights are equal."""
    (root / "parts").mkdir()
    parts = write_parts(root / "parts", images=11)
    whole, killed = root / "whole", root / "killed"
    began = time.monotonic()
    finish(arguments(parts, whole, steps), root / "whole.trace")
    a_step = (time.monotonic() - began) / steps
    expected = dict(told(root / "whole.trace"))
    chance = random.Random(seed)
    lives = []
    for number in range(1, kills + 2):
        trace = root / f"life{number}.trace"
        newest = saving.last_checkpoint(killed)
        known = (killed / "run.json").exists()
        argv = ["--stage", "1", "--output_dir", str(killed)] if known else arguments(parts, killed, steps)
        began = time.monotonic()
        if number > kills:
            finish(argv, trace)
        else:
            target = int((number - 1 + chance.random()) * steps / (kills + 1))
            early = chance.random() < 0.15
            pause = chance.uniform(0, 20 * a_step) if early else chance.uniform(0, 2 * a_step)
            kill_at(
                start(argv, trace, limit=min(target + LATEST, steps)), trace, None if early else max(1, target), pause
            )
        lines = told(trace)
        lives.append(
            Life(
                seconds=time.monotonic() - began,
                began=0 if newest is None else saving.step_of(newest),
                seen=lines[-1][0] if lines else 0,
                unfinished=" ".join(path.name.split("-", 1)[1] for path in killed.glob(f"{saving.PARTIAL}*")),
                equal=sum(expected.get(step) == loss for step, loss in lines),
                losses=len(lines),
            )
        )
    same = digest(whole / "model.safetensors") == digest(killed / "model.safetensors")
    covered = {step for number in range(1, kills + 2) for step, _ in told(root / f"life{number}.trace")}
    return lives, same and covered == set(expected) == set(range(1, steps + 1))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def table(lives: list[Life]) -> str:
    """Writes one line a life."""
    lines = ["life  seconds  from step  to step  losses equal  unfinished"]
    for number, life in enumerate(lives, start=1):
        lines.append(
            f"{number:4d}  {life.seconds:7.2f}  {life.began:9d}  {life.seen:7d}"
            f"  {f'{life.equal} of {life.losses}':>12}  {life.unfinished or '-'}"
        )
    return "\n".join(lines)


def run(argv: list[str]) -> int:
    """Prints the table; the exit code is 0 where everything was equal."""
    parser = argparse.ArgumentParser(description="Kills a training at random moments and compares its losses.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        lives, same = crash(Path(root), given.kills, given.steps, given.seed)
    losses, equal = sum(life.losses for life in lives), sum(life.equal for life in lives)
    whole = same and losses == equal
    sys.stdout.write(
        f"{table(lives)}\n{given.kills} kills in {given.steps} steps: {equal} of {losses} losses equal to the bit; "
        f"trained weights {'equal' if same else 'DIFFER'}\n"
    )
    sys.stdout.write(json.dumps({"kills": given.kills, "losses": losses, "equal": equal, "weights_equal": same}) + "\n")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
