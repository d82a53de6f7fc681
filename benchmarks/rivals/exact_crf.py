"""The dense CRF without approximation, in float64: the truth that filters are measured by.

Every pair of pixels counts. On grey images the kernel is separable into rows, columns and
levels, so sums over all pairs become products of matrices, and megapixels are in reach.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from medclipsam.engine.crf import CrfConfig

BLOCK = 32  # rows of the matrix at a time, so that they stay in the cache


def exact_marginal(rgb: np.ndarray, probability: np.ndarray, config: CrfConfig) -> np.ndarray:
    """Foreground marginal of the dense CRF, all pairs summed.

    Args:
        rgb: uint8 (H, W, 3).
        probability: float32 (H, W) in [0, 1].
        config: see ``CrfConfig``; solver, threshold and max_side do not matter.

    Returns:
        float64 (H, W).
    """
    unary = _unary(probability.astype(np.float64), config)
    grey = bool((rgb == rgb[..., :1]).all())
    kernels = []
    if config.gaussian_compat:
        kernels.append((config.gaussian_compat, _spatial(probability.shape, config.gaussian_sxy)))
    if config.bilateral_compat:
        open_kernel = _by_level if grey else _by_pair
        kernels.append((config.bilateral_compat, open_kernel(rgb, config)))
    terms = []
    for compat, apply in kernels:
        norm = 1 / torch.sqrt(apply(torch.ones_like(unary)) + 1e-20)
        terms.append((compat, norm, apply))
    logit = unary
    for _ in range(config.iterations):
        difference = torch.tanh(logit / 2)
        logit = unary + sum(c * n * apply(n * difference) for c, n, apply in terms)
    return torch.sigmoid(logit).numpy()


def _unary(p: np.ndarray, config: CrfConfig) -> torch.Tensor:
    background, foreground = (
        -np.log(q + config.epsilon) * (1 + np.exp(-q)) / config.tau for q in (1 - p, p)
    )
    return torch.from_numpy(background - foreground)


def _along(length: int, sigma: float) -> torch.Tensor:
    place = torch.arange(length, dtype=torch.float64) / sigma
    return torch.exp(-0.5 * (place[:, None] - place) ** 2)


def _spatial(shape: tuple[int, ...], sigma: float) -> Callable[[torch.Tensor], torch.Tensor]:
    rows, columns = (_along(length, sigma) for length in shape)
    return lambda values: rows @ values @ columns


def _by_level(rgb: np.ndarray, config: CrfConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """One spatial Gaussian for the pixels of each grey level, weighted by levels' distances."""
    grey = torch.from_numpy(rgb[..., 0].astype(np.int64))
    spatial = _spatial(rgb.shape[:2], config.bilateral_sxy)
    weights = _along(256, config.bilateral_srgb / math.sqrt(3))

    def apply(values: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(values)
        for level in grey.unique():
            out += weights[level][grey] * spatial(values * (grey == level))
        return out

    return apply


def _by_pair(rgb: np.ndarray, config: CrfConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """Plain sums over all N² pairs, a block of rows of the matrix at a time."""
    height, width = rgb.shape[:2]
    y, x = np.mgrid[:height, :width].reshape(2, -1, 1) / config.bilateral_sxy
    colours = rgb.reshape(-1, 3) / config.bilateral_srgb
    features = torch.from_numpy(np.hstack([y, x, colours]))

    lengths = 0.5 * features.square().sum(1)

    def apply(values: torch.Tensor) -> torch.Tensor:
        flat, out = values.ravel(), torch.empty_like(values.ravel())
        exponents = torch.empty(BLOCK, len(flat), dtype=torch.float64)
        for start in range(0, len(flat), BLOCK):
            rows = slice(start, min(start + BLOCK, len(flat)))
            block = exponents[: rows.stop - start]
            torch.addmm(lengths, features[rows], features.T, beta=-1, out=block)
            block.sub_(lengths[rows, None]).exp_()
            torch.mv(block, flat, out=out[rows])
        return out.reshape(values.shape)

    return apply
