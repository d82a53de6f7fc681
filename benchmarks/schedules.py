"""How many rows contrastcam needs: schedules beside all rows, on the same phantoms.

    python -m medclipsam.benchmarks.schedules

All rows are those of every narrow spot, shown and deleted, 2 (g − 1)². Each schedule is judged
through CRF, boxes and SAM, in pairs with all rows: DSC of the lesion, pointing, and whether the
mask follows the prompt. Schedules were chosen on the first set of phantoms; on the second, the
one of ``benchmarks.phantoms``, only the one in use is compared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from medclipsam.benchmarks.measuring.result import RESULTS, open_facts, publish
from medclipsam.benchmarks.phantoms import (
    FIRST_SEED,
    LEAST,
    Case,
    draw,
    follows_prompt,
    points_at,
)
from medclipsam.engine.engine import Engine
from medclipsam.engine.evaluation.metrics import dice, mean_interval
from medclipsam.engine.saliency.contrast import contrast_directions, contrasts
from medclipsam.engine.saliency.contrastcam import DELETED, SMOOTH
from medclipsam.engine.saliency.masks import gaussian_blur, scale_map, spot_masks
from medclipsam.engine.saliency.rows import Probe, run_probes
from medclipsam.engine.saliency.spots import FINE, WIDE
from medclipsam.engine.types import Prompts
from medclipsam.train.phantoms.phantoms import LESIONS, MODALITIES, PROMPTS, TARGETS, Phantom

TUNING_SEED = 1_900_000
FIGURES = ("dsc", "pointing", "follows_prompt")


@dataclass(frozen=True)
class Schedule:
    """Which rows, and how they are read; the defaults are those in use.

    Attributes:
        even: every how many-th row and column of narrow spots the first round shows; 0 shows
            the fields of one colour of a chessboard.
        wide: wide spots per side that it deletes.
        telling: narrow spots that the second round shows.
        also_deleted: of these, how many are deleted, too.
        deleted: weight of λ for rows that delete.
        smooth: deviation in cells.
    """

    even: int = 2
    wide: int = 6
    telling: int = 24
    also_deleted: int = 0
    deleted: float = DELETED
    smooth: float = SMOOTH


SCHEDULES = {
    "in use: 36 + 36 deleted, then 24": Schedule(),
    "not smoothed": Schedule(smooth=0),
    "λ alike for all rows": Schedule(deleted=1.0, smooth=0),
    "one round: 60 + 36 deleted": Schedule(even=0, telling=0),
    "36 + 25 deleted, then 20: 81 rows": Schedule(wide=5, telling=20),
    "36 + 25 deleted, then 35": Schedule(wide=5, telling=35),
    "36 + 36 deleted, then 12 shown and deleted": Schedule(telling=12, also_deleted=12),
    "36 + 49 deleted, then 11": Schedule(wide=7, telling=11),
}


@dataclass
class Bank:
    """Contrasts of one image under every mask that a schedule may ask for.

    Attributes:
        cells: g.
        scores: (number of spots per side, shown) → float64 (spots, P).
    """

    cells: int
    scores: dict[tuple[int, bool], Tensor]

    def design(self, places: int) -> Tensor:
        """float64 (places², side²)."""
        width = 1 / self.cells if places == self.cells - 1 else WIDE / places
        spots = spot_masks(places, width, FINE * self.cells, torch.arange(places**2))
        return spots.flatten(1).double()

    def rows(self, places: int, shown: bool, index: Tensor) -> tuple[Tensor, Tensor]:
        """Masks and contrasts of some spots."""
        design = self.design(places)[index]
        return design if shown else 1 - design, self.scores[places, shown][index]


def all_rows(bank: Bank) -> Tensor:
    """(P, side, side) as contrastcam was before: every narrow spot shown and deleted."""
    every = torch.arange((bank.cells - 1) ** 2)
    parts = [bank.rows(bank.cells - 1, shown, every) for shown in (True, False)]
    return scale_map(regress(bank, parts, [1.0, 1.0]))


def scheduled(bank: Bank, schedule: Schedule) -> Tensor:
    """(P, side, side) from the rows of a schedule alone."""
    places = bank.cells - 1
    every, even = torch.arange(places**2), shown_first(schedule, places)
    wide = torch.arange(schedule.wide**2)
    parts = [bank.rows(places, True, every[even]), bank.rows(schedule.wide, False, wide)]
    weights = [1.0, schedule.deleted]
    spots = bank.design(places)
    maps = scale_map(regress(bank, parts, weights)).flatten(1).double()
    means = (maps @ (spots / spots.sum(1, keepdim=True)).T).amax(0)
    unseen = torch.where(even, -1.0, means)
    chosen = unseen.topk(schedule.telling).indices
    parts.append(bank.rows(places, True, chosen))
    parts.append(bank.rows(places, False, chosen[: schedule.also_deleted]))
    found = regress(bank, parts, [*weights, 1.0, schedule.deleted])
    if schedule.smooth:
        found = gaussian_blur(found[None], schedule.smooth * FINE)[0]
    return scale_map(found)


def shown_first(schedule: Schedule, places: int) -> Tensor:
    """bool (places²): the narrow spots of the first round."""
    every = torch.arange(places**2)
    row, column = every // places, every % places
    if schedule.even:
        return (row % schedule.even == 0) & (column % schedule.even == 0)
    return (row + column) % 2 == 1


def count_rows(cells: int) -> dict[str, int]:
    """Schedule → how many masked images it embeds."""
    places = cells - 1
    counts = {"all rows": 2 * places**2}
    for name, each in SCHEDULES.items():
        first = int(shown_first(each, places).sum()) + each.wide**2
        counts[name] = first + each.telling + each.also_deleted
    return counts


def regress(bank: Bank, parts: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]) -> Tensor:
    """Positive part of the ridge regression's β: (P, side, side)."""
    design = torch.cat([masks for masks, _ in parts])
    scores = torch.cat([contrast for _, contrast in parts])
    noise = torch.cat([torch.full((len(m),), w) for (m, _), w in zip(parts, weights, strict=True)])
    centred = design - design.mean(0)
    gram = centred @ centred.T
    gram.diagonal().add_(gram.diagonal().mean() * noise)
    beta = torch.linalg.solve(gram, scores - scores.mean(0)).T @ centred
    side = FINE * bank.cells
    return (FINE**2 * beta).float().relu().unflatten(1, (side, side))


