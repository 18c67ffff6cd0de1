"""Number of processes that a training starts on a machine; the launch scripts ask before they start them.

`python -m gpt4roi.train.launch STAGE WORKDIR NODES [arguments]` prints the number: one process for each GPU, as far as
a step's samples can be divided equally, else fewer; 0 without GPUs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gpt4roi.train.work_dir import ARGUMENTS, Flags, is_on, parse_flags


def processes(devices: int, nodes: int, step_size: int, at_once: int) -> int:
    """Returns how many GPUs of each of `nodes` machines divide a step's samples equally, `at_once` on a GPU."""
    fitting = [count for count in range(1, devices + 1) if step_size % (count * nodes * at_once) == 0]
    return max(fitting, default=devices)


def given_flags(folder: Path, arguments: Sequence[str]) -> Flags:
    """Returns the flags of the folder's run, overridden by those given now."""
    found: Flags = {}
    # There may be no run yet, and a damaged one is refused by the training itself.
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        found = parse_flags(json.loads((folder / ARGUMENTS).read_text())["arguments"])
    return found | parse_flags(arguments)


def settings(stage: str, folder: Path, arguments: Sequence[str]) -> Flags:
    """Returns the stage's defaults, overridden by the folder's run and by what is given now.

    Where a number of batches in a step is given, the default samples of a step are left out: they follow from it.
    """
    from gpt4roi.train.arguments import STAGE_DEFAULTS  # imports transformers, which a machine without GPUs is spared

    found = given_flags(folder, arguments)
    defaults = {name: (str(value),) for name, value in STAGE_DEFAULTS.get(int(stage), {}).items()}
    if "gradient_accumulation_steps" in found:
        defaults.pop("global_batch_size", None)
    return defaults | found


def main(argv: Sequence[str]) -> None:
    """Prints the number of processes, and says on stderr where GPUs are left idle."""
    stage, folder, nodes, *arguments = argv
    devices = 0 if is_on(given_flags(Path(folder), arguments), "use_cpu") else _gpus()
    count = _count(devices, int(nodes), settings(stage, Path(folder), arguments)) if devices else 0
    sys.stdout.write(f"{count}\n")


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


_STEP_FLAGS = {"global_batch_size": (), "per_device_train_batch_size": (), "gradient_accumulation_steps": ("1",)}


def _exactly_fitting(devices: int, nodes: int, step_size: int, at_once: int) -> int:
    """Returns how many GPUs put `at_once` samples each into a step; all where none do, for the training to refuse."""
    count, rest = divmod(step_size, nodes * at_once)
    return count if not rest and count <= devices else devices


def _count(devices: int, nodes: int, given: Flags) -> int:
    numbers = [given.get(name, default) for name, default in _STEP_FLAGS.items()]
    if not all(len(words) == 1 and words[0].isdigit() and int(words[0]) for words in numbers):
        return devices  # any number goes where no step size is given; the training refuses what is no number
    step_size, at_once, batches = (int(words[0]) for words in numbers)
    at_once *= batches
    # Given beside the step size, a number of batches leaves one number of GPUs that makes them agree.
    choose = _exactly_fitting if "gradient_accumulation_steps" in given else processes
    count = choose(devices, nodes, step_size, at_once)
    if count < devices:
        sys.stderr.write(
            f"{devices} GPUs, {count} of them are used: a step has {step_size} samples, {at_once} at once; "
            f"--global_batch_size {devices * nodes * at_once} would use all of them\n"
        )
    return count


if __name__ == "__main__":
    main(sys.argv[1:])
