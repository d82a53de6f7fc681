"""Connected components and the boxes around them, in one numba pass over runs.

Components are 8-connected. Order is by area, largest first; equal areas by the position
of their first pixel in reading order, so that the result never depends on chance. Where
``top-k`` or ``largest`` cuts through equal areas, the first in reading order are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.jit import kernel

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


@dataclass(frozen=True)
class Components:
    """The 8-connected components of a mask, in the reading order of their first pixels.

    Attributes:
        boxes: int32 (N, 4) XYXY in pixels with exclusive end.
        areas: int64 (N,) pixels.
        centroids: float64 (N, 2), (x, y) in pixels, centre of the first pixel at 0.
        saliency: float64 (N,) mean saliency inside; NaN where none was given.
    """

    boxes: np.ndarray
    areas: np.ndarray
    centroids: np.ndarray
    saliency: np.ndarray


def extract_boxes(
    mask: np.ndarray,
    select: Select = "largest",
    k: int = 3,
    min_area: int = 1,
) -> np.ndarray:
    """Bounding boxes of the chosen 8-connected components, as SAM takes them.

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
    keep = {"largest": 1, "top-k": k, "all": None}
    if select not in keep:
        raise ValueError(f"select must be largest, top-k or all, got {select!r}")
    found = find_components(mask)
    order = np.argsort(-found.areas, kind="stable")
    order = order[found.areas[order] >= min_area]
    return found.boxes[order[: keep[select]]]


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


def find_components(mask: np.ndarray, saliency: np.ndarray | None = None) -> Components:
    """Every 8-connected component of a mask, measured in the pass that finds it.

    Args:
        mask: bool (H, W).
        saliency: float (H, W), to be averaged over each component.

    Raises:
        ValueError: not a 2-D mask, or a saliency of another shape.
    """
    if mask.ndim != 2:
        raise ValueError(f"expected a mask (H, W), got shape {mask.shape}")
    if saliency is not None and saliency.shape != mask.shape:
        raise ValueError(f"saliency {saliency.shape} does not lie on mask {mask.shape}")
    pixels = np.ascontiguousarray(mask, np.bool_)
    values = np.ascontiguousarray(pixels[:0] if saliency is None else saliency, np.float32)
    extents, sums = _measure_runs(pixels.view(np.uint8), values)
    areas = extents[:, 4]
    means = sums / np.maximum(areas, 1)[:, None]
    if saliency is None:
        means[:, 2] = np.nan
    return Components(extents[:, :4].astype(np.int32), areas, means[:, :2], means[:, 2])


@kernel
def _measure_runs(mask, saliency):
    """Union–find over horizontal runs.

    Two runs of neighbouring rows touch (8-connected) when each starts no later than one
    pixel past the other's end. Roots keep the smallest index, hence reading order.

    Returns:
        Per component int64 (x0, y0, x1, y1, area) and float64 sums of x, y and saliency.
    """
    height, width = mask.shape
    extents = np.empty((16, 5), np.int64)
    sums = np.empty((16, 3), np.float64)
    parent = np.empty(16, np.int32)
    runs = np.empty((2, (width + 1) // 2, 2), np.int32)
    edges = np.zeros((width // 8 + 1) * 8, np.uint8)
    total, before, first = 0, 0, 0  # runs so far, of the row above, and the first of those
    for y in range(height):
        here, above = runs[y & 1], runs[(y + 1) & 1]
        count = _find_runs(mask[y], edges, here)
        if total + count > parent.size:
            extents, sums, parent = _grown(extents, sums, parent, total + count)
        p = 0
        for n in range(count):
            start, stop = here[n, 0], here[n, 1]
            node = total + n
            parent[node] = node
            _set_run(extents[node], sums[node], y, start, stop, saliency)
            while p < before and above[p, 1] < start:
                p += 1
            q = p
            while q < before and above[q, 0] <= stop:
                _join(parent, extents, sums, first + q, node)
                q += 1
        first, before = total, count
        total += count
    kept = 0
    for node in range(total):
        if parent[node] == node:
            extents[kept], sums[kept] = extents[node], sums[node]
            kept += 1
    return extents[:kept].copy(), sums[:kept].copy()


@kernel
def _find_runs(row, edges, out):
    """Starts and exclusive stops of the runs of 1 in ``row``; returns how many.

    ``edges``: scratch uint8 of whole words, longer than ``row`` by at least one; where
    eight pixels hold no edge, one look skips them.
    """
    width = row.size
    edges[0] = row[0]
    for x in range(1, width):
        edges[x] = row[x] ^ row[x - 1]
    edges[width] = row[width - 1]
    words = edges.view(np.uint64)
    count = 0
    for word in range(words.size):
        if words[word]:
            for x in range(8 * word, 8 * word + 8):
                if edges[x]:
                    out[count >> 1, count & 1] = x
                    count += 1
    return count >> 1


@kernel
def _grown(extents, sums, parent, least):
    size = max(2 * parent.size, least)
    larger = np.empty((size, 5), np.int64), np.empty((size, 3), np.float64)
    parents = np.empty(size, np.int32)
    larger[0][: parent.size], larger[1][: parent.size] = extents, sums
    parents[: parent.size] = parent
    return larger[0], larger[1], parents


@kernel
def _set_run(extent, sums, y, start, stop, saliency):
    """One run as a component of its own."""
    length = stop - start
    extent[0], extent[1], extent[2], extent[3], extent[4] = start, y, stop, y + 1, length
    sums[0], sums[1], sums[2] = 0.5 * length * (start + stop - 1), length * y, 0
    if saliency.shape[0]:
        for x in range(start, stop):
            sums[2] += saliency[y, x]


@kernel
def _root(parent, node):
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@kernel
def _join(parent, extents, sums, a, b):
    """Merge two components into the one whose first run comes first."""
    a, b = _root(parent, a), _root(parent, b)
    if a == b:
        return
    a, b = min(a, b), max(a, b)
    parent[b] = a
    for side in range(2):
        extents[a, side] = min(extents[a, side], extents[b, side])
        extents[a, side + 2] = max(extents[a, side + 2], extents[b, side + 2])
    extents[a, 4] += extents[b, 4]
    sums[a] += sums[b]
