"""Pointwise kernels of the CRF against numpy in float64."""

import numpy as np
import pytest

from medclipsam.engine.crf import pointwise


@pytest.mark.parametrize("epsilon", [1e-8, 1e-3])
def test_the_unary_is_the_published_one(epsilon):
    p = np.concatenate([np.linspace(0, 1, 4001), [1e-30, 1e-9, 1e-5, 1 - 1e-7]])
    p = p.astype(np.float32)
    background, foreground = (
        -np.log(q + epsilon) * (1 + np.exp(-q)) / 1.3
        for q in (1 - p.astype(float), p.astype(float))
    )
    out = np.empty_like(p)
    pointwise.unary(p, np.float32(epsilon), np.float32(1.3), out)
    np.testing.assert_allclose(out, background - foreground, rtol=1e-5, atol=1e-5)


def test_pointwise_functions_against_numpy():
    x = np.concatenate([np.linspace(-60, 60, 24001), [-1e30, 1e30, 0]]).astype(np.float32)
    exact = np.tanh(x.astype(np.float64) / 2)
    out = np.empty_like(x)
    pointwise.difference(x, out)
    np.testing.assert_allclose(out, exact, atol=1e-6)
    pointwise.marginal(x, out)
    np.testing.assert_allclose(out, 0.5 + exact / 2, atol=1e-6)
    assert out.min() >= 0 and out.max() <= 1


def test_norms_and_messages():
    rng = np.random.default_rng(0)
    total, message = rng.random((2, 77), dtype=np.float32)
    norm, logit = total.copy(), np.ones(77, np.float32)
    norm[:2] = 0, -1e-6
    pointwise.symmetric_norm(norm)
    np.testing.assert_allclose(norm[2:], 1 / np.sqrt(total[2:]), rtol=1e-6)
    np.testing.assert_allclose(norm[:2], 1e10, rtol=1e-6)
    norm = total.copy()
    pointwise.add_message(np.float32(2.5), norm, message, logit)
    np.testing.assert_allclose(logit, 1 + 2.5 * norm * message, rtol=1e-6)


def test_above():
    logit = np.array([-1, 0.5, 0.25, 2], np.float32)
    out = np.empty(4, bool)
    pointwise.above(logit, np.float32(0.25), out)
    assert out.tolist() == [False, True, False, True]
