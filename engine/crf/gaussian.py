"""The smoothness kernel of the CRF: a separable Gaussian over pixel positions."""

from functools import lru_cache

import numpy as np

from medclipsam.engine.crf.convolve import along_last, along_middle, gaussian_taps, in_fours

RADIUS = 3.5  # in deviations; what lies beyond is below e⁻⁸


class SpatialGaussian:
    """The filter v_i → Σ_j exp(−½‖x_i − x_j‖²/σ²) v_j over pixel positions x.

    Exact but for taps below e⁻⁸; nothing lies beyond the border.

    Args:
        shape: (H, W).
        sigma: deviation in pixels, > 0.

    Attributes:
        norm: 1/√(K 1), float32 (H, W).
    """

    def __init__(self, shape: tuple[int, ...], sigma: float):
        taps = gaussian_taps(sigma, RADIUS, max(shape))
        self._radius = len(taps) // 2
        self._taps = in_fours(taps)
        self.norm = _symmetric_norm(shape, sigma)

    def __call__(self, values: np.ndarray, out: np.ndarray) -> None:
        """Filter float32 (H, W) into ``out`` (H, W)."""
        rows = np.empty_like(values)
        along_last(values, self._taps, self._radius, rows)
        along_middle(rows[None], self._taps, self._radius, out[None])


@lru_cache(maxsize=2)
def _symmetric_norm(shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """1/√(K 1), float32 (H, W): the same for all images of a size, and separable."""
    taps = gaussian_taps(sigma, RADIUS, max(shape))
    radius = len(taps) // 2
    sums = [np.convolve(np.ones(n), taps)[radius : radius + n] for n in shape]
    return np.outer(*[(1 / np.sqrt(total)).astype(np.float32) for total in sums])
