"""What Python's switch interval costs a thread that launches work beside one in plain Python.

A launch lets go of the interpreter's lock for some microseconds. ``usleep``, called through
ctypes, stands in for it: it lets go of the lock, too, and needs no device.

    python -m medclipsam.benchmarks.switching
"""

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from medclipsam.benchmarks.measuring.result import RESULTS, open_facts, publish
from medclipsam.benchmarks.measuring.spread import Spread, take_turns

LAUNCHES = 450  # of one forward of a ViT-B/16 in 16 bits
INTERVALS = (5e-3, 1e-3, 5e-4, 1e-4, 5e-5)  # seconds; the first is Python's own


def launch_all() -> None:
    """``LAUNCHES`` calls that let go of the lock."""
    library = ctypes.CDLL(None)
    for _ in range(LAUNCHES):
        library.usleep(1)


def count(seconds: float) -> int:
    """Rounds of a loop in plain Python."""
    rounds, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        rounds += 1
    return rounds


@contextmanager
def switching(interval: float) -> Iterator[None]:
    """Let Python switch threads so often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def beside(interval: float) -> None:
    """``launch_all`` beside a thread in plain Python."""
    ended = threading.Event()

    def compute() -> None:
        while not ended.is_set():
            count(1e-3)

    with switching(interval):
        thread = threading.Thread(target=compute)
        thread.start()
        try:
            launch_all()
        finally:
            ended.set()
            thread.join()


def shared(interval: float) -> int:
    """Rounds of two threads in plain Python that share the lock for a second."""
    found: list[int] = []
    with switching(interval):
        threads = [threading.Thread(target=lambda: found.append(count(1.0))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return sum(found)


@click.command()
@click.option("--turns", default=5, show_default=True)
@RESULTS
def main(turns: int, out: Path) -> None:
    """Writes switching.md and switching.json."""
    calls: dict[str, Callable[[], object]] = {"alone": launch_all}
    calls |= {str(interval): partial(beside, interval) for interval in INTERVALS}
    found = take_turns(calls, turns)
    rounds: dict[float, list[int]] = {interval: [] for interval in INTERVALS}
    for _ in range(turns):
        for interval in INTERVALS:
            rounds[interval].append(shared(interval))
    rows = [
        {
            "interval_ms": round(1e3 * interval, 3),
            "seconds": found.spread(str(interval)).to_json(),
            "rounds": float(f"{np.median(rounds[interval]):.3g}"),
        }
        for interval in INTERVALS
    ]
    alone = found.spread("alone").to_json()
    facts = {**open_facts(), "launches": LAUNCHES, "alone": alone, "intervals": rows}
    publish(out, "switching", facts, to_markdown)


def to_markdown(facts: Mapping[str, Any]) -> str:
    """A row an interval."""

    def ms(seconds: Mapping[str, Any]) -> str:
        return Spread.from_json(seconds).scaled(1e3).show(1)

    lines = [
        "Calls that let go of the interpreter's lock for some microseconds stand in for launches; "
        "no device was used.\n",
        f"{facts['launches']} launches alone: {ms(facts['alone'])} ms\n",
        "| switch interval | launches beside a Python thread, ms | rounds of two Python threads |",
        "| ---: | ---: | ---: |",
    ]
    for row in facts["intervals"]:
        lines.append(f"| {row['interval_ms']:g} ms | {ms(row['seconds'])} | {row['rounds']:.3g} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
