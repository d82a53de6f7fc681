"""The permutohedral lattice against the exact Gaussian and against a literal one in Python."""

import itertools

import numpy as np
import pytest

from medclipsam.engine.crf.permutohedral import PermutohedralLattice
from medclipsam.engine.errors import ConfigError

ROUNDING = 2e-3  # float32 places of points in cells up to a few hundred wide


def literal_filter(points, values):
    """Adams, Baek & Davis 2010, section 3, with dictionaries, point by point in float64."""
    d = len(points)
    scale = np.sqrt(2 / 3) * (d + 1) / np.sqrt(np.arange(1, d + 1) * np.arange(2, d + 2))
    lattice, corners = {}, []
    for point, value in zip(points.T.astype(np.float64) * scale, values, strict=True):
        place = np.array([point[i:].sum() - i * point[i - 1] * (i > 0) for i in range(d + 1)])
        base = np.round(place / (d + 1)) * (d + 1)
        order = np.argsort(-(place - base), kind="stable")
        s = round(base.sum() / (d + 1))
        base[order[d + 1 - s :] if s > 0 else order[:-s]] -= (d + 1) * np.sign(s)
        order = np.argsort(-(place - base), kind="stable")
        gaps = (place - base)[order] / (d + 1)
        weights = [1 + gaps[d] - gaps[0], *(gaps[d - k] - gaps[d + 1 - k] for k in range(1, d + 1))]
        mine = []
        for k, weight in enumerate(weights):
            vertex = base + k
            vertex[order[d + 1 - k :]] -= d + 1
            key = tuple(int(v) for v in vertex)
            lattice[key] = lattice.get(key, 0) + weight * value
            mine.append((key, weight))
        corners.append(mine)
    for axis in range(d + 1):
        step = np.ones(d + 1, int)
        step[axis] = -d
        lattice = {
            key: total
            + sum(lattice.get(tuple(int(v) for v in key + sign * step), 0) for sign in (1, -1)) / 2
            for key, total in lattice.items()
        }
    gain = 1 / (1 + 2.0**-d)
    return np.array([gain * sum(w * lattice[key] for key, w in mine) for mine in corners])


@pytest.mark.parametrize(("axes", "spread"), [*itertools.product([1, 2, 3, 5], [0.5, 6, 80])])
def test_equals_a_literal_lattice(axes, spread):
    rng = np.random.default_rng([axes, int(spread)])
    points = rng.uniform(-spread, spread, (axes, 700)).astype(np.float32)
    values = rng.random(700).astype(np.float32)
    out = np.empty(700, np.float32)
    PermutohedralLattice(points)(values, out)
    np.testing.assert_allclose(out, literal_filter(points, values), rtol=ROUNDING, atol=ROUNDING)


def test_one_point_and_equal_points():
    points = np.full((5, 3), 1.7, np.float32)
    for n in (1, 3):
        values, out = np.ones(n, np.float32), np.empty(n, np.float32)
        PermutohedralLattice(points[:, :n])(values, out)
        np.testing.assert_allclose(out, literal_filter(points[:, :n], values), rtol=1e-5)


def test_too_many_cells_are_refused():
    points = np.array([[0.0, 1e9]] * 5, np.float32)
    with pytest.raises(ConfigError, match="too small for this image"):
        PermutohedralLattice(points)


@pytest.mark.parametrize("axes", [1, 2, 3, 5])
def test_filters_like_a_gaussian(axes):
    """Over points so dense that sums are smooth, in any number of dimensions."""
    rng = np.random.default_rng(axes)
    points = rng.uniform(0, 2.5, (axes, 3000)).astype(np.float32)
    values = rng.random(3000).astype(np.float32)
    gaps = ((points[:, :, None].astype(np.float64) - points[:, None]) ** 2).sum(0)
    truth = np.exp(-0.5 * gaps) @ values
    out = np.empty(3000, np.float32)
    PermutohedralLattice(points)(values, out)
    ratio = out / truth
    assert np.abs(ratio / np.median(ratio) - 1).mean() < 0.06  # n K n cancels a common factor
