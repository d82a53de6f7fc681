"""Whether settings tuned on a dozen labelled phantoms hold on others.

    python -m medclipsam.benchmarks.tuning

Per modality: ``tune``'s search on a few phantoms, a quarter each with the first target,
both, the second and none; then the DSC of what it found and of the bundle's defaults on
others, paired. Both targets are asked for.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from medclipsam.benchmarks.measuring.result import RESULTS, open_facts, publish
from medclipsam.engine.engine import Engine
from medclipsam.engine.evaluation.metrics import mean_interval
from medclipsam.engine.tuning.axes import Candidate
from medclipsam.engine.tuning.tune import Sample, Tuner
from medclipsam.engine.types import Prompts
from medclipsam.train.phantoms.phantoms import MODALITIES, PROMPTS, TARGETS, make_phantom

TUNED_ON, JUDGED_ON = 3_000_000, 3_500_000  # first seeds; none is trained on


def draw_samples(modality: str, first: int, count: int) -> list[Sample]:
    """Labelled phantoms; an absent target has an empty true mask."""
    a, b = TARGETS[modality]
    samples = []
    for n in range(count):
        phantom = make_phantom(first + n, modality, ((a,), (a, b), (b,), ())[n % 4])
        grey = (phantom.pixels * 255 + 0.5).astype(np.uint8)
        empty = np.zeros(grey.shape, bool)
        truth = {target: phantom.masks.get(target, empty) for target in (a, b)}
        samples.append(Sample(np.repeat(grey[..., None], 3, axis=2), truth))
    return samples


@click.command()
@click.option("--bundle", default="phantom", show_default=True)
@click.option("--count", default=12, show_default=True, help="Phantoms to tune on, per modality.")
@click.option("--held-out", default=24, show_default=True, help="Phantoms to judge on.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@RESULTS
def main(bundle: str, count: int, held_out: int, threads: int, out: Path) -> None:
    """Held-out DSC of tuned settings beside the defaults; writes tuning.md and tuning.json."""
    facts = open_facts()
    engine = Engine.open(bundle, "cpu", threads=threads)
    results = {}
    for modality in MODALITIES:
        started = time.monotonic()
        prompts = Prompts({target: (PROMPTS[target],) for target in TARGETS[modality]})
        tuner = Tuner(engine, draw_samples(modality, TUNED_ON, count), {})
        best, _ = tuner.search(prompts)
        judge = Tuner(engine, draw_samples(modality, JUDGED_ON, held_out), {})
        default = judge.score(Candidate("", "", {}, prompts))
        tuned = judge.score(best)
        gain = [round(value, 4) for value in mean_interval(tuned - default)]
        results[modality] = {
            "settings": best.settings,
            "default": round(float(default.mean()), 4),
            "tuned": round(float(tuned.mean()), 4),
            "gain": dict(zip(("mean", "low", "high"), gain, strict=True)),
            "seconds": round(time.monotonic() - started, 1),
        }
        click.echo(json.dumps({modality: results[modality]}))
    facts |= {"bundle": engine.bundle.digest, "count": count, "held_out": held_out}
    publish(out, "tuning", {**facts, "results": results}, to_markdown)


def to_markdown(facts: Mapping[str, Any]) -> str:
    """A row a modality."""
    lines = [
        f"Tuned on {facts['count']} phantoms, judged on {facts['held_out']} others (two masks "
        "each).\n",
        "| phantoms | settings found | DSC, defaults | DSC, tuned | gain |",
        "| --- | --- | --- | --- | --- |",
    ]
    for modality, row in facts["results"].items():
        found = f"`{json.dumps(row['settings'])}`" if row["settings"] else "the defaults"
        gain = row["gain"]
        lines.append(
            f"| {modality} | {found} | {row['default']:.4f} | {row['tuned']:.4f} "
            f"| {gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}] |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
