"""Frames through the models: one executor for the device, CPU threads beside it.

The executor touches no pixels, and waits for the device only where there is nothing else to do:
a step is launched, and landed when its answer has come (``device.flights``). It always takes the
most downstream batch that is full, so that images finish early and memory stays bounded. A part
of a batch is run, padded, only when nothing is on its way any more that could fill it. How frames
were grouped does not change a byte: batches have one shape and rows do not see each other.

Here is what every executor does; which steps there are and which comes next say
``device.zero_shot`` and ``unet.executor``.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event, Lock
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from medclipsam.engine.backends.faults import refuse_broken
from medclipsam.engine.errors import at_stage, stage_of
from medclipsam.engine.prompts import PromptTable
from medclipsam.engine.run.device.flights import Flights
from medclipsam.engine.run.hop import Hop
from medclipsam.engine.run.inbox import Inbox
from medclipsam.engine.run.meter import Meter
from medclipsam.engine.run.trial import Sample
from medclipsam.engine.run.work import Work
from medclipsam.engine.types import Prompts, Segmentation

FULL_SCALE = 65535  # of saliency kept as uint16
TOGETHER = 8  # frames that one task concludes
PATIENCE = 1.0  # seconds that a part of a batch waits for what is on its way

NO_MAP = np.empty((0, 0), np.float32)  # in the place of a map that is not kept

Step = Callable[[], None]
T = TypeVar("T")


@dataclass(eq=False)
class Frame:
    """One frame of an item between two stages."""

    work: Work
    index: int
    saliency: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def rgb(self) -> np.ndarray:
        assert self.work.image is not None
        return self.work.image.frames[self.index]


Conclusion = tuple[Frame, Callable[[], Step]]  # what is left to do for a frame


@dataclass(frozen=True)
class ExecutorContext:
    """What an executor works with, whatever its models.

    Attributes:
        fitters: CPU threads for fit_image.
        refiners: CPU threads for refine_mask.
        concluders: CPU threads for conclude, which bring nothing back.
        inbox: where loaded items and refined frames arrive.
        meter: where the time goes.
        done: called with each item whose frames are all through, or that failed; as the two below
            on the executor's thread or on one that concludes.
        failed: called with an item, the stage and the exception that it is given up for.
        passed: called with each stage that a frame has come through, right when it has.
        keep_saliency: keep maps as uint16 in ``Work.saliency``.
        keep_crf: keep ``Segmentation.crf_mask`` in ``Work.segments``.
    """

    fitters: Hop
    refiners: Hop
    concluders: Hop
    inbox: Inbox
    meter: Meter
    done: Callable[[Work], None]
    failed: Callable[[Work, str, Exception], None]
    passed: Callable[[str], None]
    keep_saliency: bool = False
    keep_crf: bool = False


class Executor(ABC):
    """Runs every device stage, on the thread that calls ``run``."""

    def __init__(self, context: ExecutorContext, device: torch.device):
        self.inbox, self.meter = context.inbox, context.meter
        self.done, self.failed, self.passed = context.done, context.failed, context.passed
        self.keep_saliency, self.keep_crf = context.keep_saliency, context.keep_crf
        self._fitters, self._refiners = context.fitters, context.refiners
        self._concluders = context.concluders
        self._fitting, self._refining = 0, 0  # frames with the CPU threads
        self._counting = Lock()  # items are counted down by the executor and by who concludes
        self._flights = Flights(device, self.meter, self.passed)
        self._loaded: deque[tuple[Work, int]] = deque()

    @abstractmethod
    def _next_step(self, moving: bool, room: bool) -> Step | None:
        """The scheduling policy.

        Args:
            moving: more may come which fills a batch.
            room: the device takes another step.
        """

    @abstractmethod
    def _lower_memory(self, stage: str) -> str:
        """Flags that make a stage need less of the device's memory than now, if there are any."""

    @property
    @abstractmethod
    def _queued(self) -> bool:
        """Whether a frame waits for any step."""

    @abstractmethod
    def _fit(self, work: Work, index: int) -> Step:
        """fit_image of a frame, on a CPU thread; the executor runs what it gives."""

    @abstractmethod
    def _segment_alone(self, frame: Frame) -> dict[str, Segmentation]:
        """All stages of one frame, one after the other."""

    def run(self, stop: Event) -> None:
        """Work until the inbox is closed and everything is done.

        Once ``stop`` is set, what was not begun is dropped, and what is still being read or
        listed is not waited for.
        """
        patient = True
        while True:
            closed, moving = self.inbox.look()
            news = self.inbox.drain(block=False)
            if stop.is_set():
                self._drop_unbegun()
                if not (self._queued or self._fitting or self._refining or self._flights):
                    return
            if self._flights.ready:
                step: Step | None = self._flights.land
            else:
                step = self._next_step(moving > 0 and patient, self._flights.room)
            if step:
                step()
                patient = True
            elif news:
                continue  # what a message has begun was not in the count
            elif self._flights:
                self._flights.land()  # nothing else to do but to wait for it
                patient = True
            elif closed and not moving and not self._queued:
                return
            else:
                start = time.perf_counter()
                queued = self._queued
                patient = self.inbox.drain(block=True, timeout=PATIENCE if queued else None)
                self.meter.rest(time.perf_counter() - start, queued)

    def load(self, work: Work) -> None:
        """Take an item that has been read; called by a message of the inbox."""
        if work.error is not None or work.image is None:
            self.done(work)
            return
        work.segments = [{} for _ in work.image.frames]
        work.missing = len(work.segments)
        self._loaded.append((work, 0))
        self.meter.wait("fit_image", len(work.segments))

    def _drop_unbegun(self) -> None:
        kept = [(work, index) for work, index in self._loaded if index]
        dropped = sum(work.missing for work, index in self._loaded if not index)
        self._loaded = deque(kept)
        if dropped:
            self.meter.wait("fit_image", -dropped)

    def _next_frame(self) -> tuple[Work, int] | None:
        """The next frame that was loaded; None if its item was given up meanwhile."""
        work, index = self._loaded[0]
        if index + 1 < len(work.segments):
            self._loaded[0] = (work, index + 1)
        else:
            self._loaded.popleft()
        self.meter.wait("fit_image", -1)
        if work.error is None:
            return work, index
        self._count_down(work)
        return None

    @contextmanager
    def _at(self, stage: str, items: int = 1, whole: bool = True) -> Iterator[None]:
        """Time a stage, and mark what it raises with its name.

        Args:
            whole: nothing of the stage comes afterwards, so that a frame has passed it.
        """
        with self.meter.work(stage, items), at_stage(stage):
            yield
        if whole:
            self.passed(stage)

    def _fit_next(self) -> None:
        """Let a CPU thread fit the next frame."""
        taken = self._next_frame()
        if taken is None:
            return
        work = taken[0]

        def fitted(then: Step) -> None:
            self._fitting -= 1
            then()

        self._fitting += 1
        fit = partial(self._aside, "fit_image", work, partial(self._fit, *taken))
        self._fitters.send(lambda: partial(fitted, fit()))

    def _refine(self, frame: Frame, refine: Callable[[], Step]) -> None:
        """Let a CPU thread refine a frame: it runs ``refine``, and the executor what that gives."""

        def refined(then: Step) -> None:
            self._refining -= 1
            then()

        self._refining += 1
        run = partial(self._aside, "refine_mask", frame.work, refine)
        self._refiners.send(lambda: partial(refined, run()))

    def _conclude(self, todo: Sequence[Conclusion]) -> None:
        """Let CPU threads do all that is left of frames, some at a time, since there is little to
        do for each. Nothing comes back: the executor may be busy for long on a CPU."""

        def conclude(part: Sequence[Conclusion]) -> None:
            for frame, run in part:
                self._aside("conclude", frame.work, run)()

        for start in range(0, len(todo), TOGETHER):
            part = todo[start : start + TOGETHER]
            self._concluders.send(partial(conclude, part), len(part))

    def _aside(self, stage: str, work: Work, compute: Callable[[], Step]) -> Step:
        """A stage on a CPU thread; an item that fails in it is given up by the executor."""
        try:
            with at_stage(stage):
                step = compute()
            self.passed(stage)
        except Exception as exc:
            step = partial(self._fail, work, exc)
        return step

    def _keep(self, frame: Frame, segments: dict[str, Segmentation]) -> None:
        """A frame is through: keep what is delivered of it."""
        if self.keep_saliency:
            frame.work.saliency[frame.index] = frame.saliency
        frame.work.segments[frame.index] = {
            label: replace(
                segment,
                saliency=NO_MAP,
                crf_mask=segment.crf_mask if self.keep_crf else NO_MAP > 0,
            )
            for label, segment in segments.items()
        }
        self._count_down(frame.work)

    def _one_by_one(self, frames: Sequence[Frame], exc: Exception) -> None:
        """Frames whose shared batch failed, each alone, to find the culprit."""
        refuse_broken(exc, self._lower_memory(stage_of(exc)))
        for frame in frames:
            try:
                segments = self._segment_alone(frame)
            except Exception as own:
                self._fail(frame.work, own)
                continue
            if self.keep_saliency:
                frame.saliency = {name: quantise(s.saliency) for name, s in segments.items()}
            self._keep(frame, segments)

    def _fail(self, work: Work, exc: Exception) -> None:
        """One frame of an item cannot be processed: the item is given up.

        Raises:
            MedclipsamError: it is no fault of the item.
        """
        refuse_broken(exc, self._lower_memory(stage_of(exc)))
        with self._counting:
            if work.error is None:
                self.failed(work, stage_of(exc), exc)
        self._count_down(work)

    def _count_down(self, work: Work) -> None:
        with self._counting:
            work.missing -= 1
            through = work.missing == 0
        if through:
            self.done(work)


def quantise(saliency: np.ndarray) -> np.ndarray:
    """float32 in [0, 1] → uint16 over its full range."""
    return np.rint(saliency * FULL_SCALE).astype(np.uint16)


class Method(Protocol):
    """How a run finds masks, with its weights ready on one device: prompts and a bundle
    (``Engine``), or a task model (``Predictor``). The runner knows no more of either."""

    @property
    def threads(self) -> int:
        """CPU threads for each of the stages that run there."""

    def decide(self, samples: Iterator[Sample]) -> Method:
        """The same with nothing left open: what it left to the archive's first images is tried
        on them. They are read only if they are wanted."""

    def identity(self) -> dict[str, Any]:
        """What of it decides a run's bytes, as plain JSON values for ``run.json``."""

    def describe(self) -> dict[str, object]:
        """What the report's head says of it."""

    def check_prompts(self, prompts: Prompts | PromptTable) -> None:
        """Refuse prompts before any image is read.

        Raises:
            ConfigError: it cannot look for them.
        """

    def open_executor(self, context: ExecutorContext) -> Executor:
        """The executor of one run."""
