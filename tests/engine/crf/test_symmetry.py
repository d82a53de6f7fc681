"""The dense CRF knows no up, no left, no dark, and no order of labels."""

import numpy as np
from crf_truth import picture
from hypothesis import given, settings
from hypothesis import strategies as st

from medclipsam.engine.crf import CrfConfig, dense_crf

GREY_MEAN = 1e-3  # the grid was measured at 3e-5…9e-5 on 96²; small pictures are rougher
GREY_MAX = 0.04  # measured 4e-3…2e-2; a pixel whose label hangs in the balance
FLIP_MAX, FLIP_MEAN = 2 * GREY_MAX, 2 * GREY_MEAN  # two grids, each with its own error
ROUNDING = 2e-5  # float32 through two filters and a tanh
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
