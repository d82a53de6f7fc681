"""Steps on a device with a clock of its own: when they land, and what the meter says of them."""

import pytest
import torch

from medclipsam.engine.backends.handover import Launched
from medclipsam.engine.run import meter as meters
from medclipsam.engine.run.device import flights
from medclipsam.engine.run.device.flights import Flights
from medclipsam.engine.run.meter import Meter


class Device:
    """Works one thing after the other, at its own pace; the host's clock stands until it waits."""

    def __init__(self):
        self.now, self.free = 0.0, 0.0

    def work(self, seconds):
        self.free = max(self.free, self.now) + seconds


@pytest.fixture
def device(monkeypatch):
    device = Device()

    class Mark:
        def __init__(self, _, tensors=()):
            self.tensors, self.at = tuple(tensors), max(device.free, device.now)

        @property
        def ready(self):
            return self.at <= device.now

        def take(self):
            device.now = max(device.now, self.at)
            return self.tensors

        def since(self, mark):
            return self.at - mark.at

    monkeypatch.setattr(flights, "Handover", Mark)
    for module in (flights, meters):
        monkeypatch.setattr(module.time, "perf_counter", lambda: device.now)
    return device


@pytest.fixture
def opened(device):
    meter, passed = Meter(), []
    return Flights(torch.device("cuda", 0), meter, passed.append), meter, passed


def launch(device, to, seconds, landed, stage="segment_encode", host=0.0, whole=True):
    def compute():
        device.work(seconds)
        device.now += host
        return Launched((torch.tensor(seconds),), lambda value: landed.append(float(value)))

    to.launch(stage, 1, compute, pytest.fail, whole)


def test_nothing_waits_before_it_must(device, opened):
    on_device, _, passed = opened
    landed = []
    launch(device, on_device, 2.0, landed)
    assert on_device.room and not on_device.ready and device.now == 0 and not passed
    launch(device, on_device, 3.0, landed, "segment_decode", whole=False)
    assert not on_device.room and len(on_device) == 2 and device.now == 0
    device.now = 2.5
    assert on_device.ready
    on_device.land()
    assert (landed, passed, device.now) == ([2.0], ["segment_encode"], 2.5)
    assert on_device.room and not on_device.ready
    on_device.land()
    assert (landed, passed, device.now) == ([2.0, 3.0], ["segment_encode"], 5.0)
    assert not len(on_device) and not on_device.ready


def test_busy_is_what_the_device_says(device, opened):
    """Launching takes the host 0.1 s a step, the device 1 and 4 s; it rests between two of them."""
    on_device, meter, _ = opened
    landed = []
    launch(device, on_device, 1.0, landed, host=0.1)
    launch(device, on_device, 4.0, landed, "compute_saliency", host=0.1)
    on_device.land()
    on_device.land()
    device.now += 5.0
    launch(device, on_device, 1.0, landed, host=0.1)
    on_device.land()
    found = {stage.stage: stage for stage in meter.figures()}
    assert found["segment_encode"].busy == pytest.approx(2.0)
    assert found["segment_encode"].items == 2
    assert found["compute_saliency"].busy == pytest.approx(4.0)
    assert meter.device_busy == pytest.approx(6.0)
    assert meter.seconds == pytest.approx(11.0)
    assert meter.awaited == pytest.approx(6.0 - 0.3)  # all but what the host did meanwhile


def test_launching_is_no_work_of_a_device(device, opened):
    """A step that a method launches while its frame is taken up: its events alone count."""
    on_device, meter, _ = opened
    began = on_device.mark()
    with on_device.launching("compute_saliency", 0):
        device.work(2.0)
        device.now += 0.75
    on_device.add("compute_saliency", began, Launched((), lambda: None), pytest.fail)
    on_device.land()
    assert meter.device_busy == pytest.approx(2.0) and meter.awaited == pytest.approx(1.25)


def test_on_a_cpu_busy_is_the_time_of_the_calls(monkeypatch):
    now = [0.0]
    for module in (flights, meters):
        monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    meter = Meter()
    on_cpu = Flights(torch.device("cpu"), meter, lambda stage: None)

    def step(seconds, after, whole):
        def compute():
            now[0] += seconds
            return Launched((), land)

        def land():
            now[0] += after

        on_cpu.launch("compute_saliency", 3, compute, pytest.fail, whole)
        assert on_cpu.ready
        on_cpu.land()

    step(1.0, 0.5, whole=False)
    step(1.0, 0.25, whole=True)  # what comes after a stage is not the stage's
    assert meter.device_busy == pytest.approx(2.5) and meter.awaited == 0


@pytest.mark.parametrize("place", ["compute", "take", "land"])
def test_whoever_launched_hears_of_a_failure(device, opened, monkeypatch, place):
    on_device, _, passed = opened
    heard = []

    def boom(*_):
        raise ZeroDivisionError(place)

    launched = Launched((), boom if place == "land" else lambda: None)
    on_device.launch("segment_decode", 1, boom if place == "compute" else lambda: launched,
                     heard.append)  # fmt: skip
    if place == "take":
        monkeypatch.setattr(flights.Handover, "take", boom)
    if place != "compute":
        on_device.land()
    assert [str(exc) for exc in heard] == [place] and not passed and not len(on_device)
