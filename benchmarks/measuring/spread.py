"""The rule of statistics that every timing here follows.

Things that are compared take turns in one process, after calls that do not count; every other
turn goes backwards, since who comes second pays for what the first one left. What is told is the
median and the spread; a ratio is made within each turn, so that a machine whose speed drifts
cannot make one. A ratio whose spread holds 1 is no difference, and says so; so does a figure
whose spread is wide.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from medclipsam.engine.errors import BackendError

NOISY = 0.25  # a spread of this share of the median is said to be wide
SHORT = 1.0  # seconds; a shorter call feels what the one before it has left in the caches
AGAIN = 20  # times the turns that are wanted, the most that are taken where some are disturbed


@dataclass(frozen=True)
class Spread:
    """A figure that was measured several times.

    Attributes:
        median: of all.
        low, high: the 5th and the 95th percentile; of up to twenty, the least and the largest.
        count: how often it was measured.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Of at least one value."""
        low = np.quantile(values, 0.05, method="lower")
        high = np.quantile(values, 0.95, method="higher")
        return cls(float(np.median(values)), float(low), float(high), len(values))

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """What ``to_json`` made."""
        return cls(found["median"], found["low"], found["high"], found["count"])

    def to_json(self, digits: int = 4) -> dict[str, Any]:
        """Plain values with so many significant digits."""
        figures = {"median": self.median, "low": self.low, "high": self.high}
        rounded = {name: float(f"{value:.{digits}g}") for name, value in figures.items()}
        return {**rounded, "count": self.count}

    def scaled(self, factor: float) -> Self:
        """The same in another unit."""
        return type(self)(factor * self.median, factor * self.low, factor * self.high, self.count)

    @property
    def noisy(self) -> bool:
        """Whether the spread is wide."""
        return self.high - self.low > NOISY * abs(self.median)

    def show(self, digits: int = 2, once: str = " (measured once)", noisy: str = " (noisy)") -> str:
        """``4.00 [3.33, 5.00]``, and what must be said beside it."""
        if self.count == 1:
            return f"{self.median:.{digits}f}{once}"
        text = f"{self.median:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return text + (noisy if self.noisy else "")


class Ratio(Spread):
    """How many times as fast: a ratio that was made within each turn."""

    @property
    def sure(self) -> bool:
        """Measured more than once, and each time on the same side of 1."""
        return self.count > 1 and (self.low > 1 or self.high < 1)

    def show(self, digits: int = 2, once: str = " (measured once)", noisy: str = " (noisy)") -> str:
        """``1.78× [1.70, 1.85]``, and that it is no difference where it is none."""
        if self.count == 1:
            return f"{self.median:.{digits}f}×{once}"
        text = f"{self.median:.{digits}f}× [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        if not self.sure:
            return f"{text}: no difference within the spread"
        return text + (noisy if self.noisy else "")


@dataclass(frozen=True)
class Turns:
    """Seconds of each thing, turn by turn.

    Attributes:
        seconds: name → seconds; of all names as many, and the n-th of all are of one turn.
        disturbed: turns that did not count.
    """

    seconds: dict[str, list[float]]
    disturbed: int = 0

    def spread(self, name: str) -> Spread:
        """Seconds of one."""
        return Spread.of(self.seconds[name])

    def rate(self, name: str, items: float) -> Spread:
        """Items per second of one, which takes ``items`` in each turn."""
        return Spread.of([items / seconds for seconds in self.seconds[name]])

    def times(self, name: str, other: str) -> Ratio:
        """How many times as fast as ``other`` is ``name``."""
        pairs = zip(self.seconds[other], self.seconds[name], strict=True)
        return Ratio.of([theirs / own for theirs, own in pairs])


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    turns: int,
    warm_up: int = 1,
    patience: float = 0.0,
    limit: float = math.inf,
    enough: Callable[[Turns], bool] = lambda turns: False,
    short: float = SHORT,
    foreign: Callable[[], float] | None = None,
    most: float = 0.05,
) -> Turns:
    """Let all calls take turns.

    Args:
        turns: how many, at least.
        warm_up: calls of each that do not count, before the first turn.
        patience: go on until so many seconds are over.
        limit: begin no further turn that would end later than after so many seconds, judged by
            the longest so far.
        enough: asked after each turn whether what was seen so far says all.
        short: a call of fewer seconds is made three times in its turn, of which the first does
            not count.
        foreign: seconds of the cores' time that went to others so far. A turn that has lost more
            than the share ``most`` of it is taken again.

    Raises:
        BackendError: other programs keep the machine busy.
    """
    for _ in range(warm_up):
        for call in calls.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    kept, disturbed, longest, started = 0, 0, 0.0, time.perf_counter()
    while kept < turns or time.perf_counter() - started < patience:
        begun = time.perf_counter()
        if kept and (begun - started + longest > limit or enough(Turns(seconds))):
            break
        before = foreign() if foreign else 0.0
        turn = _take_turn(calls, kept % 2 == 1, short)
        spent = time.perf_counter() - begun
        lost = foreign() - before if foreign else 0.0
        longest = max(longest, spent)
        if lost <= most * spent:
            kept += 1
            for name, took in turn.items():
                seconds[name].append(took)
        elif (disturbed := disturbed + 1) > AGAIN * turns:
            raise BackendError("other programs keep the cores busy; stop them and measure again")
    return Turns(seconds, disturbed)


def _take_turn(
    calls: Mapping[str, Callable[[], object]], backwards: bool, short: float
) -> dict[str, float]:
    seconds = {}
    for name, call in list(calls.items())[:: -1 if backwards else 1]:
        seconds[name] = clock(call)
        if seconds[name] < short:
            seconds[name] = (clock(call) + clock(call)) / 2
    return seconds


def clock(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
