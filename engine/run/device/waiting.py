"""What waits for a stage of the device, first come, first served."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from medclipsam.engine.run.meter import Meter

T = TypeVar("T")


class Waiting(Generic[T]):
    """Things in a row; the meter counts them."""

    def __init__(self, stage: str, meter: Meter):
        self._stage, self._meter = stage, meter
        self._things: deque[T] = deque()

    def __len__(self) -> int:
        return len(self._things)

    def __iter__(self) -> Iterator[T]:
        return iter(self._things)

    @property
    def first(self) -> T:
        """The one that waits longest."""
        return self._things[0]

    def put(self, thing: T) -> None:
        """Let it wait."""
        self._things.append(thing)
        self._meter.wait(self._stage, 1)

    def take(self, most: int) -> list[T]:
        """The first ones, at most so many."""
        taken = [self._things.popleft() for _ in range(min(most, len(self._things)))]
        self._meter.wait(self._stage, -len(taken))
        return taken

    def keep(self, wanted: Callable[[T], bool]) -> None:
        """Drop all others."""
        before = len(self._things)
        self._things = deque(filter(wanted, self._things))
        self._meter.wait(self._stage, len(self._things) - before)
