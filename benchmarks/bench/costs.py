"""What measured stages and runs say together: shares, the bottleneck, hours for a million images.

On a CPU all stages share the cores: what they take alone, one after the other, is what a run takes
unless it waits. On CUDA the device and the cores work side by side: a run takes as long as the
one of both that has more to do. What the device's stages take is then the device's own time in the
run, by its clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medclipsam.benchmarks.bench.measure import Measured
from medclipsam.benchmarks.bench.stages import ONCE, SHOWN, STAGES
from medclipsam.benchmarks.measuring.spread import Spread
from medclipsam.engine.run.meter import DEVICE

MILLION = 1_000_000
WAITS = 0.6  # a stage that keeps the cores less busy than that waits for something else
ODD = 0.1  # share of a run that stages alone may leave unexplained

Facts = dict[str, Any]


def tabulate(found: Measured, device: str) -> list[Facts]:
    """A row a stage; ``device`` is ``cpu`` or ``cuda``."""
    run = found.turns.spread("run").median
    rows = []
    for stage in STAGES:
        parts = [each[stage] for each in found.parts]
        seconds = Spread.of([part.seconds for part in parts])
        images, on = parts[0].images, "cores"
        cost, working = seconds.median, float(np.median([part.working for part in parts]))
        if device == "cuda" and stage in DEVICE:
            on, cost = "device", float(np.median([_busy(s, stage) for s in found.summaries]))
            working = min(1.0, cost / seconds.median) if seconds.median else 0.0
        row: Facts = {"stage": stage, "on": on, "images": images, "seconds": seconds.to_json()}
        if images and stage not in ONCE:
            rate = Spread.of([images / part.seconds for part in parts])
            row["images_per_s"] = rate.to_json()
        share = round(cost / run, 4)
        rows.append({**row, "cost": round(cost, 4), "share": share, "at_work": round(working, 3)})
    return rows


def _busy(summary: Any, stage: str) -> float:
    return sum(each.busy for each in summary.stages if each.stage == stage)


def add_up(rows: Sequence[Facts], found: Measured) -> Facts:
    """Where → the share of the run that its stages make, with the spread over the turns."""
    sums: Facts = {}
    for where in dict.fromkeys(row["on"] for row in rows):
        names = [row["stage"] for row in rows if row["on"] == where]
        shares = []
        for n, run in enumerate(found.turns.seconds["run"]):
            if where == "device":
                spent = sum(_busy(found.summaries[n], name) for name in names)
            else:
                spent = sum(found.parts[n][name].seconds for name in names)
            shares.append(spent / run)
        sums[where] = Spread.of(shares).to_json()
    return sums


def find_bottleneck(rows: Sequence[Facts], sums: Facts) -> str:
    """One sentence for a person."""
    where = max(sums, key=lambda name: sums[name]["median"])
    most = max((row for row in rows if row["on"] == where), key=lambda row: row["cost"])
    stage, share, work = most["stage"], f"{most['share']:.0%}", f"{most['at_work']:.0%}"
    if where == "device":
        return f"The device is the bottleneck: {stage} takes {share} of the run."
    if "device" in sums:
        return (
            f"The cores are the bottleneck, not the device: {stage} takes {share} of the run; "
            "more threads or cores would help."
        )
    if most["at_work"] < WAITS:
        return (
            f"{stage} takes {share} of the run and keeps the cores only {work} at work: it waits, "
            f"most likely for {'the disk' if stage != 'start' else 'processes to begin'}."
        )
    return f"{stage} takes {share} of the run and keeps the cores {work} at work."


def project(
    rows: Sequence[Facts], found: Measured, shares: Sequence[float], watts: float | None
) -> list[Facts]:
    """Hours, and kilowatt-hours, for a million images of which some percent show what is asked.

    A run of the sample took other than its stages say; the same factor is taken for all shares.
    """
    every, shown = _per_image(rows, found)
    run = found.turns.spread("run").median
    once = sum(row["cost"] for row in rows if row["stage"] in ONCE)
    said = _slowest(every, shown, found.shown / found.images) * found.images
    factor = max(run - once, 1e-9) / said
    projected = []
    for share in shares:
        hours = MILLION * _slowest(every, shown, share / 100) * factor / 3600
        row: Facts = {"positives": share, "hours": float(f"{hours:.3g}")}
        row["images_per_s"] = float(f"{MILLION / 3600 / hours:.3g}")
        if watts is not None:
            row["kwh"] = float(f"{hours * watts / 1000:.3g}")
        projected.append(row)
    return projected


def _per_image(rows: Sequence[Facts], found: Measured) -> tuple[dict[str, float], dict[str, float]]:
    """Where → seconds of each image, and seconds more of one that may show what is asked."""
    every: dict[str, float] = {row["on"]: 0.0 for row in rows}
    shown = dict(every)
    for row in rows:
        if row["stage"] in ONCE:
            continue
        if row["stage"] in SHOWN:
            shown[row["on"]] += row["cost"] / max(1, found.shown)
        else:
            every[row["on"]] += row["cost"] / found.images
    return every, shown


def _slowest(every: dict[str, float], shown: dict[str, float], share: float) -> float:
    return max(every[where] + share * shown[where] for where in every)
