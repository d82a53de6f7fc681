"""Zero-shot accuracy on phantoms never trained on.

    python -m medclipsam.benchmarks.phantoms

One image per seed and modality, always with the modality's lesion, half of them with
its second target too, and half as many without the lesion, every other one with the second
target alone. Measured are DSC of the lesion, whether saliency and mask follow the prompt
where there are two targets, whether absence is said, and how well the contrast score tells
images with the lesion from those without (AUC). Each saliency method runs on the same
images; differences to the first method are paired.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np

from medclipsam.benchmarks.measuring.result import RESULTS, open_facts, publish
from medclipsam.engine.engine import Engine
from medclipsam.engine.evaluation.metrics import dice, mean_interval
from medclipsam.engine.types import Prompts, Segmentation
from medclipsam.train.phantoms.bundle import HELD_OUT
from medclipsam.train.phantoms.phantoms import (
    LESIONS,
    MODALITIES,
    PROMPTS,
    TARGETS,
    Phantom,
    make_phantom,
)

FIRST_SEED = HELD_OUT + 500_000
LEAST = 4  # phantoms of a modality: two have both targets, and an interval takes two


@dataclass(frozen=True)
class Case:
    """One phantom and what was found in it for both targets of its modality."""

    phantom: Phantom
    segments: dict[str, Segmentation]


def draw(count: int, modality: str, first: int, present: str) -> Iterator[Phantom]:
    """``count`` phantoms, with the first target (``lesion``) or without (``none``), every
    other one with the second."""
    lesion, other = TARGETS[modality]
    for n in range(count):
        targets = [lesion] if present == "lesion" else []
        yield make_phantom(first + n, modality, [*targets, other] if n % 2 else targets)


def examine(engine: Engine, phantoms: Iterator[Phantom]) -> list[Case]:
    """Segmentation each phantom for both targets of its modality."""
    cases = []
    for phantom in phantoms:
        grey = (phantom.pixels * 255 + 0.5).astype(np.uint8)
        rgb = np.repeat(grey[..., None], 3, axis=2)
        wanted = Prompts({t: (PROMPTS[t],) for t in TARGETS[phantom.modality]})
        cases.append(Case(phantom, engine.pipeline.segment([rgb], [wanted])[0]))
    return cases


def follows_prompt(case: Case) -> bool:
    """Whether each prompt's mask overlaps its own target more than the other's."""
    masks, found = case.phantom.masks, case.segments
    (a, b) = TARGETS[case.phantom.modality]
    own = {t: int((found[t].mask & masks[t]).sum()) for t in (a, b)}
    wrong_a = int((found[a].mask & masks[b]).sum())
    wrong_b = int((found[b].mask & masks[a]).sum())
    return own[a] > wrong_a and own[b] > wrong_b


def points_at(case: Case, target: str) -> bool:
    """Whether the saliency's maximum lies in the true mask."""
    saliency = case.segments[target].saliency
    return bool(case.phantom.masks[target].flat[int(saliency.argmax())])


def summarise(lesion: dict[str, list[Case]], empty: dict[str, list[Case]]) -> dict[str, Any]:
    """Figures per modality and over all."""
    rows = {m: _figures(lesion[m], empty[m]) for m in lesion}
    rows["all"] = _figures([*chain(*lesion.values())], [*chain(*empty.values())])
    return rows


def measure(cases: list[Case]) -> dict[str, list[float]]:
    """Figures of single images, in their order: what is averaged and compared in pairs."""
    pairs = [(case, LESIONS[case.phantom.modality]) for case in cases]
    two = [case for case in cases if len(case.phantom.masks) == 2]
    return {
        "dsc": [dice(c.segments[t].mask, c.phantom.masks[t]) for c, t in pairs],
        "pointing": [float(points_at(c, t)) for c, t in pairs],
        "follows_prompt": [float(follows_prompt(case)) for case in two],
    }


