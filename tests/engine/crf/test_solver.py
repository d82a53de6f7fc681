"""One solver serves many maps, at full or reduced size, by the filter that fits the picture."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from crf_truth import picture, pydensecrf, scan

from medclipsam.engine.crf import CrfConfig, DenseCrf, dense_crf, meanfield, warm_up
from medclipsam.engine.errors import BackendError

COLOUR_LABELS = 0.97  # share of pixels labelled as by brute force
ROUNDING = 2e-5  # float32 through two filters and a tanh


def test_a_grid_beyond_memory_gives_way_to_the_lattice(monkeypatch):
    rgb, p = picture((60, 71), 0)
    grid = DenseCrf(rgb)
    monkeypatch.setattr(meanfield, "MAX_GRID_CELLS", 1000)
    lattice = DenseCrf(rgb)
    assert (grid.kind, lattice.kind) == ("bilateral-grid", "permutohedral-lattice")
    assert (grid.mask(p) == lattice.mask(p)).mean() >= COLOUR_LABELS


def test_the_choice_of_filter_is_named_and_logged(caplog):
    caplog.set_level("DEBUG", "medclipsam.engine.crf")
    for colour, kind in ((False, "bilateral-grid"), (True, "permutohedral-lattice")):
        assert DenseCrf(picture((9, 8), 1, colour)[0]).kind == kind
        assert kind in caplog.messages[-1] and "9×8" in caplog.messages[-1]
    assert DenseCrf(picture((9, 8), 1)[0], CrfConfig(bilateral_compat=0)).kind == "none"


def test_a_single_tinted_pixel_makes_a_colour_image():
    rgb = picture((20, 31), 1)[0]
    for channel in range(3):
        tinted = rgb.copy()
        tinted[-1, -1, channel] ^= 1
        assert DenseCrf(tinted).kind == "permutohedral-lattice"


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_a_mask_is_the_marginal_above_the_threshold(colour, threshold):
    rgb, p = picture((37, 50), 11, colour)
    solver = DenseCrf(rgb, CrfConfig(threshold=threshold))
    q, mask = solver.marginal(p), solver.mask(p)
    assert mask.dtype == bool and mask.shape == p.shape
    np.testing.assert_array_equal(mask[np.abs(q - threshold) > ROUNDING],
                                  (q > threshold)[np.abs(q - threshold) > ROUNDING])  # fmt: skip
    assert mask.any() and not mask.all()


def test_one_image_serves_many_saliency_maps():
    rgb, p = picture((31, 44), 12)
    solver = DenseCrf(rgb)
    for saliency in (p, 1 - p, p**2, p):
        np.testing.assert_array_equal(solver.marginal(saliency), dense_crf(rgb, saliency))


def test_working_at_a_reduced_size():
    rgb, p = scan("grey smooth", (300, 231))
    full = DenseCrf(rgb).mask(p)
    small = DenseCrf(rgb, CrfConfig(max_side=150))
    q, mask = small.marginal(p), small.mask(p)
    assert q.shape == mask.shape == p.shape and q.dtype == np.float32
    np.testing.assert_array_equal(mask, q > 0.5)
    assert (mask & full).sum() >= 0.95 * (mask | full).sum()
    expected = dense_crf(
        cv2.resize(rgb, (116, 150), interpolation=cv2.INTER_AREA),
        cv2.resize(p, (116, 150), interpolation=cv2.INTER_AREA),
        CrfConfig(gaussian_sxy=1.5, bilateral_sxy=30),
    )
    np.testing.assert_array_equal(q, cv2.resize(expected, (231, 300)))
    for side in (0, 300, 5000):
        np.testing.assert_array_equal(DenseCrf(rgb, CrfConfig(max_side=side)).mask(p), full)
    thin = DenseCrf(rgb[:, :1], CrfConfig(max_side=10))
    assert thin.mask(p[:, :1]).shape == (300, 1)


def test_a_whole_x_ray_fits_in_bounded_memory():
    """4096×3328 from start to mask in a process of its own: at most 60 bytes a pixel."""
    program = (
        "import resource, numpy as np\n"
        "from medclipsam.engine.crf import DenseCrf, CrfConfig, warm_up\n"
        "warm_up(CrfConfig())\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "y, x = np.mgrid[:4096, :3328]\n"
        "grey = ((y // 16 + x // 16) % 256).astype(np.uint8)\n"
        "p = (x / 3328).astype(np.float32); del y, x\n"
        "rgb = grey[..., None].repeat(3, 2); del grey\n"
        "mask = DenseCrf(rgb).mask(p)\n"
        "print(mask.sum(), (peak() - before) / p.size)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    area, bytes_per_pixel = map(float, done.stdout.split())
    assert 0 < area < 4096 * 3328
    assert bytes_per_pixel < 60


@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_the_published_solver_has_the_same_interface(iterations):
    rgb, p = scan("grey smooth", (90, 70))
    config = CrfConfig(iterations=iterations, solver="pydensecrf")
    solver = DenseCrf(rgb, config)
    q = solver.marginal(p)
    assert solver.kind == "pydensecrf" and q.dtype == np.float32
    np.testing.assert_allclose(q, pydensecrf(rgb, p, iterations), atol=1e-6)
    np.testing.assert_array_equal(solver.mask(p), q > 0.5)


def test_the_published_solver_obeys_every_parameter():
    rgb, p = picture((24, 30), 13, colour=True)
    plain = CrfConfig(solver="pydensecrf")
    changes = [
        {"gaussian_sxy": 9}, {"gaussian_compat": 0}, {"bilateral_sxy": 9}, {"bilateral_srgb": 30},
        {"bilateral_compat": 0}, {"tau": 3}, {"epsilon": 0.2}, {"iterations": 3}, {"max_side": 12},
    ]  # fmt: skip
    for solver in ("pydensecrf", "numba"):
        plain = dense_crf(rgb, p, CrfConfig(solver=solver))
        for change in changes:
            q = dense_crf(rgb, p, CrfConfig(solver=solver, **change))
            assert np.abs(q - plain).max() > 1e-3, (solver, change)


def test_a_missing_pydensecrf_is_named_before_any_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(BackendError, match=r"medclipsam\[reference\]"):
        warm_up(CrfConfig(solver="pydensecrf"))
    warm_up(CrfConfig())
