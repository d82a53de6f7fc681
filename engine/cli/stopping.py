"""Ctrl-C, SIGTERM and a terminal that hangs up ask a run to finish what is in flight; a
second one ends it at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Iterator[Event]:
    """An event that the first signal sets; the second raises KeyboardInterrupt.

    A signal that is ignored, as ``nohup`` has it, stays so. For the main thread, which alone
    may handle signals.

    Args:
        say: tells a person; must not raise, because a signal may come anywhere.
    """
    stop = Event()

    def handle(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say("Finishing what is in flight; interrupt again to stop at once.")

    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
