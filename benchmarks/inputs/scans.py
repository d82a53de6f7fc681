"""Made-up scans of any size for timing and for errors: grey and colour, smooth and noisy."""

import numpy as np


def smooth_grey(side: int, rng: np.random.Generator) -> np.ndarray:
    """Like a brain MRI: slow shading, sharp edges, faint noise; uint8 (side, side, 3)."""
    return _three(_anatomy(side) + rng.normal(0, 2, (side, side)))


def speckled_grey(side: int, rng: np.random.Generator) -> np.ndarray:
    """Like an ultrasound: the same anatomy under multiplicative Rayleigh speckle."""
    return _three(_anatomy(side) * rng.rayleigh(0.8, (side, side)))


def natural_colour(side: int, rng: np.random.Generator) -> np.ndarray:
    """Like an endoscopy: tinted anatomy, a fine pattern, the noise of a sensor."""
    y, x = np.mgrid[:side, :side] / side
    tint = np.array([1.2, 0.8, 0.65])
    pattern = 8 * np.sin(60 * x + 9 * np.sin(7 * y))[..., None] * [0.3, 1, 0.8]
    noise = rng.normal(0, 3, (side, side, 3))
    return _levels(_anatomy(side)[..., None] * tint + pattern + noise)


def colour_noise(side: int, rng: np.random.Generator) -> np.ndarray:
    """Every channel of every pixel uniform: the worst that can happen to a lattice."""
    return rng.integers(0, 256, (side, side, 3), dtype=np.uint8)


SCANS = {
    "grey smooth": smooth_grey,
    "grey speckled": speckled_grey,
    "colour natural": natural_colour,
    "colour noise": colour_noise,
}


def blob(side: int, rng: np.random.Generator) -> np.ndarray:
    """A saliency that is off the target by a bit and coarse; float32 (side, side) in [0, 1]."""
    y, x = np.mgrid[:side, :side] / side
    wobble = 0.1 * np.sin(9 * x + rng.uniform(0, 6)) * np.cos(8 * y + rng.uniform(0, 6))
    return np.clip(1.1 - 2.6 * np.hypot(y - 0.45, x - 0.5) + wobble, 0, 1).astype(np.float32)


def _anatomy(side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / side
    body = np.hypot((y - 0.5) / 0.46, (x - 0.5) / 0.4) < 1
    lesion = np.hypot(y - 0.4, x - 0.56) < 0.14
    organ = np.hypot((y - 0.66) / 0.5, x - 0.36) < 0.2
    return body * (90 + 25 * np.sin(6 * x) * np.cos(5 * y)) + 55 * lesion - 35 * organ + 15


def _three(grey: np.ndarray) -> np.ndarray:
    return _levels(np.repeat(grey[..., None], 3, 2))


def _levels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