def fill_bank(engine: Engine, phantom: Phantom, wide: Sequence[int]) -> tuple[Bank, np.ndarray]:
    """Every row of an image, for both targets of its modality; and their presence scores."""
    pipeline = engine.pipeline
    model, square = pipeline.encoder, pipeline.fit(phantom.rgb)
    image = pipeline.to_pixels([square])[0]
    embedding = pipeline.encode_image([square])[0]
    texts = model.encode_text([PROMPTS[t] for t in TARGETS[phantom.modality]])
    nulls = model.encode_text(engine.config.null_prompts)
    directions = contrast_directions(texts, nulls, embedding)
    fill = gaussian_blur(image[None], engine.config.saliency.blur * model.image_size)[0]
    narrow, scores = model.cells - 1, {}
    wanted = [(narrow, True), (narrow, False), *((places, False) for places in wide)]
    for places, shown in wanted:
        width = 1 / model.cells if places == narrow else WIDE / places
        keep = spot_masks(places, width, model.image_size, torch.arange(places**2))
        masks = keep if shown else 1 - keep

        def make(start: int, stop: int, masks: Tensor = masks) -> Tensor:
            return torch.lerp(fill, image, masks[start:stop, None])

        (rows,) = run_probes(model, [Probe(len(masks), make, lambda rows: rows)])
        scores[places, shown] = (model.logit_scale * rows @ directions.T).double()
    return Bank(model.cells, scores), contrasts(texts, nulls, embedding).numpy()


def examine(
    bundle: str, schedules: dict[str, Schedule], job: tuple[str, int, int]
) -> list[dict[str, list[float]]]:
    """Per phantom, schedule → its figures; NaN where one does not apply."""
    modality, first, count = job
    torch.set_num_threads(1)
    engine = Engine.open(bundle, "cpu", settings={"segment": {"batch": 1}}, threads=1)
    readers: dict[str, Callable[[Bank], Tensor]] = {"all rows": all_rows}
    readers |= {name: partial(scheduled, schedule=each) for name, each in schedules.items()}
    wide = sorted({each.wide for each in schedules.values()})
    wanted = Prompts({t: (PROMPTS[t],) for t in TARGETS[modality]})
    out = []
    for phantom in draw(count, modality, first, "lesion"):
        bank, contrast = fill_bank(engine, phantom, wide)
        figures = {}
        for name, read in readers.items():
            answer = [(list(read(bank).numpy()), contrast)]
            found = engine.pipeline.draw([phantom.rgb], [wanted], answer)[0]
            figures[name] = list(judge(Case(phantom, found)))
        out.append(figures)
    return out


