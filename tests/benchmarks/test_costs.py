"""What stages and runs say together, on made-up times of which the answer is known."""

from types import SimpleNamespace

import pytest

from medclipsam.benchmarks.bench.costs import add_up, find_bottleneck, project, tabulate
from medclipsam.benchmarks.bench.measure import LONG, MOST, PIXELS, Measured, Pilot, plan
from medclipsam.benchmarks.bench.stages import SHOWN, STAGES, Part
from medclipsam.benchmarks.measuring.spread import Turns

IMAGES, SHOW = 40, 10
ALONE = dict(zip(STAGES, (1.0, 0.4, 0.2, 0.8, 6.0, 0.5, 1.0, 0.3, 0.1, 2.0, 0.3, 0.1), strict=True))
BUSY = {"encode_image": 0.4, "compute_saliency": 3.0, "segment_encode": 0.5, "segment_decode": 0.1}


def made_up(runs, scale=1.0, busy=BUSY, working=0.9):
    """Every stage takes what ``ALONE`` says, times ``scale``; a run takes ``runs`` seconds."""
    parts = {
        stage: Part(
            scale * seconds, working, 0 if stage == "start" else SHOW if stage in SHOWN else IMAGES
        )
        for stage, seconds in ALONE.items()
    }
    summary = SimpleNamespace(
        stages=[SimpleNamespace(stage=name, busy=value) for name, value in busy.items()]
    )
    turns = Turns({"stages": [sum(ALONE.values())] * len(runs), "run": runs})
    return Measured(turns, IMAGES, IMAGES, SHOW, 0, [parts] * len(runs), [summary] * len(runs), [])


def test_stages_of_a_cpu_add_up_to_the_run():
    found = made_up([sum(ALONE.values())] * 3)
    rows = tabulate(found, "cpu")
    assert [row["stage"] for row in rows] == list(STAGES) and {row["on"] for row in rows} == {
        "cores"
    }
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-3)
    sums = add_up(rows, found)
    assert sums["cores"]["median"] == pytest.approx(1)
    by_name = {row["stage"]: row for row in rows}
    assert by_name["compute_saliency"]["images_per_s"]["median"] == pytest.approx(
        SHOW / 6, rel=1e-3
    )
    assert by_name["read_image"]["images_per_s"]["median"] == IMAGES / 0.4
    assert "images_per_s" not in by_name["start"]
    assert find_bottleneck(rows, sums).startswith("compute_saliency takes 47% of the run")


def test_a_run_that_waits_is_not_explained_away():
    found = made_up([2 * sum(ALONE.values())] * 2)
    assert add_up(tabulate(found, "cpu"), found)["cores"]["median"] == pytest.approx(0.5)


def test_stages_of_a_gpu_are_told_by_its_own_clock():
    found = made_up([5.0, 5.0, 5.0])
    rows = tabulate(found, "cuda")
    sums = add_up(rows, found)
    device = {row["stage"]: row for row in rows if row["on"] == "device"}
    assert set(device) == set(BUSY) and device["compute_saliency"]["cost"] == 3.0
    assert device["compute_saliency"]["at_work"] == 0.5  # of the seconds that it took alone
    assert sums["device"]["median"] == pytest.approx(4.0 / 5)
    assert sums["cores"]["median"] == pytest.approx(4.6 / 5)
    assert find_bottleneck(rows, sums).startswith("The cores are the bottleneck, not the device")
    slower = {name: 4 * value for name, value in BUSY.items()}
    found = made_up([17.0] * 2, busy=slower)
    rows = tabulate(found, "cuda")
    expected = "The device is the bottleneck: compute_saliency takes 71% of the run."
    assert find_bottleneck(rows, add_up(rows, found)) == expected


def test_a_stage_that_leaves_the_cores_idle_waits_for_something():
    found = made_up([13.0] * 2, working=0.3)
    rows = tabulate(found, "cpu")
    assert "it waits, most likely for the disk" in find_bottleneck(rows, add_up(rows, found))


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_a_million_images_cost_what_their_stages_cost(factor):
    """Every image: 3.9 s for 40. One with the target: 7.8 s for 10 more. The start counts once."""
    found = made_up([factor * (sum(ALONE.values()) - 1) + 1] * 2)
    rows = project(tabulate(found, "cpu"), found, [0, 25, 100], watts=200.0)
    for row, share in zip(rows, (0, 0.25, 1), strict=True):
        hours = 1e6 * factor * (3.9 / 40 + share * 7.8 / 10) / 3600
        assert row["hours"] == pytest.approx(hours, rel=0.01)
        assert row["images_per_s"] == pytest.approx(1e6 / hours / 3600, rel=0.01)
        assert row["kwh"] == pytest.approx(hours * 0.2, rel=0.01)
    assert "kwh" not in project(tabulate(found, "cpu"), found, [5], None)[0]


def test_on_a_gpu_the_slower_of_both_decides():
    found = made_up([4.6] * 2)  # the cores' stages, and the start among them
    rows = project(tabulate(found, "cuda"), found, [0, 100], None)
    cores = {0: (0.4 + 0.2 + 0.1 + 2.0 + 0.3 + 0.1) / 40, 100: 3.1 / 40 + 0.5 / 10}
    device = {0: 0.4 / 40, 100: 0.4 / 40 + 3.6 / 10}
    at = 25 / 100
    said = 40 * max(3.1 / 40 + at * 0.5 / 10, 0.4 / 40 + at * 3.6 / 10)
    for row in rows:
        share = row["positives"]
        expected = 1e6 * max(cores[share], device[share]) * (3.6 / said) / 3600
        assert row["hours"] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "pixels", "budget"),
    [(0.02, 1e4, 200), (0.2, 1e5, 200), (20, 1e6, 200), (500, 1e6, 200), (0.02, 1e8, 200),
     (0.02, 1e4, 5)],
)  # fmt: skip
def test_what_is_planned_fits_into_the_time(seconds, pixels, budget):
    images, turns = plan(Pilot(seconds, 1, pixels), budget)
    assert 1 <= images <= MOST and turns in (1, 3, 5)
    assert images == 1 or 2 * turns * images * seconds <= budget
    assert images == 1 or images * pixels <= PIXELS
    if turns > 1:
        assert budget / turns / 2 >= LONG
