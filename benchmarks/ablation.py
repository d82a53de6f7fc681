"""What each choice in contrastcam brings, and which layer serves gscorecam.

    python -m medclipsam.benchmarks.ablation

Choices are compared with all rows of the grid, 2 (g − 1)²; which of them are needed is the
matter of ``schedules``.

Every variant sees the same phantoms: a set that choices may be made on and one held out.
Saliency alone is judged, before CRF and SAM: pointing (the maximum lies in the target),
DSC at the best threshold of each image, and prompt sensitivity (on images with two targets
the maximum for each prompt lies in its own).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from medclipsam.benchmarks.measuring.result import RESULTS, open_facts, publish
from medclipsam.benchmarks.phantoms import FIRST_SEED, draw
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.evaluation.metrics import dice, mean_interval
from medclipsam.engine.fit import fit_image, make_fit, unfit_map
from medclipsam.engine.saliency.contrast import contrast_directions
from medclipsam.engine.saliency.gradcam import probe_gradcam
from medclipsam.engine.saliency.gscorecam import probe_gscorecam
from medclipsam.engine.saliency.masks import (
    channel_masks,
    gaussian_blur,
    scale_map,
    spot_masks,
)
from medclipsam.engine.saliency.question import Question
from medclipsam.engine.saliency.rows import Probe, Round, run_probes
from medclipsam.engine.weights.bundle import Bundle, open_bundle
from medclipsam.train.phantoms.phantoms import MODALITIES, NULL_PROMPTS, PROMPTS, TARGETS, Phantom

SETS = {"tuning": 600_000, "held-out": FIRST_SEED + 100_000}
THRESHOLDS = np.linspace(0.1, 0.95, 18)


@dataclass(frozen=True)
class Recipe:
    """One form of contrastcam with all rows; the defaults are what is in use.

    Attributes:
        masks: ``spots`` or ``channels``.
        fill: deviation of the blurred copy as a share of the side, or ``grey``.
        direction: ``keep``, ``delete`` or ``both``.
        against: what a prompt is contrasted with: ``nothing``, ``null``, ``others``,
            ``both``, or ``mean null``.
        weighting: ``ridge``, ``linear`` (sum of masks weighted by centred scores) or
            ``softmax`` of the logits, as gScoreCAM has it.
        spot: deviation of a spot in cells.
        ridge: regularisation.
        fine: points per cell at which the map is read.
    """

    masks: str = "spots"
    fill: float | str = 0.125
    direction: str = "both"
    against: str = "both"
    weighting: str = "ridge"
    spot: float = 1.0
    ridge: float = 1.0
    fine: int = 4


RECIPES = {
    "contrastcam with all rows": Recipe(),
    "read at the cells": Recipe(fine=1),
    "keep only": Recipe(direction="keep"),
    "delete only": Recipe(direction="delete"),
    "no contrast (the prompt's cosine)": Recipe(against="nothing"),
    "contrast to the nearest null only": Recipe(against="null"),
    "contrast to the other prompt only": Recipe(against="others"),
    "mean of the nulls and the other prompt": Recipe(against="mean null"),
    "fill: blur 1/16": Recipe(fill=0.0625),
    "fill: blur 1/4": Recipe(fill=0.25),
    "fill: mean grey, as published": Recipe(fill="grey"),
    "spots of 0.7 cells": Recipe(spot=0.7),
    "spots of 1.5 cells": Recipe(spot=1.5),
    "ridge 0.1": Recipe(ridge=0.1),
    "ridge 10": Recipe(ridge=10.0),
    "linear weights": Recipe(weighting="linear"),
    "softmax weights": Recipe(weighting="softmax"),
    "channels for spots": Recipe(masks="channels"),
    "channels, linear weights": Recipe(masks="channels", weighting="linear"),
    "channels, softmax weights": Recipe(masks="channels", weighting="softmax"),
    "channels, softmax, keep, grey": Recipe("channels", "grey", "keep", "both", "softmax"),
}
SCALES = (0.0625, 0.125, 0.25)


@dataclass
class Rows:
    """Embeddings of one image under banks of masks, each bank embedded once."""

    model: ClipEncoder
    image: Tensor
    prompts: Tensor
    nulls: Tensor
    banks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        embeddings, maps, _ = self.model.features(self.image[None], self.prompts[:0])
        self.embedding, self.maps = embeddings[0], maps[0]

    def masks(self, recipe: Recipe, side: int) -> Tensor:
        """(R, side, side) masks of one direction."""
        if recipe.masks == "channels":
            return channel_masks(self.maps, side)[:, 0]
        cells = self.maps.shape[-1]
        return spot_masks(cells - 1, recipe.spot / cells, side, torch.arange((cells - 1) ** 2))

    def embed(self, recipe: Recipe) -> Tensor:
        """(R or 2 R, D) unit embeddings, in the order of ``design``."""
        directions = ("keep", "delete") if recipe.direction == "both" else (recipe.direction,)
        return torch.cat([self._bank(recipe, direction) for direction in directions])

    def _bank(self, recipe: Recipe, direction: str) -> Tensor:
        key = (recipe.masks, recipe.fill, recipe.spot, direction)
        if key not in self.banks:
            keep = self.masks(recipe, self.model.image_size)
            keep = keep if direction == "keep" else 1 - keep
            fill = torch.zeros_like(self.image)
            if not isinstance(recipe.fill, str):
                fill = gaussian_blur(self.image[None], recipe.fill * self.model.image_size)[0]

            def make(start: int, stop: int) -> Tensor:
                return torch.lerp(fill, self.image, keep[start:stop, None])

            probe = Probe(len(keep), make, lambda rows: rows)
            self.banks[key] = next(run_probes(self.model, [probe]))
        return self.banks[key]

    def contrasts(self, against: str) -> Tensor:
        """(P, D)."""
        others = (self.prompts.sum(0) - self.prompts) / (len(self.prompts) - 1)
        if against == "nothing":
            return self.prompts
        if against == "null":
            return self.prompts - self.nulls[(self.nulls @ self.embedding).argmax()]
        if against == "others":
            return self.prompts - others
        if against == "mean null":
            return self.prompts - 0.5 * (self.nulls.mean(0) + others)
        return contrast_directions(self.prompts, self.nulls, self.embedding)

    def saliency(self, recipe: Recipe) -> Tensor:
        """(P, h, w) in [0, 1]."""
        side = recipe.fine * self.maps.shape[-1]
        keep = self.masks(recipe, side).flatten(1)
        parts = {"keep": [keep], "delete": [1 - keep], "both": [keep, 1 - keep]}
        design = torch.cat(parts[recipe.direction])
        scores = self.model.logit_scale * self.embed(recipe) @ self.contrasts(recipe.against).T
        weights = weigh(design, scores.double(), recipe)
        cam = recipe.fine**2 * (weights.T.double() @ design.double()).float()
        return scale_map(cam.unflatten(1, (side, side)).relu())


def weigh(design: Tensor, scores: Tensor, recipe: Recipe) -> Tensor:
    """Weights (R, P) of the masks from their scores (R, P)."""
    if recipe.weighting == "softmax":
        return scores.softmax(0)
    centred = scores - scores.mean(0)
    if recipe.weighting == "linear":
        return centred
    masks = (design - design.mean(0)).double()
    gram = masks @ masks.T
    gram.diagonal().add_(recipe.ridge * gram.diagonal().mean())
    weights = torch.linalg.solve(gram, centred)
    return weights - weights.mean(0)  # of centred masks, expressed in the masks themselves


Variant = Callable[[Rows], Tensor]


def variants(bundle: Bundle) -> dict[str, Variant]:
    """Name → saliency (P, h, w) of one image."""
    found: dict[str, Variant] = {
        name: lambda rows, r=recipe: rows.saliency(r)  # type: ignore[misc]
        for name, recipe in RECIPES.items()
    }
    found["three fills at once (three times the rows)"] = lambda rows: torch.stack(
        [rows.saliency(Recipe(fill=scale)) for scale in SCALES]
    ).mean(0)
    blocks = len(bundle.clip.model.visual.trunk.blocks)  # type: ignore[union-attr,arg-type]
    for block in range(blocks - 1, -1, -1):
        for target in ("norm1", "norm2"):
            encoder = ClipEncoder.open(bundle, torch.device("cpu"), target=target, block=block)
            name = f"block {block} {target}"
            found[f"gscorecam, {name}"] = _asking(encoder, probe_gscorecam, 300)
            found[f"gradcam, {name}"] = _asking(encoder, probe_gradcam)
    last = ClipEncoder.open(bundle, torch.device("cpu"))
    for k in (25, 50, 100):
        found[f"gscorecam, last norm1, k = {k}"] = _asking(last, probe_gscorecam, k)
    return found


def _asking(encoder: ClipEncoder, probe: Callable[..., Round], *settings: Any) -> Variant:
    def saliency(rows: Rows) -> Tensor:
        everything = torch.arange(len(rows.prompts))
        question = Question(rows.image, rows.embedding, rows.prompts, rows.nulls, everything)
        maps = next(run_probes(encoder, [probe(encoder, question, *settings)]))
        return maps()

    return saliency


def judge(phantom: Phantom, maps: np.ndarray) -> dict[str, float]:
    """Figures of one image; ``maps`` (P, h, w) follow the targets of its modality."""
    height, width = phantom.pixels.shape
    fit = make_fit(height, width, maps.shape[-1], "squash")
    lesion, other = TARGETS[phantom.modality]
    full = dict(zip((lesion, other), (unfit_map(m, fit) for m in maps), strict=True))
    truth = phantom.masks
    hits = {t: bool(truth[t].flat[int(full[t].argmax())]) for t in truth}
    scores = [dice(full[lesion] >= t, truth[lesion]) for t in THRESHOLDS]
    figures = {"pointing": float(hits[lesion]), "dsc": max(scores)}
    if other in truth:
        figures["sensitivity"] = float(hits[lesion] and hits[other])
    return figures


def examine(bundle: Bundle, count: int, first: int) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(variant, modality, figures) of every image."""
    model = ClipEncoder.open(bundle, torch.device("cpu"))
    nulls = model.encode_text(NULL_PROMPTS)
    every = variants(bundle)
    for modality in MODALITIES:
        prompts = model.encode_text([PROMPTS[t] for t in TARGETS[modality]])
        for phantom in draw(count, modality, first, "lesion"):
            grey = (phantom.pixels * 255 + 0.5).astype(np.uint8)
            fit = make_fit(grey.shape[0], grey.shape[1], model.image_size, "squash")
            square = fit_image(np.repeat(grey[..., None], 3, axis=2), fit)
            rgb = torch.from_numpy(square).permute(2, 0, 1)[None].float() / 255
            rows = Rows(model, model.normalise(rgb)[0], prompts, nulls)
            for name, variant in every.items():
                yield name, modality, judge(phantom, variant(rows).numpy())


