"""Several processes on one task, as torchrun starts them; a single process is a world of one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

_PATIENCE = timedelta(days=7)
"""How long a process waits for one that still answers."""


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
    """Joins the processes that torchrun started, if it did. Pictures and answers travel through gloo."""
    if not dist.is_torchelastic_launched():
        return World()
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=_PATIENCE)
    return World(dist.get_rank(), dist.get_world_size(), dist.get_node_local_rank(0))


def leave_world() -> None:
    """Takes leave of the other processes."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
