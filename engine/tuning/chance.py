"""How likely the best of several candidates is as good as it looks by chance alone."""

import math

import numpy as np

EXACT = 13  # cases up to which all sign changes are gone through
RANDOM = 10_000  # sign changes drawn for more cases


def chance(gains: np.ndarray, seed: int = 0) -> np.ndarray:
    """One-sided p of each candidate's mean gain, corrected for having several candidates.

    Sign-flip test with the largest statistic over all candidates (max-T; Westfall and Young,
    Resampling-Based Multiple Testing, 1993): where no candidate is better, the chance that
    *any* p is α or less is at most α, whatever the candidates have in common. It takes that
    a case's gains are as likely with the opposite sign.

    Args:
        gains: float (N, M), paired gains of M candidates in N independent cases.
        seed: of the sign changes drawn for more than 13 cases.

    Returns:
        float64 (M,) in (0, 1].
    """
    gains = np.asarray(gains, np.float64)
    if gains.ndim != 2 or 0 in gains.shape or not np.isfinite(gains).all():
        raise ValueError(f"expected finite gains (cases, candidates), got shape {gains.shape}")
    size = np.sqrt((gains**2).sum(0))  # the same for all sign changes
    scaled = gains / np.where(size > 0, size, 1.0)
    found = scaled.sum(0)
    largest = (_signs(len(gains), seed) @ scaled).max(axis=1)
    # The observed signs are among them; rounding must not count them as smaller.
    return (largest[:, None] >= found - 1e-12).mean(axis=0)


def _signs(cases: int, seed: int) -> np.ndarray:
    """float64 (S, N) of ±1, the first row without a change."""
    if cases <= EXACT:
        bits = np.arange(1 << cases)[:, None] >> np.arange(cases)
        return 1.0 - 2.0 * (bits & 1)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (RANDOM, cases))
    signs[0] = 1.0
    return signs


def least_cases(level: float) -> int:
    """The fewest cases of which a p of ``level`` can come: 2⁻ᴺ ≤ level."""
    return math.ceil(-math.log2(level))
