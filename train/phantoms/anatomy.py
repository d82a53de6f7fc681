"""The three kinds of scan: tissue, and the targets that were asked for, painted into it.

Refuses to know seeds and captions. Each painter gives pixels, not yet clipped to [0, 1], and
the mask of each target.
"""

import cv2
import numpy as np
from numpy.random import Generator

from medclipsam.train.phantoms.shapes import Size, below, clouds, ellipse, grid, place, soft

Scan = tuple[np.ndarray, dict[str, np.ndarray]]


def ultrasound(rng: Generator, size: Size, targets: tuple[str, ...]) -> Scan:
    y, x = grid(size)
    unit = min(size) / 100
    wavy = y + 0.06 * clouds(rng, size, 0.35)
    fat, muscle = rng.uniform(-0.75, -0.5), rng.uniform(0.55, 0.85)
    echo: np.ndarray = np.where(wavy < fat, 0.34, np.where(wavy < muscle, 0.5, 0.4))
    echo = echo.astype(np.float32)
    echo += 0.07 * clouds(rng, size, 0.12) + 0.05 * clouds(rng, (size[0], size[1]), 0.05)
    streaks = np.sin(wavy * rng.uniform(14, 26) + 2.5 * clouds(rng, size, 0.3))
    echo += 0.07 * np.clip(streaks, 0.4, 1)
    echo += 0.3 * np.exp(-(((wavy + 0.95) / 0.05) ** 2))

    masks: dict[str, np.ndarray] = {}
    taken = np.zeros(size, bool)
    inside = (y > -0.62) & (y < 0.6) & (np.abs(x) < 0.85)
    for target in targets:
        rough = 0.35 if target == "mass" else 0.06
        mask = place(rng, size, inside, taken, (0.08, 0.18), rough)
        masks[target], taken = mask, taken | mask
        share = soft(mask, (1.0 if target == "mass" else 0.6) * unit)
        if target == "mass":
            echo *= 1 - rng.uniform(0.2, 0.4) * below(mask, 2 * unit)
            inner = rng.uniform(0.12, 0.2) + 0.03 * clouds(rng, size, 0.06)
        else:
            echo *= 1 + rng.uniform(0.4, 0.7) * below(mask, 1.5 * unit)
            rim = np.clip(soft(mask, 1.6 * unit) * (1 - share) * 4, 0, 1)
            echo += 0.3 * rim
            inner = np.full(size, 0.015, np.float32)
        echo = echo * (1 - share) + inner * share
    echo *= 1 - rng.uniform(0.1, 0.35) * (y + 1) / 2
    echo *= 1 + 0.1 * clouds(rng, size, 0.5)
    grains = rng.rayleigh(0.8, size).astype(np.float32)
    speckle = cv2.GaussianBlur(grains, (0, 0), rng.uniform(0.5, 0.9) * unit / 1.6)
    return rng.uniform(0.85, 1.2) * np.clip(echo, 0, None) * speckle, masks


def mri(rng: Generator, size: Size, targets: tuple[str, ...]) -> Scan:
    unit = min(size) / 100
    cy, cx = rng.uniform(-0.06, 0.06, 2)
    ry, rx, tilt = rng.uniform(0.78, 0.9), rng.uniform(0.66, 0.82), rng.uniform(-0.2, 0.2)
    head = ellipse(size, cy, cx, ry, rx, tilt) + 0.03 * clouds(rng, size, 0.3)
    brain = head < 0.74
    gyri = np.sin(9 * clouds(rng, size, 0.16)) * np.clip(1.4 * head, 0, 1)
    tissue = 0.42 + 0.05 * gyri + 0.03 * clouds(rng, size, 0.08)
    scan: np.ndarray = np.where(brain, tissue, 0).astype(np.float32)
    scan = np.where((head >= 0.74) & (head < 0.83), 0.05, scan)
    scan = np.where((head >= 0.83) & (head < 1), rng.uniform(0.55, 0.75), scan).astype(np.float32)

    masks: dict[str, np.ndarray] = {}
    taken = np.zeros(size, bool)
    if "ventricles" in targets:
        mask = _ventricles(rng, size, cy, cx, tilt) & brain
        masks["ventricles"], taken = mask, taken | mask
        share = soft(mask, 0.7 * unit)
        scan = scan * (1 - share) + rng.uniform(0.04, 0.12) * share
    if "tumor" in targets:
        mask = place(rng, size, head < 0.6, taken, (0.07, 0.16), 0.3)
        masks["tumor"] = mask
        share = soft(mask, 0.9 * unit)
        bright = rng.uniform(0.75, 0.95) + 0.05 * clouds(rng, size, 0.07)
        if rng.random() < 0.4:
            steps = max(1, int(np.sqrt(mask.sum()) / 4))
            core = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=steps)
            bright = bright - 0.25 * soft(core > 0, unit)
        scan = scan * (1 - share) + bright * share
    scan = soft(scan, 0.5 * unit) * (1 + 0.12 * clouds(rng, size, 0.6))
    noise = rng.uniform(0.015, 0.045)
    real = scan + noise * rng.standard_normal(size)
    return np.hypot(real, noise * rng.standard_normal(size)), masks


