"""Says how many processes a training starts on a machine; the scripts ask before they start them.

`python -m gpt4roi.train.launch STAGE WORKDIR NODES [arguments]` prints the number: one process for each GPU, as far as
a step's samples can be shared equally, else fewer; 0 without GPUs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gpt4roi.train import run
from gpt4roi.train.defaults import STAGE_DEFAULTS


def processes(devices: int, nodes: int, step_size: int, at_once: int) -> int:
    """Returns how many of a machine's GPUs to use, so that a step's samples are shared equally by all of them.

    devices: GPUs of one machine; nodes: machines; step_size: samples in a step; at_once: samples a GPU takes at once.
    """
    fitting = [count for count in range(1, devices + 1) if step_size % (count * nodes * at_once) == 0]
    return max(fitting, default=devices)


def settings(stage: str, folder: Path, arguments: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns the stage's defaults, what the folder's run was given and what is given now, the last word winning."""
    found = {name: (str(value),) for name, value in STAGE_DEFAULTS.get(int(stage), {}).items()}
    # There may be no run yet, and a damaged one is refused by the training itself.
    with suppress(OSError, ValueError, KeyError, TypeError):
        found |= run.options(json.loads((folder / run.ARGUMENTS).read_text())["arguments"])
    return found | run.options(run.words(arguments))


def main(argv: Sequence[str]) -> None:
    """Prints the number of processes, and says on stderr where GPUs are left idle."""
    stage, folder, nodes, *arguments = argv
    given = settings(stage, Path(folder), arguments)
    sys.stdout.write(f"{_count(given, int(nodes))}\n")


def _count(given: dict[str, tuple[str, ...]], nodes: int) -> int:
    if run.is_on(given, "use_cpu"):
        return 0
    import torch

    devices = torch.cuda.device_count()
    words = [given.get(name, ("0",)) for name in ("global_batch_size", "per_device_train_batch_size")]
    if not devices or not all(len(word) == 1 and word[0].isdigit() and int(word[0]) for word in words):
        return devices  # what is no number is refused by the training itself
    step_size, at_once = (int(word[0]) for word in words)
    count = processes(devices, nodes, step_size, at_once)
    if count < devices:
        sys.stderr.write(
            f"{devices} GPUs, {count} of them are used: a step has {step_size} samples, {at_once} at once; "
            f"--global_batch_size {devices * nodes * at_once} would use all of them\n"
        )
    return count


if __name__ == "__main__":
    main(sys.argv[1:])
