import json
import threading

import pytest

from medclipsam.engine.errors import OutputError
from medclipsam.engine.run import meter as module
from medclipsam.engine.run.meter import Meter, Trace


@pytest.fixture
def sleep(monkeypatch):
    """A clock of each thread's own, which only this function moves on."""
    clock = threading.local()
    monkeypatch.setattr(module.time, "perf_counter", lambda: getattr(clock, "now", 0.0))

    def move(seconds):
        clock.now = getattr(clock, "now", 0.0) + seconds

    return move


def test_busy_items_and_occupancy(sleep):
    meter = Meter()
    meter.set_workers(refine_mask=2)
    threads = [threading.Thread(target=lambda: work(meter, sleep)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sleep(0.25)
    found = {s.stage: s for s in meter.figures()}["refine_mask"]
    assert found.items == 6 and found.workers == 2
    assert found.busy == pytest.approx(0.1)
    assert found.occupancy == pytest.approx(0.1 / 0.25 / 2)


def work(meter, sleep):
    with meter.work("refine_mask", 3):
        sleep(0.05)


def test_depth_is_a_mean_over_time(sleep):
    meter = Meter()
    meter.wait("commit", 4)
    sleep(0.1)
    meter.wait("commit", -4)
    sleep(0.1)
    found = {s.stage: s for s in meter.figures()}["commit"]
    assert found.deepest == 4 and found.depth == pytest.approx(2)


def test_a_stage_that_fails_is_counted_all_the_same():
    meter = Meter()
    with pytest.raises(ValueError), meter.work("write_mask"):
        raise ValueError
    assert {s.stage: s.items for s in meter.figures()}["write_mask"] == 1


def test_trace_is_what_viewers_read(tmp_path, sleep):
    trace = Trace(tmp_path / "a" / "trace.json")
    meter = Meter(trace)
    with meter.work("read_image"):
        meter.wait("commit", 1)
    thread = threading.Thread(target=lambda: work(meter, sleep), name="refine_0")
    thread.start()
    thread.join()
    trace.close()
    events = json.loads((tmp_path / "a" / "trace.json").read_text())
    spans = {e["name"]: e for e in events if e["ph"] == "X"}
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert spans["refine_mask"]["args"] == {"items": 3}
    assert spans["refine_mask"]["dur"] == pytest.approx(5e4)
    assert names[spans["refine_mask"]["tid"]] == "refine_0"
    assert names[spans["read_image"]["tid"]] == "MainThread"
    assert [e["args"] for e in events if e["ph"] == "C"] == [{"waiting": 1}]
    assert all(e["pid"] == 1 for e in events)


def test_a_trace_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"trace\.json"):
        Trace(tmp_path / "file" / "trace.json")
