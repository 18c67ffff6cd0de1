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

from gpt4roi.train import work_dir
from gpt4roi.train.defaults import STAGE_DEFAULTS


def processes(devices: int, nodes: int, step_size: int, at_once: int) -> int:
    """Returns how many of a machine's GPUs to use, so that a step's samples are shared equally by all of them.

    devices: GPUs of one machine; nodes: machines; step_size: samples in a step; at_once: samples a GPU takes at once.
    """
    fitting = [count for count in range(1, devices + 1) if step_size % (count * nodes * at_once) == 0]
    return max(fitting, default=devices)


def settings(stage: str, folder: Path, arguments: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns the stage's defaults, what the folder's run was given and what is given now, the last word winning.

    Where a number of batches in a step is given, the default samples of a step are left out: they follow from it.
    """
    found: dict[str, tuple[str, ...]] = {}
    # There may be no run yet, and a damaged one is refused by the training itself.
    with suppress(OSError, ValueError, KeyError, TypeError):
        found |= work_dir.options(json.loads((folder / work_dir.ARGUMENTS).read_text())["arguments"])
    found |= work_dir.options(work_dir.words(arguments))
    defaults = {name: (str(value),) for name, value in STAGE_DEFAULTS.get(int(stage), {}).items()}
    if "gradient_accumulation_steps" in found:
        defaults.pop("global_batch_size", None)
    return defaults | found


def main(argv: Sequence[str]) -> None:
    """Prints the number of processes, and says on stderr where GPUs are left idle."""
    stage, folder, nodes, *arguments = argv
    given = settings(stage, Path(folder), arguments)
    sys.stdout.write(f"{_count(given, int(nodes))}\n")


_OF_A_STEP = {"global_batch_size": (), "per_device_train_batch_size": (), "gradient_accumulation_steps": ("1",)}


def _agreeing(devices: int, nodes: int, step_size: int, at_once: int) -> int:
    """Returns how many GPUs put `at_once` samples each into a step; all where none do, for the training to refuse."""
    count, rest = divmod(step_size, nodes * at_once)
    return count if not rest and count <= devices else devices


def _count(given: dict[str, tuple[str, ...]], nodes: int) -> int:
    if work_dir.is_on(given, "use_cpu"):
        return 0
    import torch

    devices = torch.cuda.device_count()
    numbers = [given.get(name, default) for name, default in _OF_A_STEP.items()]
    if not devices or not all(len(words) == 1 and words[0].isdigit() and int(words[0]) for words in numbers):
        return devices  # any number goes where no step size is given; what is no number is refused by the training
    step_size, at_once, batches = (int(words[0]) for words in numbers)
    at_once *= batches
    # Given beside the step size, a number of batches leaves one number of GPUs that makes them agree.
    share = _agreeing if "gradient_accumulation_steps" in given else processes
    count = share(devices, nodes, step_size, at_once)
    if count < devices:
        sys.stderr.write(
            f"{devices} GPUs, {count} of them are used: a step has {step_size} samples, {at_once} at once; "
            f"--global_batch_size {devices * nodes * at_once} would use all of them\n"
        )
    return count


if __name__ == "__main__":
    main(sys.argv[1:])
