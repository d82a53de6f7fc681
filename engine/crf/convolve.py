"""Separable convolution with odd taps and zeros beyond the ends, four taps a sweep.

One sweep over a row loads four inputs for one sum; tap by tap, each would also load and
store the sum.
"""

import math

import numpy as np

from medclipsam.engine.jit import kernel


def gaussian_taps(sigma: float, radius: float, longest: int) -> np.ndarray:
    """exp(−½ (o/σ)²) for |o| ≤ min(⌈radius·σ⌉, longest), float64 (2r + 1,)."""
    reach = min(max(1, math.ceil(radius * sigma)), longest)
    return np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)


def in_fours(taps: np.ndarray) -> np.ndarray:
    """float32 taps with zeros behind, so that their number is a multiple of four."""
    return np.pad(taps, (0, -len(taps) % 4)).astype(np.float32)


@kernel
def along_last(lanes, taps, radius, out):
    """Convolve axis 1 of (A, N); ``taps`` in fours, the middle one at ``radius``."""
    count = lanes.shape[1]
    padded = np.zeros(count + taps.size + 3, np.float32)
    for a in range(lanes.shape[0]):
        padded[radius : radius + count] = lanes[a]
        out[a] = 0
        for t in range(0, taps.size, 4):
            a0, a1, a2, a3 = taps[t], taps[t + 1], taps[t + 2], taps[t + 3]
            x = padded[t:]
            for n in range(count):
                out[a, n] += a0 * x[n] + a1 * x[n + 1] + a2 * x[n + 2] + a3 * x[n + 3]


@kernel
def along_middle(lanes, taps, radius, out):
    """Convolve axis 1 of (A, N, B); ``taps`` in fours, the middle one at ``radius``."""
    count = lanes.shape[1]
    nothing = np.zeros(lanes.shape[2], np.float32)
    for a in range(lanes.shape[0]):
        for n in range(count):
            out[a, n] = 0
            for t in range(0, taps.size, 4):
                at = n - radius + t
                if at <= -4 or at >= count:
                    continue
                a0, a1, a2, a3 = taps[t], taps[t + 1], taps[t + 2], taps[t + 3]
                x0 = lanes[a, at] if at >= 0 else nothing
                x1 = lanes[a, at + 1] if 0 <= at + 1 < count else nothing
                x2 = lanes[a, at + 2] if 0 <= at + 2 < count else nothing
                x3 = lanes[a, at + 3] if at + 3 < count else nothing
                for b in range(lanes.shape[2]):
                    out[a, n, b] += a0 * x0[b] + a1 * x1[b] + a2 * x2[b] + a3 * x3[b]