def _figures(cases: list[Case], empty: list[Case]) -> dict[str, Any]:
    found = [case.segments[LESIONS[case.phantom.modality]] for case in cases]
    none = [case.segments[LESIONS[case.phantom.modality]] for case in empty]
    return {
        "n": len(cases),
        **{name: _interval(values) for name, values in measure(cases).items()},
        "missed": sum(segment.status == "absent" for segment in found),
        "two_targets": sum(len(case.phantom.masks) == 2 for case in cases),
        "without_target": len(none),
        "said_absent": _interval([segment.status == "absent" for segment in none]),
        "presence_auc": round(auc([s.contrast for s in found], [s.contrast for s in none]), 4),
    }


def auc(present: list[float], absent: list[float]) -> float:
    """Probability that a score of the first kind exceeds one of the second; ties count half."""
    difference = np.subtract.outer(present, absent)
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def compare(first: list[Case], second: list[Case]) -> dict[str, dict[str, float]]:
    """Paired differences, first minus second, with intervals."""
    ours, theirs = measure(first), measure(second)
    return {name: _interval(np.subtract(ours[name], theirs[name])) for name in ours}


def _interval(values: Any) -> dict[str, float]:
    mean, low, high = mean_interval(np.asarray(values, float))
    return {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4)}


def to_markdown(facts: Mapping[str, Any]) -> str:
    """Figures of every method, and paired differences to the first."""
    first, *_ = facts["results"]
    return f"{tabulate(facts['results'])}\n{_tabulate_pairs(first, facts['differences'])}"


def tabulate(results: Mapping[str, dict[str, Any]]) -> str:
    """One row per method and modality, means with 95 % intervals."""
    lines = [
        "| saliency | phantoms | n | DSC of the lesion | pointing | prompt followed "
        "(two targets) | absent said (no lesion) | AUC of the contrast |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method, rows in results.items():
        for name, row in rows.items():
            cells = [
                f"{row[key]['mean']:.2f} [{row[key]['low']:.2f}, {row[key]['high']:.2f}]"
                for key in ("dsc", "pointing", "follows_prompt", "said_absent")
            ]
            cells[2] += f" of {row['two_targets']}"
            cells[3] += f" of {row['without_target']}"
            cells.append(f"{row['presence_auc']:.3f}")
            lines.append(f"| {method} | {name} | {row['n']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _tabulate_pairs(first: str, differences: Mapping[str, dict[str, Any]]) -> str:
    lines = [
        f"| {first} minus | phantoms | DSC of the lesion | pointing | prompt followed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method, rows in differences.items():
        for name, row in rows.items():
            cells = [f"{v['mean']:+.2f} [{v['low']:+.2f}, {v['high']:+.2f}]" for v in row.values()]
            lines.append(f"| {method} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--bundle", default="phantom", show_default=True)
@click.option(
    "--count", default=50, show_default=True, type=click.IntRange(LEAST),
    help="Phantoms per modality.",
)  # fmt: skip
@click.option(
    "--methods", default="contrastcam,gscorecam,gradcam,m2ib", show_default=True, help="Saliency."
)
@click.option("--threads", type=click.IntRange(1))
@RESULTS
def main(bundle: str, count: int, methods: str, threads: int | None, out: Path) -> None:
    """Zero-shot accuracy on phantoms never trained on; writes phantoms.md and .json."""
    facts = open_facts()
    results, seconds, differences = {}, {}, {}
    first, *_ = methods.split(",")
    reference: dict[str, list[Case]] = {}
    for method in methods.split(","):
        settings = {"saliency": {"method": method}}
        engine = Engine.open(bundle, "cpu", settings=settings, threads=threads)
        started = time.monotonic()
        lesion = {m: examine(engine, draw(count, m, FIRST_SEED, "lesion")) for m in MODALITIES}
        empty = {
            m: examine(engine, draw(count // 2, m, FIRST_SEED + 10_000, "none")) for m in MODALITIES
        }
        results[method] = summarise(lesion, empty)
        seconds[method] = round(time.monotonic() - started, 1)
        click.echo(tabulate({method: results[method]}))
        reference = reference or lesion
        if method != first:
            differences[method] = {m: compare(reference[m], lesion[m]) for m in MODALITIES}
    facts |= {"bundle": engine.bundle.digest, "threads": engine.threads, "seconds": seconds}
    facts |= {"results": results, "differences": differences}
    publish(out, "phantoms", facts, to_markdown)


if __name__ == "__main__":
    main()
