"""Null prompts and a threshold of presence, chosen on images known to show a target or not to.

Refuses to know pixels and models: cosines in, settings and figures out.

The threshold is the largest one that keeps the wanted share of the images that show the
target. The null prompts are those with which it skips the most images that do not. What is
stated of both is cross-fitted: each tenth of the images is judged by null prompts and a
threshold that were chosen on the other nine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.evaluation.interval import Interval
from medclipsam.engine.tuning.evidence import Evidence

LEVELS = (1.0, 0.99, 0.98, 0.95, 0.90)  # sensitivities to compare with the wanted one
FOLDS = 10
STEPS = 100_000  # thresholds in a unit of contrast
LOWEST = -2.0  # a threshold below every difference of two cosines
CHANCE = 0.05  # p up to which images without a target are skipped more often than by luck


@dataclass(frozen=True)
class Row:
    """What becomes of the images of one label at one sensitivity, cross-fitted.

    Attributes:
        label: of the prompt.
        sensitivity: the wanted one.
        threshold: contrast below which an image is skipped, chosen on all images.
        kept: images that show it and are kept, of ``shown``.
        skipped: images that do not and are skipped, of ``absent``.
    """

    label: str
    sensitivity: float
    threshold: float
    kept: int
    shown: int
    skipped: int
    absent: int

    @property
    def found(self) -> Interval:
        """Share of the images with the target that are kept, with its exact interval."""
        return proportion(self.kept, self.shown)

    @property
    def saved(self) -> Interval:
        """Share of the images without it that are skipped, with its exact interval."""
        return proportion(self.skipped, self.absent)

    def skipped_of(self, positives: float) -> float:
        """Share that is skipped of an archive of which the share ``positives`` shows it."""
        return positives * (1 - self.found.mean) + (1 - positives) * self.saved.mean


@dataclass(frozen=True)
class Calibration:
    """What was chosen and how it did.

    Attributes:
        nulls: places of the chosen null prompts among the candidates.
        threshold: ``EngineConfig.presence``.
        sensitivity: the wanted one.
        rows: all labels at the first sensitivity, then at the next lower one, and so on.
        auc: label → chance that an image with the target has more contrast than one without,
            both judged by null prompts chosen on others; NaN where no fold holds both.
    """

    nulls: tuple[int, ...]
    threshold: float
    sensitivity: float
    rows: list[Row]
    auc: Mapping[str, float]

    @property
    def chosen(self) -> list[Row]:
        """The rows of the wanted sensitivity."""
        return [row for row in self.rows if row.sensitivity == self.sensitivity]


def calibrate(evidence: Evidence, sensitivity: float, in_use: Sequence[int] = ()) -> Calibration:
    """Choose null prompts and a threshold.

    Args:
        evidence: cosines of known images to prompts and candidates.
        sensitivity: share of the images of each label that must be kept, in (0, 1).
        in_use: places of the null prompts in use: among equals they stay.

    Raises:
        ConfigError: see ``check_counts``; or the contrast of a label tells nothing.
    """
    check_counts(evidence.counts, sensitivity)
    everyone = np.ones(len(evidence.shown), bool)
    totals = (evidence.shown == 1).sum(0).tolist()
    losses = {
        level: [allowed_losses(total, level) for total in totals]
        for level in sorted({*LEVELS, sensitivity}, reverse=True)
    }  # levels at which nothing may be lost are that of 1
    losses = {n: lost for n, lost in losses.items() if n in (1, sensitivity) or any(lost)}
    nulls = choose_nulls(evidence, everyone, losses[sensitivity], in_use)
    contrast = evidence.contrast(nulls)
    kept, skipped, auc = _cross_fit(evidence, losses, sensitivity, in_use)
    thresholds = {level: cut(contrast, evidence.shown, lost) for level, lost in losses.items()}
    rows = [
        Row(label, level, thresholds[level], int(kept[n, p]), yes, int(skipped[n, p]), no)
        for n, level in enumerate(losses)
        for p, (label, (yes, no)) in enumerate(evidence.counts.items())
    ]
    found = Calibration(nulls, thresholds[sensitivity], sensitivity, rows, auc)
    for row in found.chosen:
        _check_use(row, auc[row.label])
    return found


def _cross_fit(
    evidence: Evidence,
    losses: Mapping[float, Sequence[int]],
    sensitivity: float,
    in_use: Sequence[int],
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Each fold judged by null prompts and thresholds that the other folds chose.

    Returns:
        int (L, P) images with the target that are kept at each level, and images without it
        that are skipped; ``Calibration.auc``.
    """
    said = evidence.shown
    totals = (said == 1).sum(0)
    kept, skipped = np.zeros((2, len(losses), len(totals)), int)
    wins, pairs = np.zeros((2, len(totals)))
    for inside in deal_folds(said):
        part = (said[~inside] == 1).sum(0)
        fewer = [
            [scale_losses(*n) for n in zip(lost, part, totals, strict=True)]
            for lost in losses.values()
        ]
        wanted = fewer[[*losses].index(sensitivity)]
        contrast = evidence.contrast(choose_nulls(evidence, ~inside, wanted, in_use))
        for n, lost in enumerate(fewer):
            below = contrast[inside] < cut(contrast[~inside], said[~inside], lost)
            kept[n] += (~below & (said[inside] == 1)).sum(0)
            skipped[n] += (below & (said[inside] == 0)).sum(0)
        for p, (values, answers) in enumerate(zip(contrast.T, said.T, strict=True)):
            high, low = (values[inside & (answers == answer)] for answer in (1, 0))
            won, of = count_wins(high, low)
            wins[p] += won
            pairs[p] += of
    areas = np.divide(wins, pairs, out=np.full(len(totals), np.nan), where=pairs > 0)
    return kept, skipped, dict(zip(evidence.labels, areas.tolist(), strict=True))


