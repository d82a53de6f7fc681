"""Connected components and the boxes around them, in one numba pass over runs.

Components are 8-connected. Order is by area, largest first; equal areas by the position
of their first pixel in reading order, so that the result never depends on chance. Where
``top-k`` or ``largest`` cuts through equal areas, the first in reading order are kept.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from medclipsam.engine.config import BoxConfig
from medclipsam.engine.jit import kernel

Select = Literal["largest", "top-k", "all"]


@dataclass(frozen=True)
class Components:
    """The 8-connected components of a mask, in the reading order of their first pixels.

    Attributes:
        boxes: int32 (N, 4) XYXY in pixels with exclusive end.
        areas: int64 (N,) pixels.
    """

    boxes: np.ndarray
    areas: np.ndarray


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


def find_components(mask: np.ndarray) -> Components:
    """Every 8-connected component of a bool (H, W) mask, measured in the pass that finds it.

    Raises:
        ValueError: not a 2-D mask.
    """
    if mask.ndim != 2:
        raise ValueError(f"expected a mask (H, W), got shape {mask.shape}")
    pixels = np.ascontiguousarray(mask, np.bool_)
    extents = _measure_runs(pixels.view(np.uint8))
    return Components(extents[:, :4].astype(np.int32), extents[:, 4])


@kernel
def _measure_runs(mask):
    """Union–find over horizontal runs.

    Two runs of neighbouring rows touch (8-connected) when each starts no later than one
    pixel past the other's end. Roots keep the smallest index, hence reading order.

    Returns:
        Per component int64 (x0, y0, x1, y1, area).
    """
    height, width = mask.shape
    extents = np.empty((16, 5), np.int64)
    parent = np.empty(16, np.int32)
    runs = np.empty((2, (width + 1) // 2, 2), np.int32)
    edges = np.zeros((width // 8 + 1) * 8, np.uint8)
    total, before, first = 0, 0, 0  # runs so far, of the row above, and the first of those
    for y in range(height):
        here, above = runs[y & 1], runs[(y + 1) & 1]
        count = _find_runs(mask[y], edges, here)
        if total + count > parent.size:
            extents, parent = _grown(extents, parent, total + count)
        p = 0
        for n in range(count):
            start, stop = here[n, 0], here[n, 1]
            node = total + n
            parent[node] = node
            box = extents[node]
            box[0], box[1], box[2], box[3], box[4] = start, y, stop, y + 1, stop - start
            while p < before and above[p, 1] < start:
                p += 1
            q = p
            while q < before and above[q, 0] <= stop:
                _join(parent, extents, first + q, node)
                q += 1
        first, before = total, count
        total += count
    kept = 0
    for node in range(total):
        if parent[node] == node:
            extents[kept] = extents[node]
            kept += 1
    return extents[:kept].copy()


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
def _grown(extents, parent, least):
    size = max(2 * parent.size, least)
    larger, parents = np.empty((size, 5), np.int64), np.empty(size, np.int32)
    larger[: parent.size], parents[: parent.size] = extents, parent
    return larger, parents


@kernel
def _root(parent, node):
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@kernel
def _join(parent, extents, a, b):
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
