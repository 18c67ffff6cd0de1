"""Several processes on one task, as torchrun starts them; a single process is a world of one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist

from gpt4roi.errors import InputError

logger = logging.getLogger(__name__)

_PATIENCE = timedelta(days=7)
"""How long a process waits for one that still answers."""
_TURNS = count()
"""Numbers what the first process did alone, alike in all processes."""


@dataclass(frozen=True)
class World:
    """Which of how many processes this is; local_rank: among those of this machine."""

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


def join_world() -> World:
    """Joins the processes that torchrun started, if it did. Images and answers travel through gloo."""
    if not dist.is_torchelastic_launched():
        return World()
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=_PATIENCE)
    return World(dist.get_rank(), dist.get_world_size(), dist.get_node_local_rank(0))


def leave_world() -> None:
    """Takes leave of the other processes."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def first_alone(what: str) -> Iterator[bool]:
    """Lets the first process through alone, and the others once it is done; yields whether this one is the first.

    what: what the others wait for, in the log. They wait for a word at the place where all processes met: a collective
    would break off after its own timeout, however well the work goes. Raises InputError in them if the first one fails.
    """
    if not _together():
        yield True
        return
    store, key = dist.distributed_c10d._get_default_store(), f"gpt4roi/first_alone/{next(_TURNS)}"
    if dist.get_rank():
        logger.info("Waiting for the first process: %s", what)
        try:
            store.wait([key], _PATIENCE)
            outcome = store.get(key)
        except dist.DistError:  # it went, and the place with it
            outcome = b"failed"
        if outcome != b"done":
            raise InputError(f"the first process failed: {what}; it says why")
        yield False
        return
    outcome = "failed"
    try:
        yield True
        outcome = "done"
    finally:
        store.set(key, outcome)


@torch.no_grad()
def share_from_first(tensors: Iterable[torch.Tensor], device: torch.device) -> None:
    """Gives all processes the first one's values of some tensors, in place, and its random state of the CPU.

    device: where the processes' backend takes tensors.
    """
    if not _together():
        return
    for tensor in (*tensors, state := torch.get_rng_state()):
        sent = tensor.to(device).contiguous()
        dist.broadcast(sent, 0)
        tensor.copy_(sent)
    torch.set_rng_state(state)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
