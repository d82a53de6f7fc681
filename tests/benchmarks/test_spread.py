"""The rule of statistics: turns, medians, spreads, and what is said of them."""

import itertools
import statistics

import numpy as np
import pytest

from medclipsam.benchmarks.measuring import spread
from medclipsam.benchmarks.measuring.spread import Ratio, Spread, Turns, take_turns
from medclipsam.engine.errors import BackendError


class Clock:
    """Time that passes only where a call takes it; it stands in for ``time``."""

    def __init__(self):
        self.now, self.log = 100.0, []

    def perf_counter(self):
        return self.now

    def call(self, name, *seconds):
        """A call that takes each of ``seconds`` in turn, and the last one for ever."""
        left = list(seconds)

        def run():
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(spread, "time", made)
    return made


@pytest.mark.parametrize("count", [1, 2, 3, 20, 21, 200])
def test_median_and_percentiles(count):
    values = list(np.random.default_rng(count).normal(5, 1, count))
    found = Spread.of(values)
    ordered = sorted(values)
    assert found.median == pytest.approx(statistics.median(values)) and found.count == count
    if count <= 20:
        assert (found.low, found.high) == (ordered[0], ordered[-1])
    else:
        outside = sum(v < found.low or v > found.high for v in values)
        assert 0 < outside <= 0.1 * count and {found.low, found.high} <= set(values)


def test_what_is_said_of_a_spread():
    assert Spread.of([4.0, 4.1, 4.2]).show() == "4.10 [4.00, 4.20]"
    assert Spread.of([3.0, 4.0, 5.0]).show(1) == "4.0 [3.0, 5.0] (noisy)"
    assert Spread.of([3.0]).show() == "3.00 (measured once)"
    assert Ratio.of([1.7, 1.78, 1.85]).show() == "1.78× [1.70, 1.85]"
    assert Ratio.of([0.99, 1.2]).show() == "1.09× [0.99, 1.20]: no difference within the spread"
    assert Ratio.of([2.0, 3.0]).show(1) == "2.5× [2.0, 3.0] (noisy)"
    assert Ratio.of([2.0]).show() == "2.00× (measured once)"


@pytest.mark.parametrize(
    ("values", "sure"),
    [
        ([1.1, 1.2], True),
        ([0.8, 0.9], True),
        ([0.9, 1.1], False),
        ([1.0, 1.2], False),
        ([2], False),
    ],
)
def test_when_a_ratio_is_sure(values, sure):
    assert Ratio.of(values).sure is sure


def test_a_spread_comes_back_from_its_json():
    found = Ratio.of([1.23456789, 2.5, 3.0])
    again = Ratio.from_json(found.to_json(6))
    assert type(again) is Ratio and again == Ratio(2.5, 1.23457, 3.0, 3)
    assert found.scaled(2).median == 5 and type(found.scaled(2)) is Ratio


def test_turns_alternate_and_the_warm_up_does_not_count(clock):
    calls = {"a": clock.call("a", 50.0, 2.0), "b": clock.call("b", 90.0, 4.0)}
    found = take_turns(calls, 3)
    assert "".join(clock.log) == "ab" + "ab" + "ba" + "ab"
    assert found.seconds == {"a": [2.0] * 3, "b": [4.0] * 3}
    assert found.times("a", "b").median == 2 and found.rate("b", 8).median == 2


def test_a_short_call_is_repeated_and_its_first_time_does_not_count(clock):
    calls = {"short": clock.call("s", 0.9, 0.1, 0.3, 0.9), "long": clock.call("l", 2.0)}
    found = take_turns(calls, 1, warm_up=0)
    assert found.seconds == {"short": [pytest.approx(0.2)], "long": [2.0]}
    assert "".join(clock.log) == "sssl"
    assert take_turns({"s": clock.call("s", 0.1)}, 1, 0, short=0).seconds["s"] == [
        pytest.approx(0.1)
    ]


def test_patience_takes_more_turns_and_a_limit_fewer(clock):
    assert len(take_turns({"a": clock.call("a", 3.0)}, 2, patience=10).seconds["a"]) == 4
    assert len(take_turns({"a": clock.call("a", 3.0)}, 9, limit=10).seconds["a"]) == 3
    assert len(take_turns({"a": clock.call("a", 30.0)}, 9, limit=10).seconds["a"]) == 1


def test_it_ends_when_enough_is_known(clock):
    seen = []

    def enough(turns):
        seen.append(list(turns.seconds["a"]))
        return len(seen) == 2

    take_turns({"a": clock.call("a", 3.0)}, 9, enough=enough)
    assert seen == [[3.0], [3.0, 3.0]]


def test_a_drift_of_the_machine_makes_no_ratio(clock):
    """Each turn is twice as slow as the one before; means of all would say something else."""
    slow = [2.0 * 2**n for n in range(4)]
    calls = {"a": clock.call("a", *slow), "b": clock.call("b", *(3 * s for s in slow))}
    ratio = take_turns(calls, 4, warm_up=0).times("a", "b")
    assert ratio == Ratio(3.0, 3.0, 3.0, 4)


def test_a_disturbed_turn_is_taken_again(clock):
    lost = itertools.chain([0.0, 1.0, 1.0, 1.0], itertools.repeat(1.0))
    calls = {"a": clock.call("a", 7.0, 2.0)}
    found = take_turns(calls, 2, warm_up=0, foreign=lambda: next(lost))
    assert found == Turns({"a": [2.0, 2.0]}, disturbed=1)


def test_a_machine_that_is_always_busy_is_refused(clock):
    lost = itertools.count()
    with pytest.raises(BackendError, match="other programs keep the cores busy"):
        take_turns({"a": clock.call("a", 2.0)}, 2, foreign=lambda: next(lost))
