"""Pictures with a saliency, and the dense CRF over them by brute force and by pydensecrf."""

import numpy as np
import pydensecrf.densecrf as published

from medclipsam.benchmarks.inputs.scans import SCANS, blob
from medclipsam.engine.crf import CrfConfig


def picture(shape, seed, colour=False):
    """A bright disc on a dark ground with noise, and a saliency that is off by a bit."""
    rng = np.random.default_rng([seed, *shape])
    height, width = shape
    y, x = np.mgrid[:height, :width]
    disc = np.hypot((y - 0.4 * height) / height, (x - 0.55 * width) / width) < 0.3
    levels = np.where(disc, 150, 60)[..., None] + rng.normal(0, 4, (height, width, 3))
    if colour:
        levels = levels * [1.0, 0.8, 0.55] + 20 * np.sin(x / 9)[..., None] * [0, 1, -1]
    else:
        levels = levels[..., :1].repeat(3, 2)
    near = np.hypot((y - 0.45 * height) / height, (x - 0.5 * width) / width)
    saliency = np.clip(0.9 - 1.6 * near + rng.normal(0, 0.08, shape), 0, 1)
    return np.clip(levels, 0, 255).astype(np.uint8), saliency.astype(np.float32)


def energies(p, tau=1.05, epsilon=1e-8):
    """(2, N) unary energies of background and foreground, float64."""
    p = p.astype(np.float64).ravel()
    return np.stack(
        [-np.log(q + epsilon) * (1 + np.exp(-q)) / tau for q in (1 - p, p)],
    )


def softmax(energy):
    weight = np.exp(energy.min(0) - energy)
    return weight / weight.sum(0)


def brute_force(rgb, p, iterations, config=None):
    """Mean field with all N² pairs of two labels, straight from the paper."""
    config = config or CrfConfig()
    height, width = p.shape
    y, x = (axis.ravel().astype(np.float64) for axis in np.mgrid[:height, :width])
    place = np.stack([y, x], 1)
    colour = rgb.reshape(-1, 3).astype(np.float64)
    both = np.hstack([place / config.bilateral_sxy, colour / config.bilateral_srgb])
    kernels = []
    for features, compat in (
        (place / config.gaussian_sxy, config.gaussian_compat),
        (both, config.bilateral_compat),
    ):
        square = (features**2).sum(1)
        gaps = square[:, None] + square[None] - 2 * features @ features.T
        kernel = np.exp(-0.5 * np.maximum(gaps, 0))
        norm = 1 / np.sqrt(kernel.sum(1) + 1e-20)
        kernels.append((compat, norm[:, None] * kernel * norm[None]))
    unary = energies(p, config.tau)
    q = softmax(unary)
    for _ in range(iterations):
        energy = unary.copy()
        for compat, kernel in kernels:
            energy += compat * (kernel @ q.T).T[::-1]  # Potts: pay for the other label
        q = softmax(energy)
    return q[1].reshape(p.shape)


def pydensecrf(rgb, p, iterations):
    crf = published.DenseCRF2D(p.shape[1], p.shape[0], 2)
    crf.setUnaryEnergy(np.ascontiguousarray(energies(p), np.float32))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=60, srgb=5, rgbim=np.ascontiguousarray(rgb), compat=5)
    return np.array(crf.inference(iterations))[1].reshape(p.shape)


def error(q, truth):
    gap = np.abs(q - truth)
    return float(gap.mean()), float(gap.max())


def scan(name, shape, seed=0):
    rng = np.random.default_rng(seed)
    side = max(shape)
    rgb, p = SCANS[name](side, rng), blob(side, rng)
    return np.ascontiguousarray(rgb[: shape[0], : shape[1]]), p[: shape[0], : shape[1]].copy()
