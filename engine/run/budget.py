"""One budget of bytes for all items in flight: the only back-pressure of a run.

Taken when an item is about to be loaded, given back when its rows are committed, so it
cannot deadlock: nothing that holds a part of it ever waits for more.
"""

from collections.abc import Callable
from threading import Condition, Event

POLL = 0.2  # seconds after which a waiting thread looks whether the run is to stop


class Budget:
    """``limit`` bytes that threads share; nobody is let in once ``stop`` is set.

    Attributes:
        limit: bytes.
        used: bytes taken now. What a picture takes is known only once it is decoded, so
            ``correct`` may lift this above the limit; nobody is let in until it is below.
    """

    def __init__(self, limit: int, stop: Event):
        self.limit = limit
        self.stop = stop
        self.used = 0
        self._changed = Condition()

    def take(self, amount: int, on_wait: Callable[[bool], None] = lambda waits: None) -> bool:
        """Wait until ``amount`` fits, or nothing else is taken; False if the run is to stop.

        Args:
            on_wait: called with True before waiting and with False afterwards.
        """
        with self._changed:
            if not self._fits(amount):
                on_wait(True)
                while not self._changed.wait_for(lambda: self._fits(amount), POLL):
                    pass
                on_wait(False)
            if self.stop.is_set():
                return False
            self.used += amount
            return True

    def correct(self, before: int, after: int) -> None:
        """What was taken as ``before`` turned out to be ``after``; never waits."""
        with self._changed:
            self.used += after - before
            self._changed.notify_all()

    def give(self, amount: int) -> None:
        """Give back what was taken."""
        self.correct(amount, 0)

    def _fits(self, amount: int) -> bool:
        return self.stop.is_set() or self.used == 0 or self.used + amount <= self.limit
