"""How close a mask is to the truth.

Refuses to know files, labels and patients: bool arrays in, numbers out. Masks are
(H, W) or (F, H, W) with frames first.

Empty masks, in all three figures: both empty is a perfect 1.0, exactly one empty
is 0.0.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
DRAWS_AT_ONCE = 1 << 22  # 32 MiB of indices, whatever the number of values


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
    frames = ((m if m.ndim == 3 else m[None]) for m in (pred, truth))
    pairs = zip(*frames, strict=True)
    scores = [_frame_nsd(p, t, tolerance, spacing) for p, t in pairs if p.any() or t.any()]
    return float(np.mean(scores)) if scores else 1.0


def _frame_nsd(
    pred: np.ndarray, truth: np.ndarray, tolerance: float, spacing: tuple[float, float] | None
) -> float:
    if not (pred.any() and truth.any()):
        return 0.0
    import torch
    from monai.metrics import compute_surface_dice

    first, second = (torch.from_numpy(m.copy())[None, None] for m in (pred, truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 deprecates its own argument
        score = compute_surface_dice(
            first,
            second,
            class_thresholds=[tolerance],
            include_background=True,
            spacing=None if spacing is None else list(spacing),
        )
    return float(score)


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
    rng = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    rows = max(1, DRAWS_AT_ONCE // array.size)
    for start in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - start)
        means[start : start + count] = array[
            rng.integers(array.size, size=(count, array.size))
        ].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(array.mean()), float(low), float(high)


def _check(pred: np.ndarray, truth: np.ndarray) -> None:
    for name, mask in (("pred", pred), ("truth", truth)):
        if mask.dtype != bool or mask.ndim not in (2, 3):
            raise ValueError(
                f"expected {name} as bool (H, W) or (F, H, W), got {mask.dtype} {mask.shape}"
            )
    if pred.shape != truth.shape:
        raise ValueError(f"expected masks of one shape, got {pred.shape} and {truth.shape}")
