"""One process a GPU, as torchrun starts them. Refuses to know what is trained.

Without torchrun there is one rank, and every function here is the identity.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from medclipsam.engine.backends import open_device

PATIENCE = timedelta(hours=4)  # the first rank decodes while the others wait


@dataclass(frozen=True)
class Ranks:
    """This process among all.

    Attributes:
        rank: from 0; the first one writes and speaks.
        count: of processes.
        device: of this process.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all ranks, as many of each, in the order of ranks: (B, …) → (count·B, …)."""
        if self.count == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.count)]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def own(self, rows: Tensor) -> Tensor:
        """This rank's part of what belongs to all: (count·B, …) → (B, …)."""
        return rows.chunk(self.count)[self.rank]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up the gradients of all ranks, in each of them."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any rank; all must ask."""
        if self.count == 1:
            return flag
        told = torch.tensor(float(flag), device=self.device)
        distributed.all_reduce(told)
        return bool(told > 0)

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def open_ranks(device: str = "auto") -> Iterator[Ranks]:
    """The ranks that torchrun started, or this process alone.

    Args:
        device: as of ``open_device``; with several ranks a CUDA device is this rank's own.

    Raises:
        BackendError: the device does not exist.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(0, 1, open_device(device))
        return
    where = open_device(device)
    if where.type == "cuda":
        where = open_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(where)
    backend = "nccl" if where.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), count, where)
    finally:
        distributed.destroy_process_group()
