"""A batch on the CPU as small parts side by side, one core each.

torch's own threads share every single operation and meet after each: small operations gain
little, and when anything else wants a core (a CRF, a decoder, another program), all wait for
the slowest at every meeting. Parts of a batch need not meet. Their size is fixed, so that
results do not depend on the number of cores.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

PARTS = {"score": 8, "sam_encoder": 1, "sam_decoder": 4}  # rows, images, boxes of a part


class Lanes:
    """A graph that splits its inputs along their first axis.

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
        if len(parts) == 1:
            return self._run(*inputs)
        results = list(self._lanes().map(lambda part: self._run(*part), parts))
        if isinstance(results[0], tuple):
            return tuple(torch.cat(each) for each in zip(*results, strict=True))
        return torch.cat(results)

    def _lanes(self) -> ThreadPoolExecutor:
        if self._pool is None or self._owner != os.getpid():  # threads do not survive a fork
            self._owner = os.getpid()
            self._pool = ThreadPoolExecutor(self._count, "lane", torch.set_num_threads, (1,))
        return self._pool
