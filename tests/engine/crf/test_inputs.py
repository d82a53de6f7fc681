"""Every saliency, type, thread and setting gives a finite result or is refused."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from crf_truth import energies, picture, softmax

from medclipsam.engine.crf import CrfConfig, dense_crf
from medclipsam.engine.errors import ConfigError

ROUNDING = 2e-5  # float32 through two filters and a tanh


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
        (GOOD[0][:0], GOOD[1][:0], r"\(0, 5, 3\)"),
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
        {"tau": float("inf")},
        {"epsilon": 0},
        {"max_side": -1},
        {"solver": "gpu"},
        {"gaussian_compat": -1},
        {"bilateral_compat": -0.1},
        {"iterations": -1},
        {"threshold": 0},
        {"threshold": 1},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"CrfConfig: {next(iter(wrong))} must be"):
        CrfConfig(**wrong)


def test_deviations_beyond_any_lattice_are_refused():
    rgb, p = picture((60, 60), 0)
    with pytest.raises(ConfigError, match=r"raise crf\.bilateral_sxy"):
        dense_crf(rgb, p, CrfConfig(bilateral_sxy=1e-15, bilateral_srgb=1e-9))
