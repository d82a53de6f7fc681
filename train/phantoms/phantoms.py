"""Synthetic scans with true masks: breast ultrasound, brain MRI, chest X-ray.

A phantom is a function of its seed alone. Each modality knows two targets that come
and go independently (mass and cyst, tumor and enlarged ventricles, nodule and
pleural effusion), so that a prompt has something to choose between and something to
miss. They are drawn to be *distinguishable by appearance*, not to be realistic: they
prove that the machinery follows a prompt, never that it works on patients.

Coordinates: ``y`` down and ``x`` right in [-1, 1] over the picture; intensities in
[0, 1]; sizes of targets are fractions of the shorter side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

MODALITIES = ("ultrasound", "mri", "xray")
TARGETS = {
    "ultrasound": ("mass", "cyst"),
    "mri": ("tumor", "ventricles"),
    "xray": ("nodule", "effusion"),
}
LESIONS = {"ultrasound": "mass", "mri": "tumor", "xray": "nodule"}
PROMPTS = {
    "mass": "breast ultrasound showing a mass",
    "cyst": "breast ultrasound showing a cyst",
    "tumor": "brain mri showing a tumor",
    "ventricles": "brain mri showing enlarged ventricles",
    "nodule": "chest x-ray showing a nodule",
    "effusion": "chest x-ray showing a pleural effusion",
}
NULL_PROMPTS = ("normal breast ultrasound", "normal brain mri", "normal chest x-ray")

_SIDES = (160, 256)
_PRESENT = (0.6, 0.5)


@dataclass(frozen=True)
class Phantom:
    """One synthetic scan.

    Attributes:
        pixels: float32 (H, W) in [0, 1].
        modality: one of ``MODALITIES``.
        masks: target → bool (H, W), for the targets that are present.
        caption: a sentence that names every target present and, but for a tenth of those
            with a target, the modality.
    """

    pixels: np.ndarray
    modality: str
    masks: dict[str, np.ndarray]
    caption: str


def make_phantom(
    seed: int,
    modality: str | None = None,
    targets: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
) -> Phantom:
    """Draw the phantom of ``seed``.

    Args:
        seed: any non-negative integer.
        modality: one of ``MODALITIES``; by default the seed chooses.
        targets: the targets that are present; by default the seed chooses.
        size: (H, W), each at least 48; by default the seed chooses 160…256 for each.

    Raises:
        ValueError: an unknown modality or target.
    """
    rng = np.random.default_rng([20240321, seed])
    modality = modality or MODALITIES[rng.integers(len(MODALITIES))]
    if modality not in TARGETS:
        raise ValueError(f"unknown modality {modality!r}; choose from {', '.join(MODALITIES)}")
    if targets is None:
        targets = [t for t, p in zip(TARGETS[modality], _PRESENT, strict=True) if rng.random() < p]
    if unknown := set(targets) - set(TARGETS[modality]):
        raise ValueError(f"{modality} has no target {sorted(unknown)}; it has {TARGETS[modality]}")
    if size is None:
        size = (
            int(rng.integers(*_SIDES, endpoint=True)),
            int(rng.integers(*_SIDES, endpoint=True)),
        )
    painter = {"ultrasound": _ultrasound, "mri": _mri, "xray": _xray}[modality]
    pixels, masks = painter(rng, size, tuple(targets))
    caption = _caption(rng, modality, masks)
    return Phantom(np.clip(pixels, 0, 1).astype(np.float32), modality, masks, caption)


def _grid(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    y = np.linspace(-1, 1, size[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, size[1], dtype=np.float32)[None, :]
    return np.broadcast_to(y, size), np.broadcast_to(x, size)


def _clouds(rng: np.random.Generator, size: tuple[int, int], cell: float) -> np.ndarray:
    """Smooth noise of mean 0 and deviation 1; ``cell`` is its scale as a share of the side."""
    coarse = (max(2, round(1 / cell)) + 2,) * 2
    noise = rng.standard_normal(coarse).astype(np.float32)
    return cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)


def _ellipse(
    size: tuple[int, int], cy: float, cx: float, ry: float, rx: float, angle: float = 0.0
) -> np.ndarray:
    """Squared elliptic distance: below 1 inside."""
    y, x = _grid(size)
    c, s = np.cos(angle), np.sin(angle)
    u, v = (y - cy) * c + (x - cx) * s, -(y - cy) * s + (x - cx) * c
    return (u / ry) ** 2 + (v / rx) ** 2


def _blob(
    rng: np.random.Generator,
    size: tuple[int, int],
    cy: float,
    cx: float,
    radius: float,
    rough: float,
) -> np.ndarray:
    """Bool (H, W): a star-shaped region of mean ``radius`` (share of the shorter side)."""
    height, width = size
    y, x = _grid(size)
    scale = min(size) / 2
    dy, dx = (y - cy) * height / 2 / scale, (x - cx) * width / 2 / scale
    stretch = rng.uniform(0.75, 1.3)
    turn = rng.uniform(0, np.pi)
    u = (dy * np.cos(turn) + dx * np.sin(turn)) * np.sqrt(stretch)
    v = (-dy * np.sin(turn) + dx * np.cos(turn)) / np.sqrt(stretch)
    theta = np.arctan2(u, v)
    edge = np.ones(size, np.float32)
    for k in range(2, 7):
        edge += rough * rng.normal() / k * np.cos(k * theta + rng.uniform(0, 2 * np.pi))
    return np.hypot(u, v) < 2 * radius * np.clip(edge, 0.5, 1.6)


def _place(
    rng: np.random.Generator,
    size: tuple[int, int],
    inside: np.ndarray,
    taken: np.ndarray,
    radii: tuple[float, float],
    rough: float,
) -> np.ndarray:
    """A blob that lies within ``inside`` and keeps clear of ``taken``."""
    margin = max(3, min(size) // 25) | 1
    blocked = cv2.dilate(taken.astype(np.uint8), np.ones((margin, margin), np.uint8)) > 0
    room = inside & ~blocked
    rows, columns = np.nonzero(room)
    if rows.size == 0:
        rows, columns = np.nonzero(inside)
    low, high = radii
    best, best_share = np.zeros(size, bool), -1.0
    for attempt in range(40):
        index = rng.integers(rows.size)
        cy, cx = 2 * rows[index] / (size[0] - 1) - 1, 2 * columns[index] / (size[1] - 1) - 1
        shrink = 1 - 0.5 * attempt / 40
        blob = _blob(rng, size, cy, cx, rng.uniform(low, max(low, high * shrink)), rough)
        share = float((blob & room).sum()) / max(1, int(blob.sum()))
        if share > best_share:
            best, best_share = blob, share
        if share >= 0.97:
            break
    return best & room


def _soft(mask: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(sigma, 0.3))


def _below(mask: np.ndarray, sigma: float) -> np.ndarray:
    """Soft weight in [0, 1] of what lies below a mask, column by column, fading with depth."""
    height = mask.shape[0]
    covered = np.maximum.accumulate(mask, axis=0) & ~mask
    first = np.where(mask.any(0), height - np.argmax(mask[::-1], axis=0), height)
    depth = np.arange(height)[:, None] - first[None, :]
    return _soft(covered, sigma) * np.exp(-np.clip(depth, 0, None) / (0.35 * height))


def _ultrasound(
    rng: np.random.Generator, size: tuple[int, int], targets: tuple[str, ...]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    y, x = _grid(size)
    unit = min(size) / 100
    wavy = y + 0.06 * _clouds(rng, size, 0.35)
    fat, muscle = rng.uniform(-0.75, -0.5), rng.uniform(0.55, 0.85)
    echo: np.ndarray = np.where(wavy < fat, 0.34, np.where(wavy < muscle, 0.5, 0.4))
    echo = echo.astype(np.float32)
    echo += 0.07 * _clouds(rng, size, 0.12) + 0.05 * _clouds(rng, (size[0], size[1]), 0.05)
    streaks = np.sin(wavy * rng.uniform(14, 26) + 2.5 * _clouds(rng, size, 0.3))
    echo += 0.07 * np.clip(streaks, 0.4, 1)
    echo += 0.3 * np.exp(-(((wavy + 0.95) / 0.05) ** 2))

    masks: dict[str, np.ndarray] = {}
    taken = np.zeros(size, bool)
    inside = (y > -0.62) & (y < 0.6) & (np.abs(x) < 0.85)
    for target in targets:
        rough = 0.35 if target == "mass" else 0.06
        mask = _place(rng, size, inside, taken, (0.08, 0.18), rough)
        masks[target], taken = mask, taken | mask
        soft = _soft(mask, (1.0 if target == "mass" else 0.6) * unit)
        if target == "mass":
            echo *= 1 - rng.uniform(0.2, 0.4) * _below(mask, 2 * unit)
            inner = rng.uniform(0.12, 0.2) + 0.03 * _clouds(rng, size, 0.06)
        else:
            echo *= 1 + rng.uniform(0.4, 0.7) * _below(mask, 1.5 * unit)
            rim = np.clip(_soft(mask, 1.6 * unit) * (1 - soft) * 4, 0, 1)
            echo += 0.3 * rim
            inner = np.full(size, 0.015, np.float32)
        echo = echo * (1 - soft) + inner * soft
    echo *= 1 - rng.uniform(0.1, 0.35) * (y + 1) / 2
    echo *= 1 + 0.1 * _clouds(rng, size, 0.5)
    grains = rng.rayleigh(0.8, size).astype(np.float32)
    speckle = cv2.GaussianBlur(grains, (0, 0), rng.uniform(0.5, 0.9) * unit / 1.6)
    return rng.uniform(0.85, 1.2) * np.clip(echo, 0, None) * speckle, masks


def _mri(
    rng: np.random.Generator, size: tuple[int, int], targets: tuple[str, ...]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    unit = min(size) / 100
    cy, cx = rng.uniform(-0.06, 0.06, 2)
    ry, rx, tilt = rng.uniform(0.78, 0.9), rng.uniform(0.66, 0.82), rng.uniform(-0.2, 0.2)
    head = _ellipse(size, cy, cx, ry, rx, tilt) + 0.03 * _clouds(rng, size, 0.3)
    brain = head < 0.74
    gyri = np.sin(9 * _clouds(rng, size, 0.16)) * np.clip(1.4 * head, 0, 1)
    tissue = 0.42 + 0.05 * gyri + 0.03 * _clouds(rng, size, 0.08)
    scan: np.ndarray = np.where(brain, tissue, 0).astype(np.float32)
    scan = np.where((head >= 0.74) & (head < 0.83), 0.05, scan)
    scan = np.where((head >= 0.83) & (head < 1), rng.uniform(0.55, 0.75), scan).astype(np.float32)

    masks: dict[str, np.ndarray] = {}
    taken = np.zeros(size, bool)
    if "ventricles" in targets:
        mask = _ventricles(rng, size, cy, cx, tilt) & brain
        masks["ventricles"], taken = mask, taken | mask
        soft = _soft(mask, 0.7 * unit)
        scan = scan * (1 - soft) + rng.uniform(0.04, 0.12) * soft
    if "tumor" in targets:
        mask = _place(rng, size, head < 0.6, taken, (0.07, 0.16), 0.3)
        masks["tumor"] = mask
        soft = _soft(mask, 0.9 * unit)
        bright = rng.uniform(0.75, 0.95) + 0.05 * _clouds(rng, size, 0.07)
        if rng.random() < 0.4:
            steps = max(1, int(np.sqrt(mask.sum()) / 4))
            core = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=steps)
            bright = bright - 0.25 * _soft(core > 0, unit)
        scan = scan * (1 - soft) + bright * soft
    scan = _soft_image(scan, 0.5 * unit) * (1 + 0.12 * _clouds(rng, size, 0.6))
    noise = rng.uniform(0.015, 0.045)
    real = scan + noise * rng.standard_normal(size)
    return np.hypot(real, noise * rng.standard_normal(size)), masks


def _soft_image(pixels: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), max(sigma, 0.3))


def _ventricles(
    rng: np.random.Generator, size: tuple[int, int], cy: float, cx: float, tilt: float
) -> np.ndarray:
    """Two mirrored horns beside the midline."""
    length, girth = rng.uniform(0.24, 0.36), rng.uniform(0.08, 0.13)
    spread, splay = rng.uniform(0.11, 0.16), rng.uniform(0.1, 0.35)
    mask = np.zeros(size, bool)
    for side in (-1, 1):
        mask |= (
            _ellipse(size, cy - 0.03, cx + side * spread, length, girth, tilt - side * splay) < 1
        )
    return mask


def _xray(
    rng: np.random.Generator, size: tuple[int, int], targets: tuple[str, ...]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    y, x = _grid(size)
    unit = min(size) / 100
    centre = rng.uniform(-0.06, 0.06)
    body = 0.72 - 0.25 * np.clip(np.abs(x - centre) - 0.8, 0, 1) / 0.2
    scan = (body + 0.05 * _clouds(rng, size, 0.4)).astype(np.float32)
    lungs, both = [], np.zeros(size, bool)
    top, reach = rng.uniform(-0.12, 0.02), rng.uniform(0.66, 0.8)
    for side in (-1, 1):
        width = rng.uniform(0.3, 0.37)
        lung = _ellipse(size, top, centre + side * 0.46, reach, width, side * 0.08) < 1
        lung &= y < top + 0.85 * reach - 0.25 * (np.abs(x - centre - side * 0.46) / width) ** 2
        lungs.append(lung)
        both |= lung
    air = _soft(both, 1.5 * unit)
    scan = scan * (1 - air) + (rng.uniform(0.18, 0.28) + 0.03 * _clouds(rng, size, 0.07)) * air
    heart = _soft(_ellipse(size, 0.28, centre + 0.14, 0.34, 0.27, 0.4) < 1, 2 * unit)
    scan = np.maximum(scan, 0.68 * heart)
    ribs = np.sin((y + 0.35 * (x - centre) ** 2) * rng.uniform(17, 22) + rng.uniform(0, 6))
    scan += rng.uniform(0.03, 0.07) * _soft_image(np.clip(ribs, 0.3, 1) - 0.3, unit)

    masks: dict[str, np.ndarray] = {}
    taken = heart > 0.3
    if "effusion" in targets:
        lung = lungs[rng.integers(2)]
        mask = _effusion(rng, lung) & (heart < 0.5)
        masks["effusion"], taken = mask, taken | mask
        soft = _soft(mask, 1.2 * unit)
        scan = np.maximum(scan, (scan * (1 - soft) + rng.uniform(0.78, 0.92) * soft))
    if "nodule" in targets:
        core = cv2.erode(both.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=2) > 0
        mask = _place(rng, size, core, taken, (0.07, 0.13), 0.12)
        masks["nodule"] = mask
        scan += rng.uniform(0.35, 0.55) * _soft(mask, 1.0 * unit)
    scan *= 1 + 0.08 * _clouds(rng, size, 0.6)
    return scan + rng.uniform(0.01, 0.03) * rng.standard_normal(size), masks


def _effusion(rng: np.random.Generator, lung: np.ndarray) -> np.ndarray:
    """The lower part of one lung under a concave meniscus that climbs both walls."""
    rows, columns = np.nonzero(lung)
    high, low, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    level = low - rng.uniform(0.25, 0.5) * (low - high)
    across = (np.arange(lung.shape[1]) - left) / max(1, right - left) * 2 - 1
    climb = rng.uniform(0.08, 0.18) * (low - high) * np.clip(across, -1, 1) ** 2
    return lung & (np.arange(lung.shape[0])[:, None] > (level - climb)[None, :])


_MODALITY_WORDS = {
    "ultrasound": ("breast ultrasound", "ultrasound of the breast", "breast sonogram", "breast us"),
    "mri": ("brain mri", "mri of the brain", "brain mr image", "head mri"),
    "xray": ("chest x-ray", "x-ray of the chest", "chest radiograph", "frontal chest x-ray"),
}
_TARGET_WORDS = {
    "mass": ("mass", "mass", "solid mass", "breast mass", "breast tumor", "hypoechoic mass"),
    "cyst": ("cyst", "cyst", "simple cyst", "breast cyst", "anechoic cyst"),
    "tumor": ("tumor", "tumor", "brain tumor", "glioma", "bright tumor"),
    "ventricles": ("enlarged ventricles", "enlarged ventricles", "ventricles", "hydrocephalus"),
    "nodule": ("nodule", "nodule", "lung nodule", "pulmonary nodule", "coin lesion"),
    "effusion": ("pleural effusion", "pleural effusion", "effusion", "fluid at the lung base"),
}
_NORMAL = ("normal {}", "normal {}", "{} without findings", "{}, no abnormality", "unremarkable {}")
_SHOWING = ("{} showing {}", "{} with {}", "{} showing {}", "{}: {}", "{} that shows {}")


def _caption(rng: np.random.Generator, modality: str, masks: dict[str, np.ndarray]) -> str:
    def pick(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    where = pick(_MODALITY_WORDS[modality])
    if not masks:
        return pick(_NORMAL).format(where)
    findings = []
    for target in rng.permutation(sorted(masks)):
        name = pick(_TARGET_WORDS[target])
        plain = name.split()[0] in ("fluid", "hydrocephalus") or name.endswith("ventricles")
        if rng.random() < 0.3 and not plain:
            name = f"{_size_word(masks[target])} {name}"
        if not plain:
            name = ("an " if name[0] in "aeiou" else "a ") + name
        if rng.random() < 0.5 and target != "ventricles":
            name += f" in the {_place_words(masks[target])}"
        findings.append(name)
    text = " and ".join(findings)
    return text if rng.random() < 0.1 else pick(_SHOWING).format(where, text)


def _size_word(mask: np.ndarray) -> str:
    return "large" if mask.mean() > 0.05 else "small"


def _place_words(mask: np.ndarray) -> str:
    """Quadrant of the picture, as seen."""
    rows, columns = np.nonzero(mask)
    vertical = "upper" if rows.mean() < mask.shape[0] / 2 else "lower"
    return f"{vertical} {'left' if columns.mean() < mask.shape[1] / 2 else 'right'}"
