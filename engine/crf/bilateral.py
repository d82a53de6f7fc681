"""The appearance kernel of the CRF on grey images: a bilateral grid over (y, x, level).

Filters v_i → Σ_j exp(−½‖f_i − f_j‖²) v_j with f = (y/σ_xy, x/σ_xy, I/σ_I). Grey levels
are integers and keep a cell each, so the intensity axis is exact; over (y, x) values are
splatted to cells of a fraction of a deviation with bilinear weights, blurred and sliced (Paris &
Durand, IJCV 2009; Chen, Paris & Durand, SIGGRAPH 2007). Splat and slice each blur by
1/6 cell² per axis, so the grid's own blur has the variance s² − 1/3 that is left of s².
"""

import math

import numpy as np
from llvmlite import ir
from numba import types

from medclipsam.engine.crf.convolve import along_last, along_middle, gaussian_taps, in_fours
from medclipsam.engine.jit import intrinsic, kernel

INT = ir.IntType(32)
FOUR = ir.VectorType(ir.FloatType(), 4)
LANES = [ir.Constant(INT, lane) for lane in range(4)]

CELLS_PER_SIGMA = 2.25
RADIUS = 3.5


class BilateralGrid:
    """The filter for one grey image.

    Args:
        grey: uint8 (H, W), C-contiguous.
        sigma_xy: spatial deviation in pixels, > 0.
        sigma_intensity: deviation in grey levels, > 0.
    """

    def __init__(self, grey: np.ndarray, sigma_xy: float, sigma_intensity: float):
        low = int(grey.min())
        levels = int(grey.max()) - low + 1
        cell = sigma_xy / CELLS_PER_SIGMA
        row_starts, rows = _axis(grey.shape[0], cell)
        column_starts, columns = _axis(grey.shape[1], cell)
        self._shape = (row_starts.size, column_starts.size, levels)
        self._place = (grey, low, row_starts, rows.repeat(2, 1), column_starts, np.tile(columns, 2))
        spatial = gaussian_taps(math.sqrt(CELLS_PER_SIGMA**2 - 1 / 3), RADIUS, 1 << 30)
        spatial *= math.sqrt(2 * math.pi) * CELLS_PER_SIGMA / spatial.sum()
        intensity = gaussian_taps(sigma_intensity, RADIUS, levels)
        self._spatial, self._intensity = (
            (in_fours(taps), len(taps) // 2) for taps in (spatial, intensity)
        )

    @staticmethod
    def cells(shape: tuple[int, ...], sigma_xy: float) -> float:
        """How many cells the grid of an (H, W) image may have."""
        return 256 * math.prod(length * CELLS_PER_SIGMA / sigma_xy + 2 for length in shape)

    def __call__(self, values: np.ndarray, out: np.ndarray) -> None:
        """Filter float32 (H, W) into ``out`` (H, W)."""
        grid = np.zeros(self._shape, np.float32)
        other = np.empty_like(grid)
        y, x, z = self._shape
        _splat(values, *self._place, grid)
        along_middle(grid.reshape(1, y, x * z), *self._spatial, other.reshape(1, y, x * z))
        along_middle(other, *self._spatial, grid)
        along_last(grid.reshape(y * x, z), *self._intensity, other.reshape(y * x, z))
        _slice(other, *self._place, out)


def _axis(length: int, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """First pixel of each cell and the end, int64; factors of its two sides, float32 (N, 2)."""
    places = np.arange(length) / cell
    cells = np.floor(places)
    starts = np.searchsorted(cells, np.arange(cells[-1] + 2))
    inside = (places - cells).astype(np.float32)
    return starts, np.stack([1 - inside, inside], 1)


def _four(context, builder, array, given, first):
    """Pointer to ``array[first:first + 4]``, counted in memory order, as one vector."""
    data = context.make_array(array)(context, builder, given).data
    return builder.bitcast(builder.gep(data, [first]), FOUR.as_pointer())


@intrinsic
def _add_four(_, cells, first, columns, second, factors, third, value):
    """``cells[first:][:4] += value · columns[second:][:4] · factors[third:][:4]``.

    All arrays float32 and counted in memory order. One vector addition; the compiler does
    not find it by itself, and four stores a pixel are most of what splatting costs.
    """

    def build(context, builder, signature, arguments):
        pointers = [
            _four(context, builder, signature.args[n], arguments[n], arguments[n + 1])
            for n in (0, 2, 4)
        ]
        cell, column, factor = (builder.load(pointer, align=4) for pointer in pointers)
        values = builder.insert_element(ir.Constant(FOUR, ir.Undefined), arguments[6], LANES[0])
        values = builder.shuffle_vector(values, values, ir.Constant(ir.VectorType(INT, 4), [0] * 4))
        product = builder.fmul(builder.fmul(column, factor), values)
        builder.store(builder.fadd(cell, product), pointers[0], align=4)
        return context.get_dummy_value()

    signature = types.void(
        cells, types.intp, columns, types.intp, factors, types.intp, types.float32
    )
    return signature, build


@intrinsic
def _dot_four(_, cells, first, columns, second, factors, third):
    """Σ of ``cells[first:][:4] · columns[second:][:4] · factors[third:][:4]``."""

    def build(context, builder, signature, arguments):
        cell, column, factor = (
            builder.load(
                _four(context, builder, signature.args[n], arguments[n], arguments[n + 1]), align=4
            )
            for n in (0, 2, 4)
        )
        product = builder.fmul(cell, builder.fmul(column, factor))
        a, b, c, d = (builder.extract_element(product, lane) for lane in LANES)
        return builder.fadd(builder.fadd(a, c), builder.fadd(b, d))

    return types.float32(cells, types.intp, columns, types.intp, factors, types.intp), build


@kernel
def _splat(values, grey, low, row_starts, rows, column_starts, columns, grid):
    """Add each pixel to the four cells around it at its grey level.

    ``corners`` collects the pixels of one cell in the first level of cache; its four sums
    of a level lie side by side. ``rows`` and ``columns``: (N, 4) bilinear factors.
    """
    cells, levels = column_starts.size - 1, grid.shape[2]
    corners = np.empty((cells, levels, 4), np.float32)
    for cy in range(row_starts.size - 1):
        corners[:] = 0
        for i in range(row_starts[cy], row_starts[cy + 1]):
            for cx in range(cells):
                start = cx * levels - low
                for j in range(column_starts[cx], column_starts[cx + 1]):
                    at = (start + grey[i, j]) * 4
                    _add_four(corners, at, columns, j * 4, rows, i * 4, values[i, j])
        for cx in range(cells):
            for z in range(levels):
                grid[cy, cx, z] += corners[cx, z, 0]
                grid[cy, cx + 1, z] += corners[cx, z, 1]
                grid[cy + 1, cx, z] += corners[cx, z, 2]
                grid[cy + 1, cx + 1, z] += corners[cx, z, 3]


@kernel
def _slice(grid, grey, low, row_starts, rows, column_starts, columns, out):
    """Read the grid at each pixel with bilinear factors."""
    cells, levels = column_starts.size - 1, grid.shape[2]
    corners = np.empty((cells, levels, 4), np.float32)
    for cy in range(row_starts.size - 1):
        for cx in range(cells):
            for z in range(levels):
                corners[cx, z, 0] = grid[cy, cx, z]
                corners[cx, z, 1] = grid[cy, cx + 1, z]
                corners[cx, z, 2] = grid[cy + 1, cx, z]
                corners[cx, z, 3] = grid[cy + 1, cx + 1, z]
        for i in range(row_starts[cy], row_starts[cy + 1]):
            for cx in range(cells):
                start = cx * levels - low
                for j in range(column_starts[cx], column_starts[cx + 1]):
                    at = (start + grey[i, j]) * 4
                    out[i, j] = _dot_four(corners, at, columns, j * 4, rows, i * 4)
