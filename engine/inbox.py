"""The one way from other threads to the device executor."""

from __future__ import annotations

import queue
from collections.abc import Callable
from functools import partial
from threading import Lock


class Inbox:
    """What other threads bring to the executor, and whether more is on its way.

    ``begin`` says that something has started which may yet bring work, ``end`` that it is
    over. While nothing of the kind goes on, ``moving`` is 0: parts of batches can be run.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = Lock()
        self.moving = 0
        self.closed = False

    def begin(self) -> None:
        with self._lock:
            self.moving += 1

    def end(self, event: Callable[[], None] | None = None) -> None:
        """Something is over; ``event`` is run by the executor."""
        self._queue.put(event)
        with self._lock:
            self.moving -= 1
        self._queue.put(None)  # wakes an executor that saw the count before

    def close(self) -> None:
        """Nothing more will begin but what the executor itself begins."""
        self.closed = True
        self._queue.put(None)

    def fail(self, error: BaseException) -> None:
        """Let the executor raise ``error``."""
        self._queue.put(partial(_raise, error))

    def drain(self, block: bool, timeout: float | None = None) -> bool:
        """Run all events that are there; whether there was any.

        Args:
            block: wait for a first one, for at most ``timeout`` seconds.
        """
        found = False
        try:
            event = self._queue.get(block, timeout)
            while True:
                found = True
                if event:
                    event()
                event = self._queue.get_nowait()
        except queue.Empty:
            return found


def _raise(error: BaseException) -> None:
    raise error
