"""Whether the confidence of a mask is what it says, on phantoms never trained or fitted on.

    python -m medclipsam.benchmarks.confidence

Every mask drawn for both targets of a phantom's modality, asked together and alone, against
its true DSC: calibration in bins, Brier score, expected calibration error and AUC for a DSC
of 0.7, beside the uncalibrated product of predicted IoU and stability.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np

from medclipsam.benchmarks.measuring.result import RESULTS, open_facts, publish
from medclipsam.engine.engine import Engine
from medclipsam.engine.quality import confidence
from medclipsam.train.phantoms.calibration import GOOD, ask_phantom
from medclipsam.train.phantoms.phantoms import make_phantom

FIRST_SEED = 4_500_000
BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)


def auc(score: np.ndarray, good: np.ndarray) -> float:
    """Probability that a good mask has the higher score; ties count half."""
    yes, no = score[good], score[~good]
    above = (yes[:, None] > no).sum() + 0.5 * (yes[:, None] == no).sum()
    return float(above / max(1, len(yes) * len(no)))


def judge(score: np.ndarray, good: np.ndarray) -> dict[str, Any]:
    """Calibration of ``score`` as the probability of ``good``."""
    rows, gap = [], 0.0
    for low, high in pairwise(BINS):
        inside = (score >= low) & ((score < high) | (high == BINS[-1]))
        if inside.any():
            said, true = float(score[inside].mean()), float(good[inside].mean())
            gap += abs(said - true) * float(inside.mean())
            rows.append({"from": low, "to": high, "n": int(inside.sum()), "said": said, "is": true})
    brier = float(np.square(score - good).mean())
    return {"auc": auc(score, good), "brier": brier, "ece": gap, "bins": rows}


@click.command()
@click.option("--bundle", default="phantom", show_default=True)
@click.option("--count", default=150, show_default=True, help="Phantoms.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@RESULTS
def main(bundle: str, count: int, threads: int, out: Path) -> None:
    """Writes confidence.md and confidence.json."""
    started = open_facts()
    engine = Engine.open(bundle, "cpu", threads=threads)
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    drawn = [pair for seed in seeds for pair in ask_phantom(engine, make_phantom(seed))]
    good = np.array([score >= GOOD for _, score in drawn])
    plain = replace(engine.config.confidence, scale=0.0)
    scores = {
        "confidence": np.array([segment.confidence for segment, _ in drawn]),
        "uncalibrated": np.array([confidence(vars(segment), plain) for segment, _ in drawn]),
        "predicted IoU": np.array([segment.predicted_iou for segment, _ in drawn]),
    }
    facts = {
        **started,
        "bundle": engine.bundle.digest,
        "phantoms": count,
        "good_dsc": GOOD,
        "masks": len(drawn),
        "good": int(good.sum()),
        "scores": {name: judge(score, good) for name, score in scores.items()},
    }
    publish(out, "confidence", facts, to_markdown)


def to_markdown(facts: Mapping[str, Any]) -> str:
    """Every score's figures, and bins of the confidence."""
    lines = [
        f"{facts['masks']} masks of {facts['phantoms']} phantoms, {facts['good']} of them with a "
        f"DSC of at least {facts['good_dsc']}.\n",
        "| score | AUC | Brier | calibration error |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {s['auc']:.3f} | {s['brier']:.3f} | {s['ece']:.3f} |"
            for name, s in facts["scores"].items()
        ),
        "",
        "| confidence | masks | said | good |",
        "| --- | --- | --- | --- |",
        *(
            f"| {b['from']}–{b['to']} | {b['n']} | {b['said']:.2f} | {b['is']:.2f} |"
            for b in facts["scores"]["confidence"]["bins"]
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
