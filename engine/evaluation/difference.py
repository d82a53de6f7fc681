"""Two evaluations against one truth, case by case.

Only cases that were scored in both count; the others are named. Cases are taken as
independent of each other: several images of one patient make intervals too narrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.evaluation.evaluate import FIGURES, OVERALL, Case, Evaluation
from medclipsam.engine.evaluation.interval import Interval

DECIMALS = 12  # differences that only rounding makes are none


@dataclass(frozen=True)
class Difference:
    """One figure of one label in both.

    Attributes:
        n: cases in which the figure is defined in both.
        first, second: means over these cases; NaN without any.
        difference: of ``first`` minus ``second``, paired; ``undefined`` are the common cases
            in which the figure is not defined in both.
        p: of Wilcoxon's signed-rank test, two-sided; NaN without any case.
    """

    label: str
    figure: str
    n: int
    first: float
    second: float
    difference: Interval
    p: float


@dataclass(frozen=True)
class LeftOut:
    """A case that is not compared, and why."""

    label: str
    item: str
    message: str


@dataclass(frozen=True)
class Comparison:
    """Differences per label and figure, then those over all labels."""

    rows: tuple[Difference, ...]
    left_out: tuple[LeftOut, ...]


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Paired differences, ``first`` minus ``second``.

    Where each has one label, it is the same one, whatever it is called.

    Raises:
        ConfigError: no case was scored in both.
    """
    ours, theirs = _by_key(first), _by_key(second)
    if len({label for label, _ in ours}) == len({label for label, _ in theirs}) == 1:
        label = next(iter(ours))[0]
        theirs = {(label, item): case for (_, item), case in theirs.items()}
    pairs: list[tuple[Case, Case]] = []
    left_out = []
    for key in dict.fromkeys((*ours, *theirs)):
        pair = ours.get(key), theirs.get(key)
        if pair[0] and pair[1] and pair[0].status == pair[1].status == "scored":
            pairs.append((pair[0], pair[1]))
        else:
            left_out.append(LeftOut(*key, _why(*pair)))
    if not pairs:
        raise ConfigError(
            f"no case was scored in both, of {len(left_out)}; for example, "
            f"{left_out[0].item}: {left_out[0].message}"
        )
    rows: list[Difference] = []
    labels = sorted({case.label for case, _ in pairs})
    for label in labels if len(labels) > 1 else ():
        rows += _differences(label, [pair for pair in pairs if pair[0].label == label])
    rows += _differences(OVERALL if len(labels) > 1 else labels[0], pairs)
    return Comparison(tuple(rows), tuple(left_out))


def signed_rank(differences: np.ndarray) -> float:
    """p of Wilcoxon's signed-rank test that differences lie symmetrically around 0, two-sided.

    Zeros are dropped; where all are zero, p is 1. Exact for up to 50 differences without
    ties, else by the normal approximation (scipy's ``method="auto"``).
    """
    from scipy.stats import wilcoxon

    rounded = differences.round(DECIMALS)
    return float(wilcoxon(rounded[rounded != 0]).pvalue) if rounded.any() else 1.0


def _by_key(evaluation: Evaluation) -> dict[tuple[str, str], Case]:
    return {(case.label, case.item): case for case in evaluation.cases}


def _why(first: Case | None, second: Case | None) -> str:
    told = []
    for name, case in (("first", first), ("second", second)):
        if case is None:
            told.append(f"no such case in the {name}")
        elif case.status != "scored":
            told.append(f"{case.status} in the {name}: {case.message}")
    return "; ".join(told)


def _differences(label: str, pairs: Sequence[tuple[Case, Case]]) -> list[Difference]:
    return [_difference(label, name, pairs) for name in FIGURES]


def _difference(label: str, figure: str, pairs: Sequence[tuple[Case, Case]]) -> Difference:
    values = np.array([[getattr(case, figure) for case in pair] for pair in pairs])
    values = values[np.isfinite(values).all(1)]
    undefined = len(pairs) - len(values)
    if not len(values):
        nothing = Interval(math.nan, math.nan, math.nan, undefined)
        return Difference(label, figure, 0, math.nan, math.nan, nothing, math.nan)
    gaps = values[:, 0] - values[:, 1]
    interval = Interval.of(gaps)
    ours, theirs = values.mean(0).tolist()
    return Difference(
        label,
        figure,
        len(values),
        ours,
        theirs,
        Interval(interval.mean, interval.low, interval.high, undefined),
        signed_rank(gaps),
    )
