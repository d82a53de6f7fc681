"""The 3-D bilateral grid: Gaussian filtering of grey images over (x, y, intensity).

Filters v_i → Σ_j exp(−½‖f_i − f_j‖²) v_j with f = (y/σ_xy, x/σ_xy, I/σ_I) by trilinear
splat, separable Gaussian blur on the grid, trilinear slice (Paris & Durand, IJCV 2009;
Chen, Paris & Durand, SIGGRAPH 2007). Splat and slice each blur by 1/6 cell² per axis, so
the grid's own blur has the variance s² − 1/3 that is left of s² cells².
"""

from __future__ import annotations

import math

import numba
import numpy as np

from medclipsam.engine.errors import ConfigError

CELLS_PER_SIGMA = 2.0
MAX_CELLS = 1 << 27


class BilateralGrid:
    """The filter for one grey image.

    Args:
        grey: uint8 (H, W).
        sigma_xy: spatial deviation in pixels, > 0.
        sigma_intensity: deviation in grey levels, > 0.

    Raises:
        ConfigError: the deviations ask for a grid that does not fit in memory.
    """

    def __init__(self, grey: np.ndarray, sigma_xy: float, sigma_intensity: float):
        height, width = grey.shape
        per_pixel = np.float32(CELLS_PER_SIGMA / sigma_xy)
        per_level = np.float32(CELLS_PER_SIGMA / sigma_intensity)
        self._rows, row_cells = _axis(np.arange(height, dtype=np.float32) * per_pixel)
        self._columns, column_cells = _axis(np.arange(width, dtype=np.float32) * per_pixel)
        low = int(grey.min(initial=255))
        levels = np.clip(np.arange(256, dtype=np.float32) - low, 0, None) * per_level
        levels = np.minimum(levels, (int(grey.max(initial=0)) - low) * per_level)
        self._levels, level_cells = _axis(levels)
        self._shape = (row_cells, column_cells, level_cells)
        if math.prod(self._shape) > MAX_CELLS:
            raise ConfigError(
                f"the CRF's bilateral deviations sxy={sigma_xy}, srgb={sigma_intensity:.3g} need a "
                f"grid of {self._shape} cells for a {height}×{width} image; use larger ones"
            )
        self._grey = np.ascontiguousarray(grey)
        self._taps = _gaussian_taps(CELLS_PER_SIGMA)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """float32 (H, W) → float32 (H, W)."""
        grid = np.zeros(self._shape, np.float32)
        _splat(values, self._grey, self._rows, self._columns, self._levels, grid)
        for axis in range(3):
            blurred = np.zeros_like(grid)
            lanes = (math.prod(self._shape[:axis]), self._shape[axis], -1)
            _blur(grid.reshape(lanes), self._taps, blurred.reshape(lanes))
            grid = blurred
        out = np.empty_like(values)
        _slice(grid, self._grey, self._rows, self._columns, self._levels, out)
        return out


def _axis(positions: np.ndarray) -> tuple[np.ndarray, int]:
    """Positions in cells, and how many cells they need with one beyond for interpolation."""
    return positions.astype(np.float32), int(positions.max(initial=0)) + 2


def _gaussian_taps(sigma: float) -> np.ndarray:
    """Odd float32 taps of amplitude such that splat, blur and slice peak at about 1."""
    left = math.sqrt(sigma**2 - 1 / 3)
    offsets = np.arange(-math.ceil(5 * left), math.ceil(5 * left) + 1)
    taps = np.exp(-0.5 * (offsets / left) ** 2)
    return (taps / taps.sum() * math.sqrt(2 * math.pi) * sigma).astype(np.float32)


@numba.njit(nogil=True, cache=True)
def _splat(values, grey, rows, columns, levels, out):
    """Add each pixel to its eight cells with trilinear weights."""
    for i in range(values.shape[0]):
        y = int(rows[i])
        fy = rows[i] - y
        for j in range(values.shape[1]):
            x = int(columns[j])
            fx = columns[j] - x
            level = levels[grey[i, j]]
            z = int(level)
            fz = level - z
            for a in range(2):
                wy = values[i, j] * (fy if a else 1 - fy)
                for b in range(2):
                    w = wy * (fx if b else 1 - fx)
                    out[y + a, x + b, z] += w * (1 - fz)
                    out[y + a, x + b, z + 1] += w * fz


@numba.njit(nogil=True, cache=True)
def _blur(lanes, taps, out):
    """Convolve axis 1 of (A, N, B) with ``taps``, zero beyond the ends."""
    radius = taps.size // 2
    for a in range(lanes.shape[0]):
        for n in range(lanes.shape[1]):
            for t in range(max(0, n - radius), min(lanes.shape[1], n + radius + 1)):
                weight = taps[t - n + radius]
                for b in range(lanes.shape[2]):
                    out[a, n, b] += weight * lanes[a, t, b]


@numba.njit(nogil=True, cache=True)
def _slice(grid, grey, rows, columns, levels, out):
    """Read the grid at each pixel with trilinear weights."""
    for i in range(out.shape[0]):
        y = int(rows[i])
        fy = rows[i] - y
        for j in range(out.shape[1]):
            x = int(columns[j])
            fx = columns[j] - x
            level = levels[grey[i, j]]
            z = int(level)
            fz = level - z
            total = np.float32(0)
            for a in range(2):
                wy = fy if a else 1 - fy
                for b in range(2):
                    w = wy * (fx if b else 1 - fx)
                    total += w * ((1 - fz) * grid[y + a, x + b, z] + fz * grid[y + a, x + b, z + 1])
            out[i, j] = total
