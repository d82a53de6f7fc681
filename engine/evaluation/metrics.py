"""How close a mask is to the truth.

Refuses to know files, labels and patients: bool arrays in, numbers out. Masks are
(H, W) or (F, H, W) with frames first.

Empty masks: both empty is perfect, 1.0 or a distance of 0; exactly one empty is 0.0 or an
infinite distance.
"""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
DRAWS_AT_ONCE = 1 << 22  # 32 MiB of indices, whatever the number of values
MANY, FEW = 4096, 32  # so many values of which so few differ, such as hits, are drawn as counts


def dice(pred: np.ndarray, truth: np.ndarray) -> float:
    """2·|P ∩ T| / (|P| + |T|), over all frames together."""
    _check(pred, truth)
    total = np.count_nonzero(pred) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(pred & truth) / total if total else 1.0


def iou(pred: np.ndarray, truth: np.ndarray) -> float:
    """|P ∩ T| / |P ∪ T|, over all frames together."""
    _check(pred, truth)
    union = np.count_nonzero(pred | truth)
    return np.count_nonzero(pred & truth) / union if union else 1.0


def nsd(
    pred: np.ndarray,
    truth: np.ndarray,
    tolerance: float,
    spacing: tuple[float, float] | None = None,
) -> float:
    """Normalised Surface Dice: the share of both outlines within ``tolerance`` of the other.

    An outline is the set of mask pixels with one of four neighbours outside the mask;
    beyond the frame counts as outside. Several frames: the mean over those where
    either mask holds a pixel, each outline compared within its own frame.

    Args:
        tolerance: in mm with ``spacing``, in pixels without.
        spacing: (row, column) distance of pixel centres in mm.
    """
    _check(pred, truth)
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"expected a tolerance of at least 0, got {tolerance}")
    pairs = zip(_frames(pred), _frames(truth), strict=True)
    scores = [_frame_nsd(p, t, tolerance, spacing) for p, t in pairs if p.any() or t.any()]
    return float(np.mean(scores)) if scores else 1.0


def _frame_nsd(
    pred: np.ndarray, truth: np.ndarray, tolerance: float, spacing: tuple[float, float] | None
) -> float:
    if not (pred.any() and truth.any()):
        return 0.0
    gaps = np.concatenate(_frame_gaps(pred, truth, spacing))
    return float(np.mean(gaps <= tolerance))


def hd95(pred: np.ndarray, truth: np.ndarray, spacing: tuple[float, float] | None = None) -> float:
    """95th percentile of the distances between both outlines, the larger of the two ways.

    Outlines are those of :func:`nsd`. Several frames: each pixel of an outline looks for the
    other outline in its own frame, and the percentile is taken over the pixels of all frames.
    A pixel whose frame holds none of the other mask is infinitely far from it, so the figure
    is infinite where more than one in twenty are.

    Args:
        spacing: (row, column) distance of pixel centres in mm; without, in pixels.

    Returns:
        mm or pixels; 0 where both masks are empty, infinite where exactly one is.
    """
    _check(pred, truth)
    if not (pred.any() and truth.any()):
        return float("inf") if pred.any() or truth.any() else 0.0
    frames = zip(_frames(pred), _frames(truth), strict=True)
    pairs = [_frame_gaps(p, t, spacing) for p, t in frames]
    return max(_percentile_95(np.concatenate(gaps)) for gaps in zip(*pairs, strict=True))


def _frame_gaps(
    pred: np.ndarray, truth: np.ndarray, spacing: tuple[float, float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each outline pixel of ``pred`` to that of ``truth``, and the other way."""
    from scipy.ndimage import binary_erosion, distance_transform_edt

    places = [(pred | truth).any(axis).nonzero()[0] for axis in (1, 0)]
    if not len(places[0]):
        return np.empty(0), np.empty(0)
    window = tuple(slice(place[0], place[-1] + 1) for place in places)
    # Nothing is set beyond the window: all distances lie in it, and it has far fewer pixels.
    first, second = (m[window] & ~binary_erosion(m[window]) for m in (pred, truth))

    def gaps(own: np.ndarray, other: np.ndarray) -> np.ndarray:
        if not other.any():
            return np.full(np.count_nonzero(own), np.inf)
        return distance_transform_edt(~other, sampling=spacing)[own]

    return gaps(first, second), gaps(second, first)


def _percentile_95(values: np.ndarray) -> float:
    """Linear between neighbours, as NumPy's, which cannot do it beside infinity."""
    place = 0.95 * (len(values) - 1)
    below, above = int(np.floor(place)), int(np.ceil(place))
    low, high = np.partition(values, [below, above])[[below, above]]
    return float(low + (high - low) * (place - below)) if np.isfinite(high) else float("inf")


def roc_auc(levels: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve of a map whose pixels should be high where the truth is.

    The chance that a pixel of the truth has a higher value than one outside of it, where
    equal values count one half: exact, from one histogram each, over all frames together.

    Args:
        levels: uint8 or uint16 (H, W) or (F, H, W).
        truth: bool, of the same shape.

    Returns:
        A number in [0, 1]; NaN where the truth is empty or covers everything.
    """
    _check(truth, truth)
    if levels.dtype not in (np.uint8, np.uint16) or levels.shape != truth.shape:
        raise ValueError(
            f"expected a map of uint8 or uint16 {truth.shape}, got {levels.dtype} {levels.shape}"
        )
    ins, outs = np.zeros((2, 1 << 16), np.int64)
    for values, inside in zip(_frames(levels), _frames(truth), strict=True):  # bincount widens
        ins += np.bincount(values[inside], minlength=1 << 16)
        outs += np.bincount(values[~inside], minlength=1 << 16)
    pairs = int(ins.sum()) * int(outs.sum())
    lower = np.cumsum(outs) - outs
    return int((ins * (2 * lower + outs)).sum()) / (2 * pairs) if pairs else float("nan")


def mean_interval(
    values: Sequence[float] | np.ndarray, seed: int = 0
) -> tuple[float, float, float]:
    """Mean and its 95 % bootstrap percentile interval, as (mean, low, high).

    10,000 resamples with replacement; the same seed gives the same interval. One value
    says nothing about its spread: low and high are NaN.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"expected a non-empty row of finite numbers, got shape {array.shape}")
    if array.size == 1:
        return float(array[0]), float("nan"), float("nan")
    low, high = np.percentile(_resampled_means(array, np.random.default_rng(seed)), (2.5, 97.5))
    return float(array.mean()), float(low), float(high)


def _resampled_means(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if array.size >= MANY:
        distinct, counts = np.unique(array, return_counts=True)
        if distinct.size <= FEW:  # how often each is drawn is multinomial: the same, in less time
            draws = rng.multinomial(array.size, counts / array.size, RESAMPLES)
            return draws @ distinct / array.size
    means = np.empty(RESAMPLES)
    rows = max(1, DRAWS_AT_ONCE // array.size)
    for start in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - start)
        means[start : start + count] = array[
            rng.integers(array.size, size=(count, array.size))
        ].mean(axis=1)
    return means


def _frames(array: np.ndarray) -> np.ndarray:
    return array if array.ndim == 3 else array[None]


def _check(pred: np.ndarray, truth: np.ndarray) -> None:
    for name, mask in (("pred", pred), ("truth", truth)):
        if mask.dtype != bool or mask.ndim not in (2, 3):
            raise ValueError(
                f"expected {name} as bool (H, W) or (F, H, W), got {mask.dtype} {mask.shape}"
            )
    if pred.shape != truth.shape:
        raise ValueError(f"expected masks of one shape, got {pred.shape} and {truth.shape}")
