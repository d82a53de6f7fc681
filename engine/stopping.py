"""Ctrl-C and SIGTERM ask a run to finish what is in flight; a second one ends it at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Iterator[Event]:
    """An event that the first signal sets; the second raises KeyboardInterrupt.

    For the main thread, which alone may handle signals.
    """
    stop = Event()

    def handle(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say("Finishing what is in flight; interrupt again to stop at once.")

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
