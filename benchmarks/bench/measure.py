"""Stages alone and whole runs over the same images, in turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch

from medclipsam.benchmarks.bench.sample import Source
from medclipsam.benchmarks.bench.stages import ONCE, Part, Pass
from medclipsam.benchmarks.bench.watch import EnergyMeters, Watched, watch
from medclipsam.benchmarks.measuring.spread import Turns, take_turns
from medclipsam.engine.archive import Archive
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.run.runner import RunSummary, run
from medclipsam.engine.types import Prompts

PILOT, PATIENCE = 10, 15.0  # items tried first, and seconds after which no more of them are
TURNS, FEW = 5, 3  # wanted, and taken where images are dear
LONG = 10.0  # seconds that a run should take, so that its start weighs little
MOST = 400  # images of a turn
PIXELS = 200 << 20  # that a pass may hold
START = 1.0  # seconds, about, that a run takes beside its images

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Pilot:
    """What a few images cost.

    Attributes:
        seconds: per image, all stages one after the other.
        images: per item.
        pixels: per image.
    """

    seconds: float
    images: float
    pixels: float


@dataclass
class Measured:
    """What was seen in all turns.

    Attributes:
        turns: seconds of ``stages`` and of ``run``.
        images, shown, unreadable: of the sample: frames, those that may show what is asked, and
            items that cannot be read.
        items: of the sample.
        parts: per turn, stage → what it took alone.
        summaries, watched: per turn, of the run.
    """

    turns: Turns
    items: int
    images: int = 0
    shown: int = 0
    unreadable: int = 0
    parts: list[dict[str, Part]] = field(default_factory=list)
    summaries: list[RunSummary] = field(default_factory=list)
    watched: list[Watched] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """An engine at work on samples of one source.

    Attributes:
        scratch: folder for runs, on the disk that is to be measured.
        tell: what is done now.
    """

    engine: Engine
    source: Source
    prompts: Prompts
    scratch: Path
    meters: EnergyMeters
    tell: Tell
    _numbers: Iterator[int] = field(default_factory=count)

    def try_few(self) -> Pilot:
        """Kernels are compiled, models warmed up, and the time is taken.

        Where an image is so dear that compiling weighs little, one has to do.

        Raises:
            ConfigError: none of the first images can be read.
        """
        self.tell("first images")
        items, found = 1, self._pass(self.source.take(1))
        if _seconds(found.parts) < PATIENCE:
            found = self._pass(self.source.take(1))
            if _seconds(found.parts) * PILOT < PATIENCE:
                items = min(PILOT, self.source.entries)
                found = self._pass(self.source.take(items))
            self.label(self.engine, self.source.take(items))  # a run's own first time
        _require_images(found.images, items)
        each = _seconds(found.parts) / found.images
        return Pilot(each, found.images / items, found.pixels / found.images)

    def measure(self, pilot: Pilot, budget: float) -> Measured:
        """As many turns and images as ``budget`` seconds allow."""
        images, turns = plan(pilot, budget)
        items = min(self.source.entries, max(1, round(images / pilot.images)))
        sample = self.source.take(items)
        found = Measured(Turns({}), items)

        def walk() -> None:
            self.tell("every stage alone")
            way = self._pass(sample)
            found.images, found.shown, found.unreadable = way.images, way.shown, way.unreadable
            found.parts.append(way.parts)

        def label() -> None:
            self.tell("whole runs")
            with watch(self.engine.pipeline.encoder.device, self.meters) as watched:
                found.summaries.append(self.label(self.engine, sample))
            found.watched.append(watched)

        calls = {"stages": walk, "run": label}
        found.turns = take_turns(calls, turns, warm_up=0, limit=budget, short=0)
        _require_images(found.images, items)
        return found

    def label(self, engine: Engine, archive: Archive) -> RunSummary:
        """One run, into a folder of its own; removing it would take time, too."""
        torch.set_num_threads(engine.threads)
        return run(engine, archive, self.prompts, self.scratch / f"run-{next(self._numbers)}")

    def _pass(self, archive: Archive) -> Pass:
        way = Pass(self.engine, archive, self.prompts, self.scratch / "pass")
        way.run()
        return way


def _require_images(images: int, items: int) -> None:
    if not images:
        raise ConfigError(
            f"none of {items} items of the archive can be read; 'medclipsam run' says why"
        )


def plan(pilot: Pilot, budget: float, both: int = 2) -> tuple[int, int]:
    """Images of a turn, and turns, that fit into so many seconds.

    Args:
        both: how often each image is worked on in a turn.
    """
    room = max(1, min(MOST, math.floor(PIXELS / pilot.pixels)))
    for turns in (TURNS, FEW, 1):
        run = budget / turns / both  # seconds
        if run >= LONG and run >= START + 2 * pilot.seconds:
            break
    return min(room, max(1, int((run - START) / pilot.seconds))), turns


def _seconds(parts: dict[str, Part]) -> float:
    return sum(part.seconds for stage, part in parts.items() if stage not in ONCE)
