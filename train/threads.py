"""Threads: how many compute, and work on a few items ahead of the one that is asked for."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def use_threads(threads: int | None) -> int:
    """Let torch compute with so many threads, or with all that are to be had; returns how many."""
    count = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    return count


def work_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Iterator[Result]:
    """What ``work`` makes of each item, in the order of the items.

    Args:
        threads: that work meanwhile.
        ahead: items begun or done beyond the one that is given out.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