def judge(case: Case) -> Iterator[float]:
    """``FIGURES`` of one image."""
    lesion = LESIONS[case.phantom.modality]
    yield dice(case.segments[lesion].mask, case.phantom.masks[lesion])
    yield float(points_at(case, lesion))
    yield float(follows_prompt(case)) if len(case.phantom.masks) == 2 else float("nan")


def summarise(found: dict[str, list[dict[str, list[float]]]]) -> dict[str, Any]:
    """Schedule → figure → mean and, over all and by modality, the paired difference to all rows."""
    groups = {**found, "all": [each for group in found.values() for each in group]}
    out: dict[str, Any] = {}
    for name in groups["all"][0]:
        out[name] = {}
        for n, figure in enumerate(FIGURES):
            row: dict[str, Any] = {}
            for group, cases in groups.items():
                pairs = np.array([(each[name][n], each["all rows"][n]) for each in cases])
                own, base = pairs[~np.isnan(pairs).any(1)].T
                row[group] = {
                    "n": len(own),
                    "mean": round(float(own.mean()), 4),
                    "difference": [round(float(v), 4) for v in mean_interval(own - base)],
                }
            out[name][figure] = row
    return out


def measure(
    bundle: str, schedules: dict[str, Schedule], first: int, count: int, threads: int
) -> dict[str, Any]:
    """All modalities, ``count`` phantoms of each; pieces run in processes side by side."""
    piece = max(2, count // threads // 2 * 2)  # every other phantom has both targets
    jobs = [
        (modality, first + start, min(piece, count - start))
        for modality in MODALITIES
        for start in range(0, count, piece)
    ]
    with ProcessPoolExecutor(threads, get_context("spawn")) as pool:
        pieces = list(pool.map(partial(examine, bundle, schedules), jobs))
    found: dict[str, list[dict[str, list[float]]]] = {modality: [] for modality in MODALITIES}
    for (modality, *_), part in zip(jobs, pieces, strict=True):
        found[modality] += part
    return summarise(found)


def to_markdown(facts: Mapping[str, Any]) -> str:
    """A table a set: means over all, paired differences over all and by modality."""
    lines = []
    for title, rows in facts["results"].items():
        heads = [f"{figure} · difference [95 %] ({', '.join(MODALITIES)})" for figure in FIGURES]
        lines += [f"## {title}\n", f"| schedule | rows | {' | '.join(heads)} |", "| --- " * 5 + "|"]
        for name, row in rows.items():
            cells = []
            for figure in FIGURES:
                mean, low, high = row[figure]["all"]["difference"]
                each = ", ".join(f"{row[figure][m]['difference'][0]:+.3f}" for m in MODALITIES)
                own = row[figure]["all"]["mean"]
                cells.append(f"{own:.3f} · {mean:+.3f} [{low:+.3f}, {high:+.3f}] ({each})")
            lines.append(f"| {name} | {facts['rows'][name]} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


@click.command()
@click.option("--bundle", default="phantom", show_default=True)
@click.option(
    "--count", default=40, show_default=True, type=click.IntRange(LEAST),
    help="Phantoms per modality to choose on.",
)  # fmt: skip
@click.option(
    "--held-out", default=200, show_default=True, type=click.IntRange(LEAST),
    help="Phantoms per modality to judge.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@RESULTS
def main(bundle: str, count: int, held_out: int, threads: int, out: Path) -> None:
    """Writes schedules.md and schedules.json."""
    used = dict([next(iter(SCHEDULES.items()))])
    engine = Engine.open(bundle, "cpu", threads=threads)
    facts = {**open_facts(), "rows": count_rows(engine.pipeline.encoder.cells)}
    results = {
        f"{3 * held_out} held-out phantoms": measure(bundle, used, FIRST_SEED, held_out, threads),
        f"{3 * count} phantoms to choose on": measure(
            bundle, SCHEDULES, TUNING_SEED, count, threads
        ),
    }
    publish(out, "schedules", {**facts, "results": results}, to_markdown)


if __name__ == "__main__":
    main()
