"""The guard says what is below its floor, and only if it stays there."""

import pytest
from click.testing import CliRunner

from medclipsam.benchmarks.guard import __main__ as guard
from medclipsam.benchmarks.guard.__main__ import ATTEMPTS, check
from medclipsam.benchmarks.guard.guards import GUARDS, Guard
from medclipsam.benchmarks.measuring.spread import Ratio


def scripted(*ratios, name="it"):
    """A guard that finds one ratio after the other."""
    left = list(ratios)

    class Scripted(Guard):
        def measure(self):
            return Ratio.of([left.pop(0)] * 2)

    return Scripted(name, lambda stack: {}, 2.0)


@pytest.mark.parametrize(
    ("ratios", "passes"),
    [([2.0], True), ([1.9, 2.1], True), ([1.0, 1.0, 2.0], True), ([1.9] * ATTEMPTS, False)],
)
def test_a_ratio_is_measured_again_before_it_counts(ratios, passes):
    assert check(scripted(*ratios)) is passes


def test_what_is_slower_is_named(monkeypatch):
    slow, fast = scripted(*[1.0] * ATTEMPTS, name="snail"), scripted(3.0, name="hare")
    monkeypatch.setattr(guard, "GUARDS", (slow, fast))
    done = CliRunner().invoke(guard.main)
    assert done.exit_code == 1 and "slower than it was: snail" in done.output
    monkeypatch.setattr(guard, "GUARDS", (scripted(3.0),))
    assert CliRunner().invoke(guard.main).exit_code == 0


def test_all_that_must_stay_fast_is_guarded():
    names = " ".join(each.name for each in GUARDS)
    for part in ("CRF", "SAM encoder", "rows", "runner"):
        assert part in names
    assert all(each.floor > 0.5 for each in GUARDS)
