"""Shapes and textures that phantoms are made of. Refuses to know what they stand for.

Coordinates as in ``phantoms``; what is random is drawn from the generator that is handed over.
"""

import cv2
import numpy as np
from numpy.random import Generator

Size = tuple[int, int]  # rows and columns


def grid(size: Size) -> tuple[np.ndarray, np.ndarray]:
    y = np.linspace(-1, 1, size[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, size[1], dtype=np.float32)[None, :]
    return np.broadcast_to(y, size), np.broadcast_to(x, size)


def clouds(rng: Generator, size: Size, cell: float) -> np.ndarray:
    """Smooth noise of mean 0 and deviation 1; ``cell`` is its scale as a share of the side."""
    coarse = (max(2, round(1 / cell)) + 2,) * 2
    noise = rng.standard_normal(coarse).astype(np.float32)
    return cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)


def ellipse(
    size: Size, cy: float, cx: float, ry: float, rx: float, angle: float = 0.0
) -> np.ndarray:
    """Squared elliptic distance: below 1 inside."""
    y, x = grid(size)
    c, s = np.cos(angle), np.sin(angle)
    u, v = (y - cy) * c + (x - cx) * s, -(y - cy) * s + (x - cx) * c
    return (u / ry) ** 2 + (v / rx) ** 2


def _blob(
    rng: Generator,
    size: Size,
    cy: float,
    cx: float,
    radius: float,
    rough: float,
) -> np.ndarray:
    """Bool (H, W): a star-shaped region of mean ``radius`` (share of the shorter side)."""
    height, width = size
    y, x = grid(size)
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


def place(
    rng: Generator,
    size: Size,
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


def soft(mask: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(sigma, 0.3))


def below(mask: np.ndarray, sigma: float) -> np.ndarray:
    """Soft weight in [0, 1] of what lies below a mask, column by column, fading with depth."""
    height = mask.shape[0]
    covered = np.maximum.accumulate(mask, axis=0) & ~mask
    first = np.where(mask.any(0), height - np.argmax(mask[::-1], axis=0), height)
    depth = np.arange(height)[:, None] - first[None, :]
    return soft(covered, sigma) * np.exp(-np.clip(depth, 0, None) / (0.35 * height))
