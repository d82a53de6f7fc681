"""Our solver of the dense CRF.

Mean field of Krähenbühl & Koltun (NIPS 2011) with the unary and the defaults of
MedCLIP-SAM's ``crf/densecrf_sal.py``. With two labels one filtered channel is enough:
for ΔU = U_background − U_foreground and D = Q_foreground − Q_background = tanh(½·logit),

    logit ← ΔU + Σ_m compat_m · n_m · K_m (n_m · D),     n_m = 1/√(K_m 1 + 1e-20).

Grey images (R = G = B) use a 3-D bilateral grid, colour images a permutohedral lattice.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

from medclipsam.engine.config import CrfConfig
from medclipsam.engine.crf.bilateral import BilateralGrid
from medclipsam.engine.crf.gaussian import SpatialGaussian
from medclipsam.engine.crf.permutohedral import PermutohedralLattice
from medclipsam.engine.crf.pointwise import (
    above,
    add_message,
    difference,
    marginal,
    symmetric_norm,
    unary,
)

MAX_GRID_CELLS = 1 << 26  # two float32 grids of 256 MiB

Filter = Callable[[np.ndarray, np.ndarray], None]


class MeanField:
    """Mean field in numba over one image at its own size; see ``Solver``."""

    def __init__(self, rgb: np.ndarray, config: CrfConfig):
        self._shape = rgb.shape[:2]
        self._config = config
        self._kernels: list[tuple[np.float32, np.ndarray, Filter]] = []
        self.kind = "none"
        if config.gaussian_compat and config.iterations:
            gaussian = SpatialGaussian(self._shape, config.gaussian_sxy)
            self._kernels.append((np.float32(config.gaussian_compat), gaussian.norm, gaussian))
        if config.bilateral_compat and config.iterations:
            self.kind, bilateral = _bilateral_filter(rgb, config)
            self._add_kernel(config.bilateral_compat, bilateral)

    def _add_kernel(self, compat: float, apply: Filter) -> None:
        norm = np.empty(self._shape, np.float32)
        apply(np.ones(self._shape, np.float32), norm)
        symmetric_norm(norm.ravel())
        self._kernels.append((np.float32(compat), norm, apply))

    def marginal(self, probability: np.ndarray) -> np.ndarray:
        logit = self._logit(probability)
        out = np.empty_like(logit)  # in place, the loop would not use vectors
        marginal(logit.ravel(), out.ravel())
        return out

    def mask(self, probability: np.ndarray) -> np.ndarray:
        threshold = self._config.threshold
        out = np.empty(self._shape, np.bool_)
        above(
            self._logit(probability).ravel(),
            np.float32(math.log(threshold / (1 - threshold))),
            out.ravel(),
        )
        return out

    def _logit(self, p: np.ndarray) -> np.ndarray:
        config = self._config
        logit, start = np.empty_like(p), np.empty_like(p)
        unary(p.ravel(), np.float32(config.epsilon), np.float32(config.tau), start.ravel())
        np.copyto(logit, start)
        balance, scaled, message = (np.empty_like(p) for _ in range(3))
        for _ in range(config.iterations if self._kernels else 0):
            difference(logit.ravel(), balance.ravel())
            np.copyto(logit, start)
            for compat, norm, apply in self._kernels:
                np.multiply(norm, balance, out=scaled)
                apply(scaled, message)
                add_message(compat, norm.ravel(), message.ravel(), logit.ravel())
        return logit


def _bilateral_filter(rgb: np.ndarray, config: CrfConfig) -> tuple[str, Filter]:
    """The appearance filter for an image, and its name.

    Three equal channels at distance d count as one at √3·d.
    """
    grey, *others = cv2.split(rgb)
    is_grey = all(np.array_equal(grey, other) for other in others)
    intensity = config.bilateral_srgb / math.sqrt(3)
    if is_grey and BilateralGrid.cells(grey.shape, config.bilateral_sxy) <= MAX_GRID_CELLS:
        return "bilateral-grid", BilateralGrid(grey, config.bilateral_sxy, intensity)
    levels = grey[..., None] if is_grey else rgb
    deviation = intensity if is_grey else config.bilateral_srgb
    height, width, channels = levels.shape
    features = np.empty((2 + channels, height, width), np.float32)
    features[0] = np.arange(width) / config.bilateral_sxy
    features[1] = np.arange(height)[:, None] / config.bilateral_sxy
    np.divide(levels.transpose(2, 0, 1), np.float32(deviation), out=features[2:])
    lattice = PermutohedralLattice(features.reshape(len(features), -1))
    return "permutohedral-lattice", lambda values, out: lattice(values.ravel(), out.ravel())
