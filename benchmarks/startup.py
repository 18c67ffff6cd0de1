"""Times how long the command `gpt4roi` takes before it does anything, against importing PyTorch alone.

    python benchmarks/startup.py [--quick]

Processor time of a whole process. `import torch` is what every --help would cost at least if the commands imported it
at once; `python -c pass` is the floor under everything written in Python.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from common import Row, children_seconds, main, rows

FLOOR, TORCH = "python -c pass", "import torch"
ALTERNATIVES = {FLOOR: ["-c", "pass"], TORCH: ["-c", "import torch"]}
COMMANDS = {
    "gpt4roi --help": (["--help"], 0, "usage: gpt4roi COMMAND"),
    "gpt4roi describe --help": (["describe", "--help"], 0, "usage: gpt4roi describe"),
    "gpt4roi describe, wrong box": (["describe", "photo.jpg", "--box", "1,2,3"], 2, "box 1: expected four numbers"),
}


def measure(quick: bool) -> Iterator[Row]:
    """Runs every command, and both alternatives, in turn."""
    for name, (arguments, code, begin) in COMMANDS.items():
        ways = ALTERNATIVES | {name: ["-m", "gpt4roi.cli", *arguments]}
        spent: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(2 if quick else 5):
            for way, words in ways.items():
                before = children_seconds()
                done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
                spent[way].append(children_seconds() - before)
        assert done.returncode == code and begin in done.stdout + done.stderr, done
        yield from rows(name, spent, f"exit code {code}, prints `{begin}`", alternatives=len(ALTERNATIVES))


if __name__ == "__main__":
    main(measure, __doc__)
