"""What ``tune`` tries: along one axis after another, candidates from what is in use."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from medclipsam.engine.config import SaliencyConfig, SaliencyMethod, merge
from medclipsam.engine.evaluation.metrics import dice
from medclipsam.engine.types import Prompts

if TYPE_CHECKING:
    from medclipsam.engine.tuning.tune import Tuner


@dataclass(frozen=True)
class Candidate:
    """Settings laid over the bundle's defaults, and prompts, under a name.

    Attributes:
        scores: DSC of every labelled mask where the settings themselves were chosen on these
            masks: each judged by settings that were chosen on the other images. None where
            nothing was chosen.
    """

    axis: str
    name: str
    settings: dict[str, Any]
    prompts: Prompts
    scores: np.ndarray | None = field(default=None, compare=False)


def needs_gradients(saliency: SaliencyConfig) -> bool:
    """Whether only a backend with autograd can run it."""
    return saliency.method == "m2ib" or (saliency.target, saliency.block) != ("norm1", -1)


def _over(best: Candidate, axis: str, name: str, layer: dict[str, Any]) -> Candidate:
    settings = copy.deepcopy(best.settings)
    merge(settings, layer)
    return Candidate(axis, name, settings, best.prompts)


def null_prompts(tuner: Tuner, best: Candidate) -> Iterator[Candidate]:
    """The user's null prompts, each alone, all together, and beside those in use."""
    used, new = tuner.config(best).null_prompts, tuner.nulls
    sets = [*((null,) for null in new), new, (*used, *new)]
    for nulls in dict.fromkeys(tuple(dict.fromkeys(s)) for s in sets):
        if nulls and nulls != used:
            yield _over(best, "null prompts", " | ".join(nulls), {"null_prompts": list(nulls)})


def methods(tuner: Tuner, best: Candidate) -> Iterator[Candidate]:
    """Every saliency method; contrastcam where there are null prompts, of the user's if need be."""
    nulls = tuner.config(best).null_prompts or tuner.nulls
    for method in get_args(SaliencyMethod):
        if method == tuner.config(best).saliency.method:
            continue
        layer: dict[str, Any] = {"saliency": {"method": method}}
        if method == "contrastcam":
            if not nulls:
                continue
            layer["null_prompts"] = list(nulls)
        yield _over(best, "saliency", method, layer)


def layers(tuner: Tuner, best: Candidate) -> Iterator[Candidate]:
    """Where the channels, or the bottleneck, of the chosen method lie; for contrastcam its fill."""
    method = tuner.config(best).saliency.method
    settings: list[dict[str, Any]]
    if method == "contrastcam":
        settings = [{"blur": blur} for blur in (0.06, 0.09, 0.18, 0.25)]
    elif method == "m2ib":
        settings = [{"depth": depth} for depth in (0.5, 0.75, 0.9)]
    else:
        settings = [
            {"block": block, "target": target}
            for block in (-1, -2, -3)
            for target in ("norm1", "norm2")
        ]
    for layer in settings:
        name = " ".join(f"{key}={value}" for key, value in layer.items())
        yield _over(best, "layer", name, {"saliency": layer})


def wordings(tuner: Tuner, best: Candidate) -> Iterator[Candidate]:
    """Each wording of an ensemble alone."""
    for label, texts in best.prompts.texts.items():
        for text in texts if len(texts) > 1 else ():
            chosen = Prompts({**best.prompts.texts, label: (text,)})
            yield Candidate("wording", f"{label}={text}", best.settings, chosen)


def presences(tuner: Tuner, best: Candidate) -> Iterator[Candidate]:
    """No threshold, and the one that serves the samples best if some lack a target."""
    if not tuner.config(best).null_prompts:
        return
    free = _over(best, "presence", "none", {"presence": None})
    yield free
    rows = [
        (found[label].contrast, dice(found[label].mask, mask), float(not mask.any()))
        for sample, found in zip(tuner.samples, tuner.segment(free), strict=True)
        for label, mask in sample.truth.items()
    ]
    contrast, kept, dropped = np.array(rows).reshape(-1, 3).T
    if not dropped.any():
        return
    images = np.array([s.image or str(n) for n, s in enumerate(tuner.samples) for _ in s.truth])
    cut = _best_cut(contrast, kept, dropped)
    if cut is None:
        return
    scores = np.empty(len(kept))
    for image in np.unique(images):
        mine = images == image
        other = _best_cut(contrast[~mine], kept[~mine], dropped[~mine])
        low = contrast[mine] < (cut if other is None else other)
        scores[mine] = np.where(low, dropped[mine], kept[mine])
    chosen = _over(best, "presence", f"{cut:g}", {"presence": cut})
    yield replace(chosen, scores=scores)


def _best_cut(contrast: np.ndarray, kept: np.ndarray, dropped: np.ndarray) -> float | None:
    """The threshold of contrast with the highest mean DSC: (N,) each; None without a choice.

    Args:
        kept, dropped: DSC of each mask where the target is said to be there, or absent.
    """
    edges = np.unique(contrast)
    cuts = (edges[1:] + edges[:-1]) / 2
    if not cuts.size:
        return None
    means = [np.where(contrast < cut, dropped, kept).mean() for cut in cuts]
    return round(float(cuts[int(np.argmax(means))]), 4)


CRFS: dict[str, dict[str, Any]] = {
    "MedCLIP-SAMv2's 5 / 5 / 3": {"gaussian_compat": 5, "bilateral_srgb": 3},
    "5 iterations": {"iterations": 5},
    "none (saliency above one half)": {"iterations": 0},
    "bilateral_sxy=30": {"bilateral_sxy": 30},
    "threshold=0.3": {"threshold": 0.3},
    "threshold=0.7": {"threshold": 0.7},
}


def crfs(tuner: Tuner, best: Candidate) -> Iterator[Candidate]:
    """Settings of the dense CRF."""
    for name, layer in CRFS.items():
        yield _over(best, "crf", name, {"crf": layer})


def selections(tuner: Tuner, best: Candidate) -> Iterator[Candidate]:
    """Which components become boxes."""
    for select in ("largest", "top-k", "all"):
        yield _over(best, "boxes", select, {"boxes": {"select": select}})


def pads(tuner: Tuner, best: Candidate) -> Iterator[Candidate]:
    """How far boxes are widened."""
    for pad in (0.0, 0.1, 0.2, 0.3):
        yield _over(best, "boxes", f"pad={pad}", {"boxes": {"pad": pad}})


AXES = (null_prompts, methods, layers, wordings, presences, crfs, selections, pads)
