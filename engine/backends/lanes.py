"""Batches of one shape, whatever comes; on the CPU as small parts side by side, one core each.

Arithmetic chooses its kernels by shape and layout, so that a row's bytes would depend on how many
rows stand beside it: what is missing to a full batch is filled up, and cut off the result.

torch's own threads share every single operation and meet after each: small operations gain
little, and when anything else wants a core (a CRF, a decoder, another program), all wait for
the slowest at every meeting. Parts of a batch need not meet. Their size is fixed, so that
results do not depend on the number of cores, and only the last part is filled up.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

PARTS = {"score": 8, "sam_encoder": 1, "sam_decoder": 4}  # rows, images, boxes of a part


class Full:
    """A graph that always runs with ``batch`` contiguous rows, and takes any number up to that."""

    def __init__(self, run: Callable[..., Any], batch: int):
        self._run, self._batch = run, batch

    def __call__(self, *inputs: Tensor) -> Any:
        count = len(inputs[0])
        found = self._run(*(fill(each, self._batch) for each in inputs))
        return cut(found, count) if count < self._batch else found


def fill(rows: Tensor, count: int) -> Tensor:
    """``rows`` (N, …) with the first one repeated behind them, up to ``count``; contiguous, so that
    a full batch has no other layout than one that was filled."""
    missing = count - len(rows)
    if missing > 0:
        rows = torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])])
    return rows.contiguous()


def cut(found: Any, count: int) -> Any:
    """The first ``count`` rows of a tensor, or of each of a tuple."""
    return tuple(each[:count] for each in found) if isinstance(found, tuple) else found[:count]


class Lanes:
    """A graph that splits its inputs along their first axis into full parts.

    Args:
        run: the graph: tensors → a tensor or a tuple of tensors.
        part: rows of a part.
        count: parts at a time.
    """

    def __init__(self, run: Callable[..., Any], part: int, count: int):
        self._run, self._part, self._count = run, part, count
        self._pool: ThreadPoolExecutor | None = None
        self._owner = 0

    def __call__(self, *inputs: Tensor) -> Any:
        parts = list(zip(*(each.split(self._part) for each in inputs), strict=True))
        run = Full(self._run, self._part)
        if len(parts) == 1:
            return run(*inputs)
        results = list(self._lanes().map(lambda part: run(*part), parts))
        if isinstance(results[0], tuple):
            return tuple(torch.cat(each) for each in zip(*results, strict=True))
        return torch.cat(results)

    def _lanes(self) -> ThreadPoolExecutor:
        if self._pool is None or self._owner != os.getpid():  # threads do not survive a fork
            self._owner = os.getpid()
            self._pool = ThreadPoolExecutor(self._count, "lane", torch.set_num_threads, (1,))
        return self._pool
