"""Shows where the time of the region encoder and of an answer goes, and how near it is to what the machine can do.

    python benchmarks/where_time_goes.py [--width 1024] [--model FOLDER]

Prints tables in Markdown: processor time of one thread, by kind of operation, from PyTorch's profiler; beside it the
rate of a plain product of matrices and of a copy, which bound the rest. With a model (by default the quickstart's, if
it is there), an answer from start to end by its steps.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import children_seconds, machine, say
from PIL import Image
from region_encoder import Comparison
from torch.profiler import ProfilerActivity, profile

from gpt4roi.region_chat import RegionChat

QUICKSTART = Path(__file__).resolve().parents[1] / "exp" / "quickstart" / "stage2"
KINDS = {
    "products of matrices": ("mm", "bmm", "addmm", "baddbmm"),
    "convolutions": ("mkldnn_convolution", "convolution_overrideable", "slow_conv2d_forward"),
    "moving numbers": ("copy_", "cat", "fill_", "clone", "constant_pad_nd", "index", "masked_select"),
    "norms and ReLU": ("native_group_norm", "native_layer_norm", "relu_", "relu", "clamp_min_", "clamp_min"),
    "pooling boxes": ("_embedding_bag", "roi_align", "col2im", "_embedding_bag_forward_only"),
}


def least(call: Callable[[], object], repeats: int = 5) -> float:
    """Returns the least processor time of a few calls, in seconds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def bounds() -> str:
    """Measures how fast this machine multiplies matrices and copies, with the threads that are set."""
    one, other = torch.randn(1360, 1024), torch.randn(1024, 1024)
    product = 2 * 1360 * 1024 * 1024 / least(lambda: one @ other) / 1e9
    large = torch.randn(16 * 2**20)
    target = torch.empty_like(large)
    copied = 2 * large.nbytes / least(lambda: target.copy_(large)) / 1e9
    return (
        f"{product:.0f} GFLOP/s in products of 1360 x 1024 by 1024 x 1024, {copied:.1f} GB/s read and written in copies"
    )


@torch.no_grad()
def of_the_encoder(width: int, counts: tuple[int, ...]) -> list[str]:
    """Profiles the forward pass for some numbers of boxes; returns the lines of a table."""
    shares: dict[int, dict[str, float]] = {}
    for count in counts:
        comparison = Comparison(width, count, ["auto"], "cpu")
        comparison.encoder.pooler.backend = "auto"
        with profile(activities=[ProfilerActivity.CPU]) as watched:
            start = time.process_time()
            comparison.encoder(comparison.maps, comparison.boxes)
            total = time.process_time() - start
        spent = dict.fromkeys(KINDS, 0.0)
        for event in watched.key_averages():
            kind = next((kind for kind, names in KINDS.items() if event.key.removeprefix("aten::") in names), None)
            if kind:
                spent[kind] += event.self_cpu_time_total
        whole = sum(event.self_cpu_time_total for event in watched.key_averages())
        shares[count] = {kind: value / whole for kind, value in spent.items()}
        shares[count]["everything else"] = 1 - sum(shares[count].values())
        shares[count]["CPU-seconds"] = total
    heads = " | ".join(f"{count} box{'es' if count > 1 else ''}" for count in counts)
    lines = [f"| region encoder, width {width}, forward | {heads} |", "|---" * (len(counts) + 1) + "|"]
    for kind in (*KINDS, "everything else"):
        lines.append(f"| {kind} | " + " | ".join(f"{shares[count][kind]:.0%}" for count in counts) + " |")
    times = " | ".join(f"**{shares[count]['CPU-seconds']:.1f}**" for count in counts)
    return [*lines, f"| CPU-seconds | {times} |"]


def of_an_answer(model: Path) -> list[str]:
    """Times the steps of an answer about one box, and about 15 more, from importing on; returns a table's lines."""
    steps: dict[str, float] = {}

    def step(name: str, call: Callable[[], object]) -> object:
        start = time.process_time()
        result = call()
        steps[name] = time.process_time() - start
        return result

    before = children_seconds()
    subprocess.run([sys.executable, "-c", "import gpt4roi.region_chat"], check=True)
    steps["starting Python, importing PyTorch and transformers"] = children_seconds() - before
    chat = step("opening the model", lambda: RegionChat.from_pretrained(model, device="cpu", dtype="float32"))
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((640, 480))
    boxes = [[20 + 30 * number, 40, 120 + 30 * number, 300] for number in range(16)]
    step("answering about one box", lambda: chat.describe(image, boxes[:1], max_new_tokens=32))
    step("answering about 16 boxes at once", lambda: chat.describe(image, boxes, max_new_tokens=32))
    lines = [f"| an answer of {model.name}, float32 | CPU-seconds |", "|---|---|"]
    return lines + [f"| {name} | {spent:.2f} |" for name, spent in steps.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024, help="channels of the region encoder (default 1024)")
    parser.add_argument("--boxes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--model", type=Path, default=QUICKSTART, metavar="FOLDER")
    args = parser.parse_args()
    torch.set_num_threads(1)
    say(f"{machine()}; {bounds()}\n")
    if (args.model / "config.json").exists():
        say("\n".join(of_an_answer(args.model)) + "\n")
    say("\n".join(of_the_encoder(args.width, tuple(args.boxes))))


if __name__ == "__main__":
    main()
