"""Between host and device without waiting: copies through pinned memory, and events.

Only ``Handover.take`` waits for a device, and only if the answer is not there yet. On a CPU
nothing is copied, and everything is there at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes, of every part of a packed copy: any type can be viewed there


def upload(host: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on ``device``; the copy is queued there, and nobody waits for it.

    Pinned memory comes from torch's caching allocator, which gives it out again only after the
    copies from it are done.
    """
    if device.type == "cpu":
        return host
    staged = torch.empty(host.shape, dtype=host.dtype, pin_memory=True)
    return send(staged.copy_(host), device)


def stage(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros on the CPU to be filled and given to ``send``, pinned where there is a device."""
    return torch.zeros(shape, dtype=dtype, pin_memory=device.type != "cpu")


def send(staged: Tensor, device: torch.device) -> Tensor:
    """Pinned memory on ``device``, as by ``upload``, without a copy on the CPU."""
    return staged.to(device, non_blocking=True)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # of use in any mode
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """float32 (N,) on ``device``; uploaded once."""
    return upload(torch.tensor(values), device)


class Handover:
    """Tensors of one device on their way to the host: packed into one copy, then an event.

    Args:
        device: where they lie.
        tensors: any types and shapes; none of them make it a mark of how far the device has come.
    """

    def __init__(self, device: torch.device, tensors: Sequence[Tensor] = ()):
        self._tensors = tuple(tensors)
        self._host: Tensor | None = None
        self.event: torch.cuda.Event | None = None
        if device.type == "cpu":
            return
        if self._tensors:
            packed = pack(self._tensors)
            self._host = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=True)
            self._host.copy_(packed, non_blocking=True)
        # a blocking event: who waits leaves its core to others
        self.event = torch.cuda.Event(enable_timing=True, blocking=True)
        self.event.record(torch.cuda.current_stream(device))

    @property
    def ready(self) -> bool:
        """Whether ``take`` would not wait."""
        return self.event is None or self.event.query()

    def since(self, mark: Handover) -> float | None:
        """Seconds by the device's clock from an earlier one to this one, both taken; None on a
        CPU, which has no other clock than ours."""
        if self.event is None or mark.event is None:
            return None
        return mark.event.elapsed_time(self.event) / 1000

    def take(self) -> tuple[Tensor, ...]:
        """The tensors on the CPU.

        Raises:
            RuntimeError: something that was queued before them failed on the device.
        """
        if self.event is not None:
            self.event.synchronize()
        if self._host is None:
            return self._tensors
        parts = unpack(self._host, self._tensors)
        return tuple(part.clone() for part in parts)  # so that pinned memory goes back


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """uint8 (N,): the bytes of all tensors, each from a multiple of ``ALIGNMENT`` on."""
    sizes = [_padded(tensor.numel() * tensor.element_size()) for tensor in tensors]
    packed = torch.empty(sum(sizes), dtype=torch.uint8, device=tensors[0].device)
    for part, tensor in zip(unpack(packed, tensors), tensors, strict=True):
        part.copy_(tensor)
    return packed


def unpack(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The parts of what ``pack`` gave, as views of the types and shapes of ``like``."""
    parts, at = [], 0
    for tensor in like:
        size = tensor.numel() * tensor.element_size()
        parts.append(packed[at : at + size].view(tensor.dtype).view(tensor.shape))
        at += _padded(size)
    return parts


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Launched:
    """Work that a device has been given.

    Attributes:
        tensors: its results, on the device.
        land: to be called with them on the CPU.
    """

    tensors: tuple[Tensor, ...]
    land: Callable[..., None]


def fetch(device: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of ``device`` on the CPU; waits for them."""
    return Handover(device, tensors).take()
