"""The dense CRF against float64 brute force and against pydensecrf."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydensecrf.densecrf as published
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medclipsam.engine.crf import CrfConfig, dense_crf, unary_logit
from medclipsam.engine.errors import ConfigError

SHAPES = [(1, 1), (1, 23), (31, 1), (2, 3), (17, 29), (45, 38)]
GREY_MEAN = 1e-3  # the grid was measured at 3e-5…9e-5 on 96²; small pictures are rougher
GREY_MAX = 0.04  # measured 4e-3…2e-2; a pixel whose label hangs in the balance
NO_WORSE = 1.15  # colour: both are lattices whose cells fall differently
NO_WORSE_TINY = 1.4  # below half a σ across, pydensecrf's two lattice errors partly cancel
COLOUR_LABELS = 0.97  # share of pixels labelled as by brute force
FLIP_MAX, FLIP_MEAN = 2 * GREY_MAX, 2 * GREY_MEAN  # two grids, each with its own error
ROUNDING = 2e-5  # float32 through two filters and a tanh


def picture(shape, seed, colour=False):
    """A bright disc on a dark ground with noise, and a saliency that is off by a bit."""
    rng = np.random.default_rng([seed, *shape])
    height, width = shape
    y, x = np.mgrid[:height, :width]
    disc = np.hypot((y - 0.4 * height) / height, (x - 0.55 * width) / width) < 0.3
    levels = np.where(disc, 150, 60)[..., None] + rng.normal(0, 4, (height, width, 3))
    if colour:
        levels = levels * [1.0, 0.8, 0.55] + 20 * np.sin(x / 9)[..., None] * [0, 1, -1]
    else:
        levels = levels[..., :1].repeat(3, 2)
    near = np.hypot((y - 0.45 * height) / height, (x - 0.5 * width) / width)
    saliency = np.clip(0.9 - 1.6 * near + rng.normal(0, 0.08, shape), 0, 1)
    return np.clip(levels, 0, 255).astype(np.uint8), saliency.astype(np.float32)


def energies(p, tau=1.05, epsilon=1e-8):
    """(2, N) unary energies of background and foreground, float64."""
    p = p.astype(np.float64).ravel()
    return np.stack(
        [-np.log(q + epsilon) * (1 + np.exp(-q)) / tau for q in (1 - p, p)],
    )


def softmax(energy):
    weight = np.exp(energy.min(0) - energy)
    return weight / weight.sum(0)


def brute_force(rgb, p, iterations, config=None):
    """Mean field with all N² pairs of two labels, straight from the paper."""
    config = config or CrfConfig()
    height, width = p.shape
    y, x = (axis.ravel().astype(np.float64) for axis in np.mgrid[:height, :width])
    place = np.stack([y, x], 1)
    colour = rgb.reshape(-1, 3).astype(np.float64)
    both = np.hstack([place / config.bilateral_sxy, colour / config.bilateral_srgb])
    kernels = []
    for features, compat in (
        (place / config.gaussian_sxy, config.gaussian_compat),
        (both, config.bilateral_compat),
    ):
        square = (features**2).sum(1)
        gaps = square[:, None] + square[None] - 2 * features @ features.T
        kernel = np.exp(-0.5 * np.maximum(gaps, 0))
        norm = 1 / np.sqrt(kernel.sum(1) + 1e-20)
        kernels.append((compat, norm[:, None] * kernel * norm[None]))
    unary = energies(p, config.tau)
    q = softmax(unary)
    for _ in range(iterations):
        energy = unary.copy()
        for compat, kernel in kernels:
            energy += compat * (kernel @ q.T).T[::-1]  # Potts: pay for the other label
        q = softmax(energy)
    return q[1].reshape(p.shape)


def pydensecrf(rgb, p, iterations):
    crf = published.DenseCRF2D(p.shape[1], p.shape[0], 2)
    crf.setUnaryEnergy(np.ascontiguousarray(energies(p), np.float32))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=60, srgb=5, rgbim=np.ascontiguousarray(rgb), compat=5)
    return np.array(crf.inference(iterations))[1].reshape(p.shape)


def error(q, truth):
    gap = np.abs(q - truth)
    return float(gap.mean()), float(gap.max())


@pytest.mark.parametrize("iterations", [1, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_grey_agrees_with_brute_force(shape, iterations):
    rgb, p = picture(shape, 1)
    q = dense_crf(rgb, p, CrfConfig(iterations=iterations))
    assert (q.dtype, q.shape) == (np.float32, shape)
    mean, most = error(q, brute_force(rgb, p, iterations))
    assert mean <= GREY_MEAN and most <= GREY_MAX


def test_other_parameters_reach_the_kernels():
    rgb, p = picture((33, 26), 2)
    config = CrfConfig(
        gaussian_sxy=5, gaussian_compat=2, bilateral_sxy=20, bilateral_srgb=9,
        bilateral_compat=7, tau=1.4, iterations=2,
    )  # fmt: skip
    truth = brute_force(rgb, p, 2, config)
    mean, most = error(dense_crf(rgb, p, config), truth)
    assert mean <= GREY_MEAN and most <= GREY_MAX
    assert error(brute_force(rgb, p, 2), truth)[0] > 5 * GREY_MEAN  # the settings do matter


@pytest.mark.parametrize("iterations", [1, 5])
@pytest.mark.parametrize("shape", [(17, 29), (45, 38), (1, 40)])
@pytest.mark.parametrize("seed", [3, 4])
def test_grey_is_nearer_to_brute_force_than_pydensecrf(shape, iterations, seed):
    rgb, p = picture(shape, seed)
    truth = brute_force(rgb, p, iterations)
    ours, _ = error(dense_crf(rgb, p, CrfConfig(iterations=iterations)), truth)
    theirs, _ = error(pydensecrf(rgb, p, iterations), truth)
    assert ours < theirs


@pytest.mark.parametrize("iterations", [1, 5])
@pytest.mark.parametrize(
    ("shape", "ratio"),
    [
        ((1, 1), NO_WORSE),
        ((1, 37), NO_WORSE),
        ((17, 29), NO_WORSE_TINY),
        ((45, 38), NO_WORSE),
        ((39, 51), NO_WORSE),
    ],
)
def test_colour_is_no_worse_than_pydensecrf(shape, ratio, iterations):
    ours, theirs = [], []
    for seed in (5, 6, 7):
        rgb, p = picture(shape, seed, colour=True)
        truth = brute_force(rgb, p, iterations)
        q = dense_crf(rgb, p, CrfConfig(iterations=iterations))
        ours.append(error(q, truth)[0])
        theirs.append(error(pydensecrf(rgb, p, iterations), truth)[0])
        assert ((q > 0.5) == (truth > 0.5)).mean() >= COLOUR_LABELS
    assert np.mean(ours) <= ratio * np.mean(theirs) + ROUNDING


def test_one_level_of_colour_leaves_the_result_nearly_alone():
    """Grid and lattice are two roads to one kernel."""
    rgb, p = picture((40, 51), 6)
    tinted = rgb.copy()
    tinted[0, 0, 0] ^= 1
    assert not np.array_equal(rgb, tinted)
    grid, lattice = dense_crf(rgb, p), dense_crf(tinted, p)
    assert ((grid > 0.5) == (lattice > 0.5)).mean() >= COLOUR_LABELS


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("iterations", [0, 1, 10])
def test_certain_saliency_is_finite(value, colour, iterations):
    rgb, p = picture((13, 22), 7, colour)
    q = dense_crf(rgb, np.full_like(p, value), CrfConfig(iterations=iterations))
    assert np.isfinite(q).all() and np.abs(q - value).max() < 1e-3
    mixed = (p > 0.5).astype(np.float32)
    q = dense_crf(rgb, mixed, CrfConfig(iterations=iterations))
    assert np.isfinite(q).all() and q.min() >= 0 and q.max() <= 1


def test_no_iteration_is_the_unary_alone():
    rgb, p = picture((19, 24), 8)
    p.flat[:3] = 0, 1, 0.5
    truth = softmax(energies(p))[1].reshape(p.shape)
    np.testing.assert_allclose(dense_crf(rgb, p, CrfConfig(iterations=0)), truth, atol=ROUNDING)
    alone = CrfConfig(gaussian_compat=0, bilateral_compat=0, iterations=3)
    np.testing.assert_allclose(dense_crf(rgb, p, alone), truth, atol=ROUNDING)


def test_types_and_strides_of_the_saliency_do_not_matter():
    rgb, p = picture((20, 33), 9)
    wide = np.zeros((40, 66), np.float64)
    wide[::2, ::2] = p
    expected = dense_crf(rgb, p)
    np.testing.assert_array_equal(dense_crf(rgb, wide[::2, ::2]), expected)
    np.testing.assert_array_equal(dense_crf(np.asfortranarray(rgb), p), expected)


def test_threads_give_the_bytes_of_a_serial_run():
    work = [
        picture(shape, seed, colour)
        for seed in range(3)
        for shape in [(61, 40), (33, 90)]
        for colour in (False, True)
    ]
    serial = [dense_crf(*pair).tobytes() for pair in work]
    assert [dense_crf(*pair).tobytes() for pair in work] == serial
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert [q.tobytes() for q in pool.map(lambda pair: dense_crf(*pair), work)] == serial


GOOD = np.zeros((4, 5, 3), np.uint8), np.full((4, 5), 0.5, np.float32)


@pytest.mark.parametrize(
    ("rgb", "p", "said"),
    [
        (GOOD[0][..., 0], GOOD[1], "expected uint8"),
        (GOOD[0][..., :2], GOOD[1], "expected uint8"),
        (GOOD[0].astype(np.float32), GOOD[1], "float32"),
        (GOOD[0], GOOD[1].T, r"\(5, 4\)"),
        (GOOD[0], GOOD[1] + 0.6, r"\[0, 1\]"),
        (GOOD[0], GOOD[1] - 0.6, r"\[0, 1\]"),
        (GOOD[0], GOOD[1] * np.nan, "finite"),
        (GOOD[0][:0], GOOD[1][:0], "not empty"),
    ],
)
def test_wrong_input_is_refused(rgb, p, said):
    with pytest.raises(ValueError, match=said):
        dense_crf(rgb, p)


@pytest.mark.parametrize(
    "wrong",
    [
        {"gaussian_sxy": 0},
        {"bilateral_sxy": -1},
        {"bilateral_srgb": 0},
        {"tau": float("nan")},
        {"gaussian_compat": -1},
        {"bilateral_compat": -0.1},
        {"iterations": -1},
        {"threshold": 0},
        {"threshold": 1},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"crf.{next(iter(wrong))}"):
        CrfConfig(**wrong)


def test_a_grid_beyond_memory_is_refused():
    rgb, p = picture((60, 60), 0)
    with pytest.raises(ConfigError, match="use larger ones"):
        dense_crf(rgb, p, CrfConfig(bilateral_sxy=0.01, bilateral_srgb=0.05))


small = st.tuples(st.integers(1, 21), st.integers(1, 21))


@settings(max_examples=25, deadline=None)
@given(small, st.integers(0, 999), st.sampled_from(["rows", "columns", "transposed", "negative"]))
def test_grey_does_not_know_up_from_left_from_dark(shape, seed, turn):
    rgb, p = picture(shape, seed)
    move = {
        "rows": lambda a: a[::-1],
        "columns": lambda a: a[:, ::-1],
        "transposed": lambda a: a.swapaxes(0, 1),
        "negative": lambda a: 255 - a if a.dtype == np.uint8 else a,
    }[turn]
    gap = np.abs(dense_crf(move(rgb), move(p)) - move(dense_crf(rgb, p)))
    assert gap.mean() <= FLIP_MEAN and gap.max() <= FLIP_MAX


@settings(max_examples=25, deadline=None)
@given(small, st.integers(0, 999), st.booleans(), st.integers(0, 4), st.floats(0, 1))
def test_more_saliency_never_means_less_foreground(shape, seed, colour, iterations, share):
    rgb, p = picture(shape, seed, colour)
    config = CrfConfig(iterations=iterations)
    raised = p + np.float32(share) * (1 - p) * np.random.default_rng(seed).random(shape)
    raised = np.clip(raised, p, 1).astype(np.float32)
    assert (dense_crf(rgb, raised, config) >= dense_crf(rgb, p, config) - ROUNDING).all()


@settings(max_examples=25, deadline=None)
@given(small, st.integers(0, 999), st.booleans(), st.integers(0, 4))
def test_labels_are_exchangeable(shape, seed, colour, iterations):
    rgb, p = picture(shape, seed, colour)
    p = np.round(p * 256).astype(np.float32) / 256  # so that 1 − p is exact
    config = CrfConfig(iterations=iterations)
    total = dense_crf(rgb, p, config) + dense_crf(rgb, 1 - p, config)
    np.testing.assert_allclose(total, 1, atol=ROUNDING)


def test_the_unary_is_the_published_one():
    p = np.linspace(0, 1, 41, dtype=np.float32)
    background, foreground = energies(p, 1.3)
    np.testing.assert_allclose(unary_logit(p, 1.3), background - foreground, rtol=1e-4, atol=1e-5)
