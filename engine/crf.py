"""Two-label dense CRF: saliency in, marginal of the foreground out.

Mean field of Krähenbühl & Koltun (NIPS 2011) with the unary and the defaults of
MedCLIP-SAM's ``crf/densecrf_sal.py``. With two labels one filtered channel is enough:
for ΔU = U_background − U_foreground and D = Q_foreground − Q_background = tanh(½·logit),

    logit ← ΔU + Σ_m compat_m · n_m · K_m (n_m · D),     n_m = 1/√(K_m 1 + 1e-20).

Grey images (R = G = B) use a 3-D bilateral grid, exact for the kernel; colour images a
permutohedral lattice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from medclipsam.engine.bilateral import BilateralGrid
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.permutohedral import PermutohedralLattice

_EPSILON = 1e-8

Filter = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class CrfConfig:
    """Parameters of the dense CRF; the defaults are the published ones.

    Attributes:
        gaussian_sxy: deviation of the smoothness kernel in pixels.
        gaussian_compat: its weight; 0 leaves it out.
        bilateral_sxy: spatial deviation of the appearance kernel in pixels.
        bilateral_srgb: its colour deviation in levels of 0…255.
        bilateral_compat: its weight; 0 leaves it out.
        tau: temperature of the unary.
        iterations: mean-field iterations; 0 gives the unary's own marginal.
        threshold: marginal at which a pixel becomes foreground.
    """

    gaussian_sxy: float = 3.0
    gaussian_compat: float = 3.0
    bilateral_sxy: float = 60.0
    bilateral_srgb: float = 5.0
    bilateral_compat: float = 5.0
    tau: float = 1.05
    iterations: int = 1
    threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb", "tau"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"crf.{name} must be positive, got {getattr(self, name)}")
        for name in ("gaussian_compat", "bilateral_compat", "iterations"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"crf.{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.threshold < 1:
            raise ConfigError(f"crf.threshold must lie between 0 and 1, got {self.threshold}")


def dense_crf(
    rgb: np.ndarray, probability: np.ndarray, config: CrfConfig | None = None
) -> np.ndarray:
    """Refine a saliency map to the edges of its image.

    Args:
        rgb: uint8 (H, W, 3).
        probability: (H, W) saliency in [0, 1].
        config: see ``CrfConfig``.

    Returns:
        float32 (H, W) foreground marginal in [0, 1]; never NaN.

    Raises:
        ValueError: shapes or types do not fit, or the saliency leaves [0, 1].
    """
    config = config or CrfConfig()
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"expected uint8 (H, W, 3), got {rgb.dtype} {rgb.shape}")
    if probability.shape != rgb.shape[:2]:
        raise ValueError(f"saliency {probability.shape} does not lie on image {rgb.shape[:2]}")
    p = np.ascontiguousarray(probability, np.float32)
    if p.size == 0 or not (p.min() >= 0 and p.max() <= 1):
        raise ValueError("saliency must be finite, in [0, 1] and not empty")
    unary = unary_logit(p, config.tau)
    kernels = _kernels(rgb, config) if config.iterations else []
    logit = unary
    for _ in range(config.iterations):
        difference = np.tanh(0.5 * logit)
        logit = unary.copy()
        for compat, norm, apply in kernels:
            logit += compat * norm * apply(norm * difference)
    return (0.5 * (1 + np.tanh(0.5 * logit))).astype(np.float32)


def unary_logit(p: np.ndarray, tau: float) -> np.ndarray:
    """ΔU of the published unary: log-probabilities tempered by τ times their own sigmoid."""
    foreground = -np.log(p + _EPSILON) / (tau * _sigmoid(p))
    background = -np.log(1 - p + _EPSILON) / (tau * _sigmoid(1 - p))
    return (background - foreground).astype(np.float32)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _kernels(rgb: np.ndarray, config: CrfConfig) -> list[tuple[np.float32, np.ndarray, Filter]]:
    """(weight, symmetric norm, filter) of each kernel in use."""
    filters: list[tuple[float, Filter]] = []
    if config.gaussian_compat:
        filters.append((config.gaussian_compat, _gaussian_filter(config.gaussian_sxy)))
    if config.bilateral_compat:
        filters.append((config.bilateral_compat, _bilateral_filter(rgb, config)))
    ones = np.ones(rgb.shape[:2], np.float32)
    return [
        (np.float32(compat), 1 / np.sqrt(np.maximum(apply(ones), 0) + 1e-20), apply)
        for compat, apply in filters
    ]


def _gaussian_filter(sigma: float) -> Filter:
    """Exact separable Gaussian with zero beyond the border, cut at 5σ."""
    radius = max(1, math.ceil(5 * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
    return lambda values: cv2.sepFilter2D(
        values, cv2.CV_32F, taps, taps, borderType=cv2.BORDER_CONSTANT
    )


def _bilateral_filter(rgb: np.ndarray, config: CrfConfig) -> Filter:
    if is_grey(rgb):
        # three equal channels at distance d count as one at √3·d
        return BilateralGrid(
            rgb[..., 0], config.bilateral_sxy, config.bilateral_srgb / math.sqrt(3)
        )
    height, width = rgb.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32) / np.float32(config.bilateral_sxy)
    colour = rgb.astype(np.float32) / np.float32(config.bilateral_srgb)
    features = np.concatenate([x[..., None], y[..., None], colour], axis=2)
    lattice = PermutohedralLattice(features.reshape(-1, 5))
    return lambda values: lattice(values.ravel()).reshape(values.shape)


def is_grey(rgb: np.ndarray) -> bool:
    """Whether the three channels of (H, W, 3) are equal everywhere."""
    return bool((rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all())
