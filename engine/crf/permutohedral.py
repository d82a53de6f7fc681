"""The permutohedral lattice: Gaussian filtering over features of any dimension.

Adams, Baek & Davis, "Fast high-dimensional filtering using the permutohedral lattice",
Eurographics 2010. Used for colour images, whose (x, y, r, g, b) space has too many
dimensions for a dense grid.

A vertex of remainder k (0…d) has coordinates x_i = (d + 1)·c_i + k. Packing k and the
first d of the c_i into one integer, k on top, makes a step along a lattice direction one
addition, the same for all vertices of one remainder. So neighbours of sorted vertices
are sorted too, and are found by merging two sequences instead of millions of look-ups.
"""

import numpy as np

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.jit import kernel

LANES = 64  # points handled together, so that the arithmetic uses vectors
SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ over the golden ratio: multiplicative hashing
MAX_SPAN = 1 << 20  # cells along one axis that float32 tells apart
NOWHERE = np.uint64(0xFFFFFFFFFFFFFFFF)


class PermutohedralLattice:
    """The filter v_i → Σ_j exp(−½‖f_i − f_j‖²) v_j (approximately) for one set of features.

    Args:
        features: float32 (d, N), each axis divided by its deviation.

    Raises:
        ConfigError: the features span more cells than can be told apart.
    """

    def __init__(self, features: np.ndarray):
        axes, count = features.shape
        scale = (
            np.sqrt(2 / 3) * (axes + 1) / np.sqrt(np.arange(1, axes + 1) * np.arange(2, axes + 2))
        )
        low, shifts = _layout(features, scale)
        self._vertices = np.empty((count, axes + 1), np.int32)
        self._weights = np.empty((count, axes + 1), np.float32)
        keys, order = _embed(
            features, scale.astype(np.float32), low, shifts, self._vertices, self._weights
        )
        firsts = np.searchsorted(keys, np.arange(axes + 2).astype(np.uint64) << shifts[-1])
        self._neighbours = np.zeros((axes + 1, 2, order.size + 1), np.int32)
        _link(keys, order, firsts, _steps(shifts), self._neighbours)

    def __call__(self, values: np.ndarray, out: np.ndarray) -> None:
        """Filter float32 (N,) into ``out`` (N,)."""
        _filter(values, self._vertices, self._weights, self._neighbours, out)


