"""One result, from its first image to its facts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from medclipsam.benchmarks.bench.against import run_against
from medclipsam.benchmarks.bench.costs import add_up, find_bottleneck, project, tabulate
from medclipsam.benchmarks.bench.measure import Bench, Measured, Tell
from medclipsam.benchmarks.bench.sample import Source
from medclipsam.benchmarks.bench.sweep import Sweep
from medclipsam.benchmarks.bench.watch import EnergyMeters
from medclipsam.benchmarks.measuring.machine import describe_machine, find_revision, list_versions
from medclipsam.benchmarks.rivals.run_jobs import PROMPTS
from medclipsam.engine.archive import Limits
from medclipsam.engine.engine import Engine
from medclipsam.engine.prompts import make_prompts
from medclipsam.engine.run.trial import take_samples
from medclipsam.engine.types import Prompts

KIND = "medclipsam bench 1"  # of a file, and the version of its form
SHARES = (0.0, 5.0, 20.0, 100.0)  # percent of images with the target
RESERVE = 0.92  # of the time, so that what was begun ends in it
PARTS = {"stages": 1.0, "sweep": 3.0, "against": 2.0}  # how the time is divided


def gather(
    engine: Engine,
    source: Source,
    prompts: Prompts | None,
    scratch: Path,
    end: float,
    tell: Tell,
    positives: float,
    sweep: bool,
    against: bool,
) -> dict[str, Any]:
    """Measure, and put together what is known.

    Args:
        prompts: what is looked for; of phantoms their own targets.
        end: of the time, by ``time.monotonic``.
    """
    wanted = prompts or make_prompts(PROMPTS)
    engine.check_prompts(wanted)
    engine = engine.decide(take_samples(source.archive, wanted, Limits()))
    device = engine.pipeline.encoder.device
    bench = Bench(engine, source, wanted, scratch, EnergyMeters.find(device), tell)
    pilot = bench.try_few()
    asked = ["stages", *(name for name, on in (("sweep", sweep), ("against", against)) if on)]
    left = RESERVE * (end - time.monotonic())
    share = {name: left * PARTS[name] / sum(PARTS[n] for n in asked) for name in asked}
    found = bench.measure(pilot, share["stages"])
    facts = describe(bench, found, positives)
    if sweep:
        facts["sweep"] = Sweep(bench, pilot, share["sweep"]).run()
    if against:
        facts["against"] = run_against(bench, pilot, share["against"])
    return facts


def describe(bench: Bench, found: Measured, positives: float) -> dict[str, Any]:
    """The facts of stages and runs."""
    engine, source = bench.engine, bench.source
    device, config = engine.pipeline.encoder.device, engine.config
    rows = tabulate(found, device.type)
    sums = add_up(rows, found)
    seconds = sum(found.turns.seconds["run"])
    images = found.images * len(found.watched)
    joules = {
        name: sum(seen.joules.get(name, 0.0) for seen in found.watched)
        for name in found.watched[0].joules
    }
    watts = sum(joules.values()) / seconds if joules else None
    own = 100 * found.shown / found.images
    shares = sorted({*SHARES, positives, round(own, 1)})
    million = project(rows, found, shares, watts)
    for row in million:
        row["own"] = row["positives"] == round(own, 1)
    peaks = [seen.device for seen in found.watched if seen.device is not None]
    return {
        "kind": KIND,
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "revision": find_revision(),
        "machine": describe_machine(device),
        "versions": list_versions(("numba", "onnxruntime-gpu")),
        "settings": {
            "bundle": engine.bundle.name,
            "digest": engine.bundle.digest,
            "device": str(device),
            "backend": engine.backend,
            "saliency": config.saliency.method,
            "precision": config.precision,
            "rows": config.saliency.rows,
            "batch": config.segment.batch,
            "boxes": config.segment.boxes,
            "threads": engine.threads,
        },
        "input": {
            "name": source.name,
            "synthetic": source.synthetic,
            "prompts": {label: list(texts) for label, texts in bench.prompts.texts.items()},
            "items": found.items,
            "images": found.images,
            "shown": found.shown,
            "positives": round(own, 1),
            "unreadable": found.unreadable,
        },
        "images_per_s": found.turns.rate("run", found.images).to_json(),
        "seconds": {
            name: [round(s, 3) for s in each] for name, each in found.turns.seconds.items()
        },
        "stages": rows,
        "sums": sums,
        "device_busy": round(
            float(np.median([s.busy / max(s.seconds, 1e-9) for s in found.summaries])), 3
        ),
        "memory": {
            "host": max(seen.host for seen in found.watched),
            "device": max(peaks) if peaks else None,
        },
        "energy": {
            "joules_per_image": {name: float(f"{j / images:.3g}") for name, j in joules.items()},
            "watts": None if watts is None else round(watts, 1),
            "missing": list(bench.meters.missing),
        },
        "million": million,
        "bottleneck": find_bottleneck(rows, sums),
    }