def check_counts(counts: Mapping[str, tuple[int, int]], sensitivity: float) -> None:
    """Refuse what so many images cannot answer.

    Args:
        counts: label → images that show the target, and images that do not.

    Raises:
        ConfigError: the sensitivity is none, a kind of image is missing, or there are too few
            that show the target: of n images one may be lost from 1 − 1/n on.
    """
    if not 0 < sensitivity < 1:
        raise ConfigError(
            f"a sensitivity lies between 0 and 1, got {sensitivity:g}; no number of images "
            "can promise 1"
        )
    for label, (shown, absent) in counts.items():
        for count, kind in ((shown, "that shows it"), (absent, "that does not show it")):
            if not count:
                raise ConfigError(f"{label}: there is no image {kind}; both kinds are needed")
        if allowed_losses(shown, sensitivity) < 1:
            least = math.ceil(round(1 / (1 - sensitivity), 6))
            allowed = math.floor((1 - 1 / shown) * 1000) / 1000
            instead = f", or use --sensitivity {allowed:g}" if allowed else ""
            raise ConfigError(
                f"{label}: {shown} images that show it cannot tell a sensitivity of "
                f"{sensitivity:g} from 1; take {least} or more{instead}"
            )


def _check_use(row: Row, auc: float) -> None:
    """Refuse a contrast that tells nothing, or no more than luck would.

    Fisher's exact test, one-sided, of the cross-fitted counts.
    """
    from scipy.stats import fisher_exact

    lost = row.shown - row.kept
    table = [[row.skipped, row.absent - row.skipped], [lost, row.kept]]
    p = float(fisher_exact(table, alternative="greater").pvalue)
    if p > CHANCE or auc <= 0.5:
        raise ConfigError(
            f"{row.label}: the contrast does not tell images without the target from images with "
            f"it: it skips {row.skipped} of {row.absent} without and {lost} of {row.shown} with "
            f"it (p {p:.2g}, AUC {auc:.2f}); try another wording with -p, null prompts that "
            "describe your images without the target with --null, a lower --sensitivity, or more "
            "images"
        )