def _ventricles(rng: Generator, size: Size, cy: float, cx: float, tilt: float) -> np.ndarray:
    """Two mirrored horns beside the midline."""
    length, girth = rng.uniform(0.24, 0.36), rng.uniform(0.08, 0.13)
    spread, splay = rng.uniform(0.11, 0.16), rng.uniform(0.1, 0.35)
    mask = np.zeros(size, bool)
    for side in (-1, 1):
        mask |= ellipse(size, cy - 0.03, cx + side * spread, length, girth, tilt - side * splay) < 1
    return mask


def xray(rng: Generator, size: Size, targets: tuple[str, ...]) -> Scan:
    y, x = grid(size)
    unit = min(size) / 100
    centre = rng.uniform(-0.06, 0.06)
    body = 0.72 - 0.25 * np.clip(np.abs(x - centre) - 0.8, 0, 1) / 0.2
    scan = (body + 0.05 * clouds(rng, size, 0.4)).astype(np.float32)
    lungs, both = [], np.zeros(size, bool)
    top, reach = rng.uniform(-0.12, 0.02), rng.uniform(0.66, 0.8)
    for side in (-1, 1):
        width = rng.uniform(0.3, 0.37)
        lung = ellipse(size, top, centre + side * 0.46, reach, width, side * 0.08) < 1
        lung &= y < top + 0.85 * reach - 0.25 * (np.abs(x - centre - side * 0.46) / width) ** 2
        lungs.append(lung)
        both |= lung
    air = soft(both, 1.5 * unit)
    scan = scan * (1 - air) + (rng.uniform(0.18, 0.28) + 0.03 * clouds(rng, size, 0.07)) * air
    heart = soft(ellipse(size, 0.28, centre + 0.14, 0.34, 0.27, 0.4) < 1, 2 * unit)
    scan = np.maximum(scan, 0.68 * heart)
    ribs = np.sin((y + 0.35 * (x - centre) ** 2) * rng.uniform(17, 22) + rng.uniform(0, 6))
    scan += rng.uniform(0.03, 0.07) * soft(np.clip(ribs, 0.3, 1) - 0.3, unit)

    masks: dict[str, np.ndarray] = {}
    taken = heart > 0.3
    if "effusion" in targets:
        lung = lungs[rng.integers(2)]
        mask = _effusion(rng, lung) & (heart < 0.5)
        masks["effusion"], taken = mask, taken | mask
        share = soft(mask, 1.2 * unit)
        scan = np.maximum(scan, (scan * (1 - share) + rng.uniform(0.78, 0.92) * share))
    if "nodule" in targets:
        core = cv2.erode(both.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=2) > 0
        mask = place(rng, size, core, taken, (0.07, 0.13), 0.12)
        masks["nodule"] = mask
        scan += rng.uniform(0.35, 0.55) * soft(mask, 1.0 * unit)
    scan *= 1 + 0.08 * clouds(rng, size, 0.6)
    return scan + rng.uniform(0.01, 0.03) * rng.standard_normal(size), masks


def _effusion(rng: Generator, lung: np.ndarray) -> np.ndarray:
    """The lower part of one lung under a concave meniscus that climbs both walls."""
    rows, columns = np.nonzero(lung)
    high, low, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    level = low - rng.uniform(0.25, 0.5) * (low - high)
    across = (np.arange(lung.shape[1]) - left) / max(1, right - left) * 2 - 1
    climb = rng.uniform(0.08, 0.18) * (low - high) * np.clip(across, -1, 1) ** 2
    return lung & (np.arange(lung.shape[0])[:, None] > (level - climb)[None, :])


PAINTERS = {"ultrasound": ultrasound, "mri": mri, "xray": xray}
