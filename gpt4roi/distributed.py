"""torch.distributed helpers: rank and world size, work that the main process does first, broadcast parameters."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gpt4roi.errors import InputError
from gpt4roi.io.atomic import only_writer

logger = logging.getLogger(__name__)

_TIMEOUT = timedelta(days=7)
"""How long a process waits for one that still answers."""
_CALLS = count()
"""Numbers what the main process did first, alike in all processes."""


@dataclass(frozen=True)
class DistributedContext:
    """Which of how many processes this is, as torchrun starts them; a single process is a context of one.

    Attributes:
        rank: Number of the process among all.
        size: How many there are.
        local_rank: Number among those of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def all_gather(self, value: Any) -> list[Any]:
        """Returns what every process gave, in rank order, to all of them."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def device(self, name: str | None) -> str | None:
        """Returns the device of this process: the named one; None and `cuda` are a GPU of its own among several."""
        if name in (None, "cuda") and self.size > 1 and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return name


def init_distributed() -> DistributedContext:
    """Joins the process group where torchrun started several processes. Images and answers travel through gloo."""
    if not dist.is_torchelastic_launched():
        return DistributedContext()
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=_TIMEOUT)
    return DistributedContext(dist.get_rank(), dist.get_world_size(), dist.get_node_local_rank(0))


def destroy_distributed() -> None:
    """Destroys the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def main_process_first(what: str) -> Iterator[bool]:
    """Lets the main process through first, and the others once it is done; yields whether this one is the main one.

    The others wait in the store where all processes met: a collective would break off after its own timeout, however
    well the work goes.

    Args:
        what: What the others wait for, in the log.

    Raises:
        InputError: In the other processes, if the main one fails.
    """
    if not _is_distributed():
        yield True
        return
    store, key = dist.distributed_c10d._get_default_store(), f"gpt4roi/main_process_first/{next(_CALLS)}"
    if dist.get_rank():
        logger.info("Waiting for the first process: %s", what)
        try:
            store.wait([key], _TIMEOUT)
            done = store.get(key) == b"done"
        except dist.DistError:  # it ended, and the store with it
            done = False
        if not done:
            raise InputError(f"the first process failed: {what}; it says why")
        yield False
        return
    outcome = "failed"
    try:
        yield True
        outcome = "done"
    finally:
        store.set(key, outcome)


@contextmanager
def distributed_job(path: Path) -> Iterator[DistributedContext]:
    """Joins the process group for a job that writes a file or folder; the first process holds its lock for all.

    Raises:
        InputError: In all processes, where another job is writing there.
    """
    context = init_distributed()
    try:
        with ExitStack() as held:
            with main_process_first(f"the lock of {path}") as is_main:
                if is_main:
                    held.enter_context(only_writer(path))
            yield context
    finally:
        destroy_distributed()


@torch.no_grad()
def broadcast_parameters(tensors: Iterable[torch.Tensor], device: torch.device) -> None:
    """Gives all processes the main one's values of some tensors, in place, and its random state of the CPU.

    Args:
        tensors: Parameters and buffers.
        device: Where the processes' backend takes tensors.
    """
    if not _is_distributed():
        return
    for tensor in (*tensors, state := torch.get_rng_state()):
        sent = tensor.to(device).contiguous()
        dist.broadcast(sent, 0)
        tensor.copy_(sent)
    torch.set_rng_state(state)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
