"""CUDA graphs: hundreds of launches as one, for work on fixed shapes.

A graph replays what was launched while it was captured, at the same addresses. So inputs are
copied into tensors that it holds, and outputs out of them.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

WARM_UP = 2  # runs before the capture, in which libraries set themselves up


class SideStream:
    """A CUDA stream beside torch's current one: the default stream cannot be captured.

    Memory stays safe without further care: whatever is freed after ``entered`` is given out again
    only to work that waits for this stream.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)

    @property
    def handle(self) -> int:
        return self._stream.cuda_stream

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The stream is current, after all that was, and before all that will be."""
        before = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(before)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            before.wait_stream(self._stream)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """``run`` as a CUDA graph.

        Raises:
            RuntimeError: something in it cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        mode = "thread_local"  # other threads go on allocating
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode=mode):
            run()
        return graph.replay


class Captured:
    """A function of tensors of one shape as a CUDA graph; calls from threads take turns.

    The first call captures it. What cannot be captured runs as it is from then on, and a warning
    says why.

    Args:
        run: tensors on ``device`` → a tensor or a tuple of tensors.
        name: for the warning.
    """

    def __init__(self, run: Callable[..., Any], device: torch.device, name: str):
        self._run, self._name, self._lock = run, name, threading.Lock()
        self._stream = SideStream(device)
        self._launch: Callable[[], None] | None = None
        self._refused = False
        self._held: list[Tensor] = []
        self._made: list[Tensor] = []
        self._single = True

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> Any:
        with self._lock:
            if self._launch is None and not self._refused:
                self._capture(inputs)
            if self._launch is None:
                return self._run(*inputs)
            with self._stream.entered():
                for held, tensor in zip(self._held, inputs, strict=True):
                    held.copy_(tensor)
                self._launch()
                outputs = [made.clone() for made in self._made]
        return outputs[0] if self._single else tuple(outputs)

    def _capture(self, inputs: Sequence[Tensor]) -> None:
        whole = torch.contiguous_format  # whatever the layout of the first inputs
        self._held = [torch.empty_like(t, memory_format=whole).copy_(t) for t in inputs]
        try:
            with self._stream.entered():
                for _ in range(WARM_UP):
                    self._compute()
            self._launch = self._stream.capture(self._compute)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as exc:
            log.warning("%s runs without a CUDA graph, it cannot be captured: %s", self._name, exc)
            self._refused, self._held, self._made = True, [], []

    def _compute(self) -> None:
        found = self._run(*self._held)
        self._single = isinstance(found, Tensor)
        self._made = [found] if self._single else list(found)
