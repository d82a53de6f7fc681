"""Steps that the device has been given and that have not come back, oldest first.

Refuses to know what the steps compute. On a CPU a step is done when it was launched. How long one
took says the device by its own clock, which is read when the step has landed; on a CPU it is the
time of the calls.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from medclipsam.engine.backends.handover import Handover, Launched
from medclipsam.engine.errors import at_stage
from medclipsam.engine.run.meter import Meter

DEPTH = 2  # the step that the device is at, and one behind it, so that it never waits for us


@dataclass(frozen=True)
class _Flight:
    stage: str
    began: Handover
    answer: Handover
    land: Callable[..., None]
    failed: Callable[[Exception], None]
    whole: bool


class Flights:
    """What is on the device; steps land in the order of launching.

    Args:
        device: where everything runs.
        meter: told how long the device took, by its own clock, and how long it was waited for.
        passed: called with a stage that frames have come through.
    """

    def __init__(self, device: torch.device, meter: Meter, passed: Callable[[str], None]):
        self._device, self._meter, self._passed = device, meter, passed
        self._on_cpu = device.type == "cpu"
        self._flights: deque[_Flight] = deque()

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def room(self) -> bool:
        """Whether another step may be launched."""
        return len(self._flights) < DEPTH

    @property
    def ready(self) -> bool:
        """Whether the oldest step can be landed without waiting."""
        return bool(self._flights) and self._flights[0].answer.ready

    def mark(self) -> Handover:
        """How far the device has come: where a step begins."""
        return Handover(self._device)

    @contextmanager
    def launching(self, stage: str, items: int) -> Iterator[None]:
        """Inside, work is queued for the device: on a CPU that is the work itself, anywhere else
        the meter hears of it when it has landed."""
        with self._meter.work(stage, items, own=self._on_cpu), at_stage(stage):
            yield

    def launch(
        self,
        stage: str,
        items: int,
        compute: Callable[[], Launched],
        failed: Callable[[Exception], None],
        whole: bool = True,
    ) -> None:
        """Give the device a step.

        Args:
            items: how many it works on, for the meter.
            compute: queues it.
            failed: called instead of landing with what it raised, now or on the device.
            whole: nothing of the stage comes afterwards, so that frames have passed it.
        """
        began = self.mark()
        try:
            with self.launching(stage, items):
                launched = compute()
                answer = Handover(self._device, launched.tensors)
        except Exception as exc:
            failed(exc)
            return
        self._flights.append(_Flight(stage, began, answer, launched.land, failed, whole))

    def add(
        self, stage: str, began: Handover, launched: Launched, failed: Callable[[Exception], None]
    ) -> None:
        """A step that was launched elsewhere, after the mark ``began``; its stage goes on."""
        answer = Handover(self._device, launched.tensors)
        self._flights.append(_Flight(stage, began, answer, launched.land, failed, False))

    def land(self) -> None:
        """Take the answer of the oldest step, which is waited for if need be."""
        flight = self._flights.popleft()
        try:
            with at_stage(flight.stage):
                start = time.perf_counter()
                answer = flight.answer.take()
                took = flight.answer.since(flight.began)
                if took is not None:
                    self._meter.wait_for_device(time.perf_counter() - start)
                    self._meter.ran(flight.stage, took)
                start = time.perf_counter()
                flight.land(*answer)
                if took is None and not flight.whole:
                    self._meter.ran(flight.stage, time.perf_counter() - start)
            if flight.whole:
                self._passed(flight.stage)
        except Exception as exc:
            flight.failed(exc)
