"""The permutohedral lattice: Gaussian filtering over features of any dimension.

Adams, Baek & Davis, "Fast high-dimensional filtering using the permutohedral lattice",
Eurographics 2010. Used for colour images, whose (x, y, r, g, b) space has too many
dimensions for a dense grid.
"""

from __future__ import annotations

import numba
import numpy as np


class PermutohedralLattice:
    """The filter v_i → Σ_j exp(−½‖f_i − f_j‖²) v_j (approximately) for one set of features.

    Args:
        features: float32 (N, d), each axis divided by its deviation.
    """

    def __init__(self, features: np.ndarray):
        count, axes = features.shape
        size = 1 << max(4, int(2 * count * (axes + 1) - 1).bit_length())
        table = np.full(size, -1, np.int32)
        keys = np.empty((count * (axes + 1), axes), np.int16)
        self._vertices = np.empty((count, axes + 1), np.int32)
        self._weights = np.empty((count, axes + 1), np.float32)
        self._count = _embed(
            np.ascontiguousarray(features, np.float32), table, keys, self._vertices, self._weights
        )
        self._neighbours = np.empty((axes + 1, self._count, 2), np.int32)
        _find_neighbours(table, keys, self._count, self._neighbours)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """float32 (N,) → float32 (N,)."""
        out = np.empty_like(values)
        _filter(values, self._vertices, self._weights, self._neighbours, self._count, out)
        return out


@numba.njit(nogil=True, cache=True)
def _find(table, keys, key, count, insert):
    """Index of ``key``, or −1; with ``insert`` a new key gets index ``count``."""
    mask = table.size - 1
    h = np.uint64(0)
    for value in key:
        h = (h + np.uint64(value & 0xFFFF)) * np.uint64(2531011)
    h ^= h >> np.uint64(17)
    slot = int(h) & mask
    while True:
        at = table[slot]
        if at < 0:
            if not insert:
                return -1
            table[slot] = count
            keys[count] = key
            return count
        same = True
        for i in range(key.size):
            if keys[at, i] != key[i]:
                same = False
                break
        if same:
            return at
        slot = (slot + 1) & mask


@numba.njit(nogil=True, cache=True)
def _embed(features, table, keys, vertices, weights):
    """Enclosing simplex and barycentric weights of each point; returns the vertex count."""
    points, d = features.shape
    scale = np.empty(d, np.float32)
    for i in range(d):
        scale[i] = np.sqrt(2 / 3) * (d + 1) / np.sqrt((i + 1.0) * (i + 2.0))
    elevated = np.empty(d + 1, np.float32)
    base = np.empty(d + 1, np.int64)
    rank = np.empty(d + 1, np.int64)
    bary = np.empty(d + 2, np.float32)
    key = np.empty(d, np.int16)
    count = 0
    for n in range(points):
        _elevate(features[n], scale, elevated)
        _round_to_simplex(elevated, base, rank)
        bary[:] = 0
        for i in range(d + 1):
            v = (elevated[i] - base[i]) / (d + 1)
            bary[d - rank[i]] += v
            bary[d + 1 - rank[i]] -= v
        bary[0] += 1 + bary[d + 1]
        for remainder in range(d + 1):
            for i in range(d):
                wraps = rank[i] > d - remainder
                key[i] = base[i] + remainder - (d + 1 if wraps else 0)
            at = _find(table, keys, key, count, True)
            count += at == count
            vertices[n, remainder] = at
            weights[n, remainder] = bary[remainder]
    return count


@numba.njit(nogil=True, cache=True)
def _elevate(feature, scale, out):
    """Map d axes onto the plane Σ x = 0 in d + 1 axes."""
    total = np.float32(0)
    for j in range(feature.size, 0, -1):
        value = feature[j - 1] * scale[j - 1]
        out[j] = total - j * value
        total += value
    out[0] = total


@numba.njit(nogil=True, cache=True)
def _round_to_simplex(elevated, base, rank):
    """Nearest remainder-0 point, and the order of the differences from it."""
    d = elevated.size - 1
    total = 0
    for i in range(d + 1):
        nearest = int(np.floor(elevated[i] / (d + 1) + 0.5))
        base[i] = nearest * (d + 1)
        total += nearest
        rank[i] = 0
    for i in range(d):
        for j in range(i + 1, d + 1):
            if elevated[i] - base[i] < elevated[j] - base[j]:
                rank[i] += 1
            else:
                rank[j] += 1
    for i in range(d + 1):
        rank[i] += total
        if rank[i] < 0:
            rank[i] += d + 1
            base[i] += d + 1
        elif rank[i] > d:
            rank[i] -= d + 1
            base[i] -= d + 1


@numba.njit(nogil=True, cache=True)
def _find_neighbours(table, keys, count, out):
    """Both neighbours of each vertex along each of the d + 1 lattice directions."""
    d = keys.shape[1]
    key = np.empty(d, np.int16)
    for axis in range(d + 1):
        for n in range(count):
            for side in range(2):
                step = 1 if side else -1
                for i in range(d):
                    key[i] = keys[n, i] + step
                if axis < d:
                    key[axis] = keys[n, axis] - step * d
                out[axis, n, side] = _find(table, keys, key, 0, False)


@numba.njit(nogil=True, cache=True)
def _filter(values, vertices, weights, neighbours, count, out):
    """Splat, blur by (½, 1, ½) along every direction, slice."""
    axes = vertices.shape[1]
    lattice = np.zeros(count, np.float32)
    for n in range(values.size):
        for k in range(axes):
            lattice[vertices[n, k]] += weights[n, k] * values[n]
    blurred = np.empty(count, np.float32)
    for axis in range(axes):
        for v in range(count):
            before, after = neighbours[axis, v, 0], neighbours[axis, v, 1]
            total = np.float32(0)
            if before >= 0:
                total += lattice[before]
            if after >= 0:
                total += lattice[after]
            blurred[v] = lattice[v] + np.float32(0.5) * total
        lattice, blurred = blurred, lattice
    gain = np.float32(1 / (1 + 2.0 ** -(axes - 1)))
    for n in range(values.size):
        total = np.float32(0)
        for k in range(axes):
            total += weights[n, k] * lattice[vertices[n, k]]
        out[n] = gain * total