def choose_nulls(
    evidence: Evidence, rows: np.ndarray, losses: Sequence[int], in_use: Sequence[int] = ()
) -> tuple[int, ...]:
    """The null prompts with which the most images without a target are skipped.

    Tried are those in use, each candidate alone, a set that grows by the best candidate as long
    as that helps, and all candidates. Among equals the first of these wins.

    Args:
        rows: bool (N,), the images that may choose.
        losses: images of each label that may be lost.

    Returns:
        Their places among the candidates, ascending.
    """
    shown = evidence.shown[rows]
    scores: dict[tuple[int, ...], float] = {}

    def score(nulls: tuple[int, ...]) -> float:
        """Share of the images without it that are skipped, mean over the labels."""
        if nulls not in scores:
            contrast = evidence.contrast(nulls)[rows]
            below = contrast < cut(contrast, shown, losses)
            absent = shown == 0
            scores[nulls] = float(((below & absent).sum(0) / absent.sum(0).clip(1)).mean())
        return scores[nulls]

    everything = tuple(range(evidence.nulls.shape[1]))
    grown: tuple[int, ...] = max(((n,) for n in everything), key=score)
    while rest := [n for n in everything if n not in grown]:
        best = max((tuple(sorted((*grown, n))) for n in rest), key=score)
        if score(best) <= score(grown):
            break
        grown = best
    alone = ((n,) for n in everything)
    return max([s for s in (tuple(in_use), *alone, grown, everything) if s], key=score)


def cut(contrast: np.ndarray, shown: np.ndarray, losses: Sequence[int]) -> float:
    """The largest threshold below which no label loses more images than it may.

    Where a lower one skips the same images without a target and loses fewer with it, that one:
    no image is lost for nothing.

    Args:
        contrast: float64 (N, P).
        shown: int8 (N, P), see ``Evidence``.
        losses: images of each label that may be lost.

    Returns:
        A contrast of an image with the target, as ``round_down`` makes it.
    """
    least = []
    for values, answers, loss in zip(contrast.T, shown.T, losses, strict=True):
        own = np.sort(values[answers == 1])
        if own.size:
            least.append(own[min(loss, own.size - 1)])
    largest = round_down(min(least, default=LOWEST))
    skipped = contrast[(shown == 0) & (contrast < largest)].max(initial=LOWEST)
    own = contrast[shown == 1]
    lower = (round_down(value) for value in np.sort(own[own > skipped]))
    return next((threshold for threshold in lower if threshold > skipped), largest)


def round_down(contrast: float) -> float:
    """A threshold of five decimals, 1e-5 to 2e-5 below a contrast.

    So no rounding of the model's loses that image; float32 moves a cosine by 1e-6.
    """
    return math.floor(float(contrast) * STEPS - 1) / STEPS


def allowed_losses(shown: int, sensitivity: float) -> int:
    """How many of ``shown`` images may be lost: the largest k with 1 − k / shown ≥ it."""
    return shown - math.ceil(round(shown * sensitivity, 9))


def scale_losses(losses: int, part: int, shown: int) -> int:
    """The same share of losses of a part of the images, rounded up: down would flatter."""
    return -(-losses * part // shown)


def deal_folds(shown: np.ndarray) -> Iterator[np.ndarray]:
    """bool (N,) of each fold: images with the same answers are dealt out in turn, in order."""
    order = np.lexsort(shown.T)  # stable
    fold = np.empty(len(shown), int)
    fold[order] = np.arange(len(shown)) % FOLDS
    return (fold == n for n in range(min(FOLDS, len(shown))))


def count_wins(high: np.ndarray, low: np.ndarray) -> tuple[float, int]:
    """Pairs in which the first kind has the larger value, equal ones by half, and all pairs."""
    ordered = np.sort(low)
    places = [np.searchsorted(ordered, high, side) for side in ("left", "right")]
    return float(np.sum(places)) / 2, len(high) * len(low)


def proportion(count: int, total: int) -> Interval:
    """``count`` of ``total`` with the exact 95 % interval of a binomial share.

    Clopper and Pearson, The use of confidence or fiducial limits illustrated in the case of the
    binomial, Biometrika 26, 1934.
    """
    from scipy.stats import binomtest

    exact: Any = binomtest(count, total).proportion_ci(method="exact")
    return Interval(count / total, float(exact.low), float(exact.high))
