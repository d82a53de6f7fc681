"""Connected components and the boxes around them, in one numba pass over runs.

Components are 8-connected. Order is by area, largest first; equal areas by the position
of their first pixel in reading order, so that the result never depends on chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np

from medclipsam.engine.errors import ConfigError

Select = Literal["largest", "top-k", "all"]


@dataclass(frozen=True)
class BoxConfig:
    """Which components become boxes.

    Attributes:
        select: ``largest``, ``top-k`` or ``all`` components.
        k: how many ``top-k`` keeps.
        min_area: components smaller than this share of the image are noise.
        pad: how far each side moves outwards, as a share of the box's own side.
    """

    select: Select = "largest"
    k: int = 3
    min_area: float = 0.0005
    pad: float = 0.0

    def __post_init__(self) -> None:
        if self.select not in ("largest", "top-k", "all"):
            raise ConfigError(f"boxes.select must be largest, top-k or all, got {self.select!r}")
        if self.k < 1:
            raise ConfigError(f"boxes.k must be at least 1, got {self.k}")
        if not 0 <= self.min_area < 1:
            raise ConfigError(f"boxes.min_area is a share in [0, 1), got {self.min_area}")
        if not 0 <= self.pad <= 1:
            raise ConfigError(f"boxes.pad is a share of the box in [0, 1], got {self.pad}")


def extract_boxes(
    mask: np.ndarray,
    select: Select = "largest",
    k: int = 3,
    min_area: int = 1,
) -> np.ndarray:
    """Bounding boxes of the chosen 8-connected components.

    Args:
        mask: bool (H, W).
        select: ``largest``, ``top-k`` (the k largest) or ``all``.
        k: how many ``top-k`` keeps.
        min_area: smallest area in pixels; smaller components are dropped.

    Returns:
        int32 (N, 4) XYXY in pixels with exclusive end, largest component first; N may be 0.

    Raises:
        ValueError: not a 2-D mask, or an unknown selection.
    """
    if mask.ndim != 2:
        raise ValueError(f"expected a mask (H, W), got shape {mask.shape}")
    keep = {"largest": 1, "top-k": k, "all": None}
    if select not in keep:
        raise ValueError(f"select must be largest, top-k or all, got {select!r}")
    boxes, areas = component_boxes(mask)
    order = np.argsort(-areas, kind="stable")
    order = order[areas[order] >= min_area]
    return boxes[order[: keep[select]]]


def select_boxes(mask: np.ndarray, config: BoxConfig) -> np.ndarray:
    """``extract_boxes`` with areas as shares of the image, then padded and clipped to it."""
    height, width = mask.shape
    smallest = max(1, round(config.min_area * mask.size))
    boxes = extract_boxes(mask, config.select, config.k, smallest)
    if not config.pad:
        return boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    grow = np.rint(config.pad * sides).astype(np.int32)
    low = np.maximum(boxes[:, :2] - grow, 0)
    high = np.minimum(boxes[:, 2:] + grow, [width, height])
    return np.concatenate([low, high], axis=1).astype(np.int32)


def component_boxes(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every 8-connected component: boxes int32 (N, 4) and areas int64 (N,).

    Components stand in the reading order of their first pixels.
    """
    pixels = np.ascontiguousarray(mask, np.bool_)
    height, width = pixels.shape
    parent = np.empty(height * ((width + 1) // 2) + 1, np.int32)
    stats = np.empty((parent.size, 5), np.int64)
    count = _label_runs(pixels, parent, stats)
    return stats[:count, :4].astype(np.int32), stats[:count, 4].copy()


@numba.njit(nogil=True, cache=True)
def _root(parent, node):
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@numba.njit(nogil=True, cache=True)
def _label_runs(mask, parent, stats):
    """Union–find over horizontal runs; ``stats`` rows are x0, y0, x1, y1, area per root.

    Two runs of neighbouring rows touch (8-connected) when each starts no later than one
    pixel past the other's end. Roots keep the smallest index, hence reading order.
    """
    height, width = mask.shape
    starts = np.empty((2, (width + 1) // 2), np.int32)
    stops = np.empty((2, (width + 1) // 2), np.int32)
    counts = np.zeros(2, np.int32)
    firsts = np.zeros(2, np.int32)
    total = 0
    for y in range(height):
        now, before = y & 1, (y + 1) & 1
        counts[now], firsts[now] = 0, total
        x, p = 0, 0
        while x < width:
            if not mask[y, x]:
                x += 1
                continue
            start = x
            while x < width and mask[y, x]:
                x += 1
            starts[now, counts[now]], stops[now, counts[now]] = start, x
            counts[now] += 1
            parent[total] = total
            stats[total, 0], stats[total, 1], stats[total, 2] = start, y, x
            stats[total, 3], stats[total, 4] = y + 1, x - start
            while p < counts[before] and stops[before, p] < start:
                p += 1
            q = p
            while q < counts[before] and starts[before, q] <= x:
                _join(parent, stats, firsts[before] + q, total)
                q += 1
            total += 1
    kept = 0
    for node in range(total):
        if parent[node] == node:
            stats[kept] = stats[node]
            kept += 1
    return kept


@numba.njit(nogil=True, cache=True)
def _join(parent, stats, a, b):
    """Merge two components into the one whose first run comes first."""
    a, b = _root(parent, a), _root(parent, b)
    if a == b:
        return
    if b < a:
        a, b = b, a
    parent[b] = a
    stats[a, 0] = min(stats[a, 0], stats[b, 0])
    stats[a, 1] = min(stats[a, 1], stats[b, 1])
    stats[a, 2] = max(stats[a, 2], stats[b, 2])
    stats[a, 3] = max(stats[a, 3], stats[b, 3])
    stats[a, 4] += stats[b, 4]
