"""Zero-shot accuracy on phantoms never trained on.

    python -m medclipsam.benchmarks.phantoms

One image per seed and modality, always with the modality's lesion, half of them with
its second target too. Measured are DSC of the lesion, whether the mask follows the
prompt where there are two targets, and whether absence is said on phantoms without the
target. Each saliency method runs on the same images.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np

from medclipsam.engine.durable import write_durable
from medclipsam.engine.engine import Engine
from medclipsam.engine.metrics import dice, mean_interval
from medclipsam.engine.types import Prompts, Segment
from medclipsam.train.phantom_bundle import HELD_OUT
from medclipsam.train.phantoms import (
    LESIONS,
    MODALITIES,
    PROMPTS,
    TARGETS,
    Phantom,
    make_phantom,
)

FIRST_SEED = HELD_OUT + 500_000


@dataclass(frozen=True)
class Case:
    """One phantom and what was found in it for both targets of its modality."""

    phantom: Phantom
    segments: dict[str, Segment]


def draw(count: int, modality: str, first: int, present: str) -> Iterator[Phantom]:
    """``count`` phantoms: ``lesion`` has always the first target and every other time the
    second; ``none`` has neither."""
    lesion, other = TARGETS[modality]
    for n in range(count):
        targets = () if present == "none" else (lesion, other) if n % 2 else (lesion,)
        yield make_phantom(first + n, modality, targets)


def examine(engine: Engine, phantoms: Iterator[Phantom]) -> list[Case]:
    """Segment each phantom for both targets of its modality."""
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


def _figures(cases: list[Case], empty: list[Case]) -> dict[str, Any]:
    names = [LESIONS[case.phantom.modality] for case in cases]
    pairs = list(zip(cases, names, strict=True))
    scores = [dice(c.segments[t].mask, c.phantom.masks[t]) for c, t in pairs]
    two = [case for case in cases if len(case.phantom.masks) == 2]
    wanted = [(case, LESIONS[case.phantom.modality]) for case in empty]
    return {
        "n": len(cases),
        "dsc": _interval(scores),
        "pointing": _interval([points_at(c, t) for c, t in pairs]),
        "missed": sum(c.segments[t].status == "absent" for c, t in pairs),
        "two_targets": len(two),
        "follows_prompt": _interval([follows_prompt(case) for case in two]),
        "without_target": len(wanted),
        "said_absent": _interval([c.segments[t].status == "absent" for c, t in wanted]),
    }


def _interval(values: list) -> dict[str, float]:
    mean, low, high = mean_interval(np.asarray(values, float))
    return {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4)}


def to_markdown(results: dict[str, dict[str, Any]]) -> str:
    """One row per method and modality, means with 95 % intervals."""
    lines = [
        "| saliency | phantoms | n | DSC of the lesion | pointing | prompt followed "
        "(two targets) | absent said (no target) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method, rows in results.items():
        for name, row in rows.items():
            cells = [
                f"{row[key]['mean']:.2f} [{row[key]['low']:.2f}, {row[key]['high']:.2f}]"
                for key in ("dsc", "pointing", "follows_prompt", "said_absent")
            ]
            cells[2] += f" of {row['two_targets']}"
            cells[3] += f" of {row['without_target']}"
            lines.append(f"| {method} | {name} | {row['n']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--bundle", default="phantom", show_default=True)
@click.option("--count", default=50, show_default=True, help="Phantoms per modality.")
@click.option(
    "--methods", default="contrastcam,gscorecam,gradcam", show_default=True, help="Saliency."
)
@click.option("--threads", type=click.IntRange(1))
@click.option(
    "-o",
    "--out",
    default="benchmarks/results",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
)
def main(bundle: str, count: int, methods: str, threads: int | None, out: Path) -> None:
    """Zero-shot accuracy on phantoms never trained on; writes phantoms.md and .json."""
    results, seconds = {}, {}
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
        click.echo(to_markdown({method: results[method]}))
    facts = {
        "command": f"python -m medclipsam.benchmarks.phantoms --count {count}",
        "bundle": engine.bundle.digest,
        "machine": f"{platform.machine()}, {engine.threads} threads",
        "versions": {name: version(name) for name in ("medclipsam", "torch", "numpy")},
        "seconds": seconds,
        "results": results,
    }
    text = json.dumps(facts, indent=2) + "\n"
    write_durable(out / "phantoms.json", text.encode())
    write_durable(out / "phantoms.md", to_markdown(results).encode())


if __name__ == "__main__":
    main()
