"""What the benchmarks share. A benchmark is a script benchmarks/NAME.py with

    measure(quick: bool) -> Iterable[Row]    times ours and named alternatives; quick: in seconds, on a small case
    if __name__ == "__main__":
        main(measure, __doc__)               --quick, --threads and --json; prints each row as it comes

`python -m benchmarks.run` finds every script that has a `measure`, runs each in a process of its own, and writes the
tables of README.md. The first line of the docstring stands above the table, the rest below its title, so it names the
case, the alternatives, and what was left out. Write `from common import Row, main, rows, time_in_turn`.

    def measure(quick):
        spent = time_in_turn({"plain": plain, "ours": ours}, repeats=3 if quick else 7)
        yield from rows("32 boxes", spent, equal=f"outputs differ by {difference(ours(), plain()):.0e}")

Time is CPU-seconds of the process, which other jobs of a shared machine disturb less than the clock; on a GPU it is
the clock with a synchronization. Whatever else is compared (memory, the clock) says so in `unit`; smaller is better.
Where the results of both ways do not agree, a benchmark raises AssertionError instead of printing a ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CPU_SECONDS = "CPU-s"
SECONDS = "s"


@dataclass(frozen=True)
class Row:
    """One comparison: `theirs` and `own` are the repeated measurements of the alternative and of ours."""

    case: str
    alternative: str
    ours: str
    theirs: list[float]
    own: list[float]
    equal: str
    """How it was seen that both give the same, in a few words, such as `outputs differ by 3e-07 of the largest`."""
    unit: str = CPU_SECONDS
    device: str = "cpu"

    @property
    def ratio(self) -> float:
        """How many times less ours needs, by the medians."""
        return statistics.median(self.theirs) / statistics.median(self.own)

    @property
    def ratio_of_best(self) -> float:
        """The same by the smallest values, which other jobs disturb least."""
        return min(self.theirs) / min(self.own)


def rows(
    case: str, spent: dict[str, list[float]], equal: str, unit: str = "", device: str = "cpu", alternatives: int = 1
) -> list[Row]:
    """Makes a row for each of our ways against each alternative; the first `alternatives` of the ways are not ours."""
    names = list(spent)
    unit = unit or (CPU_SECONDS if device == "cpu" else SECONDS)
    return [
        Row(case, other, ours, spent[other], spent[ours], equal, unit, device)
        for ours in names[alternatives:]
        for other in names[:alternatives]
    ]


def devices() -> list[str]:
    """Returns the devices to measure on: the processor, and a GPU where there is one."""
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def time_in_turn(
    ways: dict[str, Callable[[], Any]], repeats: int, warm_ups: int = 1, device: str = "cpu"
) -> dict[str, list[float]]:
    """Times several ways of doing the same, one after the other in each round, so that all see the same machine."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warm_ups + repeats):
        for name, way in ways.items():
            start = _now(device)
            way()
            if turn >= warm_ups:
                spent[name].append(_now(device) - start)
    return spent


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def children_seconds() -> float:
    """Returns the processor time of all processes that this one has started and seen end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def difference(ours: Any, reference: Any) -> float:
    """Returns the largest difference of two tensors, as a part of the reference's largest value."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def machine() -> str:
    """Describes the processor, the cores, the GPU and the threads that PyTorch uses, in one line."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    instructions = torch.backends.cpu.get_cpu_capability()
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = torch.get_num_threads()
    return f"{name}, {os.cpu_count()} cores, {instructions}{gpu}; torch {torch.__version__}, {threads} thread(s)"


def cell(values: list[float]) -> str:
    """Writes a median and its range: `1.53 (1.51–1.60)`."""
    numbers = (statistics.median(values), min(values), max(values))
    middle, low, high = (f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in numbers)
    return middle if len(values) == 1 else f"{middle} ({low}–{high})"


def line(row: Row) -> str:
    """Writes a row for the terminal."""
    return (
        f"{row.case} [{row.device}]: {row.alternative} {cell(row.theirs)} {row.unit}, {row.ours} {cell(row.own)} "
        f"{row.unit}: {row.ratio:.2f}x (best {row.ratio_of_best:.2f}x); {row.equal}"
    )


def say(text: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def argument_parser(doc: str | None) -> argparse.ArgumentParser:
    """Makes the parser of a benchmark, for those that take arguments of their own."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small case, in seconds")
    parser.add_argument("--threads", type=positive, default=1, help="threads of PyTorch (default 1)")
    parser.add_argument("--json", type=_file_to_be, metavar="FILE", help="write the rows there too")
    return parser


def positive(text: str) -> int:
    """Reads an argument that must be a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def _file_to_be(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder" if path.is_dir() else f"no folder {path.parent}")
    return path


def report(found: Iterable[Row], args: argparse.Namespace) -> None:
    """Prints every row as it comes, and writes it to --json with those before it."""
    import torch

    torch.set_num_threads(args.threads)
    # Results are compared in float32, which a GPU's TensorFloat-32 is not.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    say(machine())
    kept = []
    for row in found:
        say(line(row))
        kept.append(asdict(row))
        if args.json:
            content = {"machine": machine(), "rows": kept}
            args.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(measure: Callable[[bool], Iterable[Row]], doc: str | None) -> None:
    """Runs a benchmark from the command line."""
    args = argument_parser(doc).parse_args()
    report(measure(args.quick), args)