def _layout(features: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least c_i, int64 (d,), and where each field of a key starts, uint64 (d + 1,).

    The elevated coordinate i is Σ_{j ≥ i} f_j s_j − i·f_{i−1} s_{i−1}; bounds of the features
    bound it. Slack on either side serves rounding and neighbours.
    """
    axes = len(features)
    scaled = np.stack([features.min(1), features.max(1)], 1).astype(np.float64) * scale[:, None]
    tails = np.concatenate([np.cumsum(scaled[::-1], 0)[::-1], np.zeros((1, 2))])
    heads = np.concatenate(
        [np.zeros((1, 2)), np.arange(1, axes)[:, None] * scaled[: axes - 1, ::-1]]
    )
    bounds = (tails[:axes] - heads) / (axes + 1)
    low = np.floor(bounds[:, 0]).astype(np.int64) - 3
    spans = np.ceil(bounds[:, 1]).astype(np.int64) + 3 - low
    widths = [int(span).bit_length() for span in spans]
    shifts = np.concatenate([[0], np.cumsum(widths)])
    if max(spans) > MAX_SPAN or shifts[-1] + int(axes).bit_length() > 63:
        raise ConfigError(
            f"the CRF's bilateral deviations are too small for this image: its lattice spans "
            f"{' × '.join(map(str, spans))} cells; raise crf.bilateral_sxy or crf.bilateral_srgb"
        )
    return low, shifts.astype(np.uint64)


def _steps(shifts: np.ndarray) -> np.ndarray:
    """What a step along each of the d + 1 directions adds to a key, uint64 (d + 1, 2).

    Column 0 holds for remainders below d (k grows, x_a falls by d), column 1 for
    remainder d (k returns to 0, every c_i but c_a grows). Differences wrap modulo 2⁶⁴.
    """
    axes = len(shifts) - 1
    units = [1 << int(shift) for shift in shifts[:axes]] + [0]
    remainder = 1 << int(shifts[axes])
    rows = [[remainder - unit, sum(units) - unit - axes * remainder] for unit in units]
    return np.array([[step % (1 << 64) for step in row] for row in rows], np.uint64)


def _embed(
    features: np.ndarray,
    scale: np.ndarray,
    low: np.ndarray,
    shifts: np.ndarray,
    vertices: np.ndarray,
    weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Fill in vertices (from 1, in order of appearance) and weights of all points.

    Returns:
        All keys in ascending order, uint64 (M,), and the vertex of each, int32 (M,).
    """
    table = _empty_table(1 << max(12, (len(vertices) // 2).bit_length()))
    keys = np.empty(vertices.size, np.uint64)
    done = count = 0
    while True:
        done, count = _embed_until_full(
            features, scale, low, shifts, done, count, table, keys, vertices, weights
        )
        if done == features.shape[1]:
            break
        larger = _empty_table(4 * len(table))
        _fill(keys[:count], larger)
        table = larger
    keys = np.sort(keys[:count])
    order = np.empty(count, np.int32)
    _look_up(keys, table, order)  # faster than carrying vertices through the sort
    return keys, order


def _empty_table(rows: int) -> np.ndarray:
    """2ⁿ free rows (key, vertex)."""
    table = np.empty((rows, 2), np.uint64)
    table[:, 0] = NOWHERE
    return table


@kernel
def _shift(table):
    """By how many bits a product is shifted to name one of the table's 2ⁿ rows."""
    bits = 0
    while 1 << bits < table.shape[0]:
        bits += 1
    return np.uint64(64 - bits)


@kernel
def _slot(key, table, shift):
    """The row of ``key`` in a table of rows (key, vertex), or the free row for it."""
    slot = np.intp((key * SPREAD) >> shift)
    while table[slot, 0] != key and table[slot, 0] != NOWHERE:
        slot = (slot + 1) & (table.shape[0] - 1)
    return slot


@kernel
def _fill(keys, table):
    shift = _shift(table)
    for n in range(keys.size):
        slot = _slot(keys[n], table, shift)
        table[slot, 0], table[slot, 1] = keys[n], n + 1


@kernel
def _look_up(keys, table, out):
    shift = _shift(table)
    for n in range(keys.size):
        out[n] = table[_slot(keys[n], table, shift), 1]


@kernel
def _embed_until_full(features, scale, low, shifts, done, count, table, keys, vertices, weights):
    """Embed points from ``done`` on, until the table is half full; returns (done, count)."""
    axes, points = features.shape
    elevated = np.empty((axes + 1, LANES), np.float32)
    gaps = np.empty((axes + 1, LANES), np.float32)
    units = np.empty((axes + 1, LANES), np.uint64)
    origin = np.empty(LANES, np.uint64)
    total = np.empty(LANES, np.int32)
    names = np.empty((LANES, axes + 1), np.uint64)
    shift = _shift(table)
    while done < points and 2 * (count + LANES * (axes + 1)) <= table.shape[0]:
        lanes = min(LANES, points - done)
        _elevate(features, done, lanes, scale, elevated)
        _round(elevated, lanes, low, shifts, units, origin, total)
        _sort(elevated, lanes, units)
        _turn(elevated, lanes, units, origin, total, gaps)
        _name(gaps, lanes, shifts, units, origin, total, names, weights[done:])
        for lane in range(lanes):
            for k in range(axes + 1):
                slot = _slot(names[lane, k], table, shift)
                if table[slot, 0] == NOWHERE:
                    keys[count] = names[lane, k]
                    count += 1
                    table[slot, 0] = names[lane, k]
                    table[slot, 1] = count
                vertices[done + lane, k] = table[slot, 1]
        done += lanes
    return done, count


@kernel
def _elevate(features, start, lanes, scale, out):
    """Map d axes onto the plane Σ x = 0 in d + 1 axes, in units of d + 1."""
    axes = features.shape[0]
    unit = np.float32(1) / np.float32(axes + 1)
    out[0, :lanes] = 0
    for j in range(axes, 0, -1):
        factor, times = scale[j - 1] * unit, np.float32(j)
        for lane in range(lanes):
            value = features[j - 1, start + lane] * factor
            out[j, lane] = out[0, lane] - times * value
            out[0, lane] += value


@kernel
def _round(elevated, lanes, low, shifts, units, origin, total):
    """Nearest multiple of d + 1 in each coordinate: what is left, its key, and the sum."""
    axes = elevated.shape[0] - 1
    origin[:lanes] = 0
    total[:lanes] = 0
    for i in range(axes + 1):
        for lane in range(lanes):
            nearest = np.floor(elevated[i, lane] + np.float32(0.5))
            elevated[i, lane] -= nearest
            total[lane] += np.int32(nearest)
            units[i, lane] = 0
            if i < axes:
                units[i, lane] = np.uint64(1) << shifts[i]
                origin[lane] += np.uint64(np.int64(nearest) - low[i]) << shifts[i]


@kernel
def _sort(left, lanes, units):
    """Sort what rounding left, largest first, with the units of its coordinates."""
    size = left.shape[0]
    for turn in range(size):
        for i in range(turn & 1, size - 1, 2):
            for lane in range(lanes):
                a, b = left[i, lane], left[i + 1, lane]
                u, v = units[i, lane], units[i + 1, lane]
                swap = a < b
                left[i, lane] = b if swap else a
                left[i + 1, lane] = a if swap else b
                units[i, lane] = v if swap else u
                units[i + 1, lane] = u if swap else v


@kernel
def _turn(left, lanes, units, origin, total, gaps):
    """Correct the key where the sum of the rounded coordinates is s ≠ 0.

    The s coordinates rounded up most were rounded up too far (or −s rounded down too far).
    Moving them turns the sorted sequence round by s; the gaps in the round stay.
    """
    size = left.shape[0]
    for r in range(size):
        for lane in range(lanes):
            s = total[lane]
            origin[lane] -= units[r, lane] if r >= size - s else np.uint64(0)
            origin[lane] += units[r, lane] if r < -s else np.uint64(0)
            below = left[r + 1, lane] if r + 1 < size else left[0, lane] - np.float32(1)
            gaps[r, lane] = left[r, lane] - below


@kernel
def _name(gaps, lanes, shifts, units, origin, total, names, weights):
    """Keys of the d + 1 vertices around each point, and its barycentric weights.

    From remainder k − 1 to k the next coordinate from the end of the round falls by one
    cell; weights are the gaps.
    """
    size = gaps.shape[0]
    up = np.uint64(1) << shifts[size - 1]
    for lane in range(lanes):
        key = origin[lane]
        at = np.intp(size - 1 - total[lane])
        at = at - size if at >= size else at
        for k in range(size):
            names[lane, k] = key
            weights[lane, k] = gaps[at, lane]
            key += up - units[at, lane]
            at = at - 1 if at else size - 1


@kernel
def _link(keys, order, firsts, steps, neighbours):
    """Both neighbours of each vertex along each direction; 0 is nowhere.

    Vertices of remainder k lie in ``firsts[k]:firsts[k + 1]``, sorted; adding the step to
    all of them keeps their order, so one walk through remainder k + 1 finds them.
    """
    size = steps.shape[0]
    for axis in range(size):
        for k in range(size):
            step = steps[axis, 1 if k == size - 1 else 0]
            following = (k + 1) % size
            at, end = firsts[following], firsts[following + 1]
            for n in range(firsts[k], firsts[k + 1]):
                wanted = keys[n] + step
                while at < end and keys[at] < wanted:
                    at += 1
                if at < end and keys[at] == wanted:
                    neighbours[axis, 0, order[n]] = order[at]
                    neighbours[axis, 1, order[at]] = order[n]


@kernel
def _filter(values, vertices, weights, neighbours, out):
    """Splat, blur by (½, 1, ½) along every direction, slice; vertex 0 stays empty."""
    size, _, count = neighbours.shape
    lattice = np.zeros(count, np.float32)
    for n in range(values.size):
        for k in range(size):
            lattice[vertices[n, k]] += weights[n, k] * values[n]
    blurred = np.zeros(count, np.float32)
    half = np.float32(0.5)
    for axis in range(size):
        after, before = neighbours[axis, 0], neighbours[axis, 1]
        for v in range(1, count):
            blurred[v] = lattice[v] + half * (lattice[before[v]] + lattice[after[v]])
        lattice, blurred = blurred, lattice
    gain = np.float32(1 / (1 + 2.0 ** -(size - 1)))
    for n in range(values.size):
        total = np.float32(0)
        for k in range(size):
            total += weights[n, k] * lattice[vertices[n, k]]
        out[n] = gain * total