FIGURES = ("pointing", "dsc", "sensitivity")


def summarise(found: list[tuple[str, str, dict[str, float]]]) -> dict[str, Any]:
    """Variant → figure → mean over all and per modality, with the interval over all."""
    out: dict[str, Any] = {}
    for name in dict.fromkeys(name for name, _, _ in found):
        out[name] = {}
        for figure in FIGURES:
            values = [(m, f[figure]) for n, m, f in found if n == name and figure in f]
            mean, low, high = mean_interval([v for _, v in values])
            each = {m: float(np.mean([v for n, v in values if n == m])) for m in MODALITIES}
            out[name][figure] = {"mean": mean, "low": low, "high": high, **each}
    return out


LEGEND = """Saliency alone, {count} phantoms per modality and set: means over all, in brackets \
ultrasound, MRI, X-ray; intervals are in ablation.json. *pointing*: the maximum lies in the \
lesion. *dsc*: at the best threshold of each image. *sensitivity*: with two targets, the maximum \
for each prompt lies in its own. Rows change contrastcam with all rows of its grid (the first \
row) in what they name, or are another method; blocks count from 0.

"""


def to_markdown(facts: Mapping[str, Any]) -> str:
    """A row a variant; in brackets ultrasound, MRI and X-ray."""
    results = facts["results"]
    heads = [f"{figure}, {kind}" for kind in results for figure in FIGURES]
    lines = [f"| variant | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
    for name in next(iter(results.values())):
        cells = []
        for kind in results.values():
            for figure in FIGURES:
                row = kind[name][figure]
                each = " ".join(f"{row[m]:.2f}" for m in MODALITIES)
                cells.append(f"{row['mean']:.2f} ({each})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return LEGEND.format(count=facts["count"]) + "\n".join(lines) + "\n"


@click.command()
@click.option("--bundle", default="phantom", show_default=True)
@click.option(
    "--count", default=10, show_default=True, type=click.IntRange(2),
    help="Phantoms per modality and set.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@RESULTS
def main(bundle: str, count: int, threads: int, out: Path) -> None:
    """Ablation of saliency on phantoms; writes ablation.md and ablation.json."""
    torch.set_num_threads(threads)
    opened = open_bundle(bundle)
    started = time.monotonic()
    facts = {**open_facts(), "bundle": opened.digest, "count": count}
    results = {kind: summarise(list(examine(opened, count, seed))) for kind, seed in SETS.items()}
    seconds = round(time.monotonic() - started, 1)
    publish(out, "ablation", {**facts, "seconds": seconds, "results": results}, to_markdown)


if __name__ == "__main__":
    main()
