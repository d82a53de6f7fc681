import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from medclipsam.engine.config import ConfidenceConfig
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.quality import agreement, border_contact, confidence, features
from medclipsam.train.phantoms.calibration import fit_logistic

FIGURES = {"predicted_iou": 0.9, "stability": 0.8, "agreement": 0.6, "contrast": 0.02}
shares = st.floats(0, 1)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (33, 64)])
def test_agreement_is_the_f1_score(shape):
    rng = np.random.default_rng(sum(shape))
    a, b = rng.random((2, *shape)) < 0.5
    a[0, 0] = True
    assert agreement(a, b) == pytest.approx(f1_score(a.ravel(), b.ravel()))
    assert agreement(a & False, b & False) == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (2, 2), (7, 5), (33, 64)])
def test_border_contact_against_a_walk_around_the_picture(shape):
    mask = np.random.default_rng(sum(shape)).random(shape) < 0.4
    edge = [
        mask[y, x]
        for y in range(shape[0])
        for x in range(shape[1])
        if y in (0, shape[0] - 1) or x in (0, shape[1] - 1)
    ]
    assert border_contact(mask) == pytest.approx(np.mean(edge))


def test_without_calibration_it_is_a_geometric_mean():
    assert confidence(FIGURES, ConfidenceConfig()) == pytest.approx((0.9 * 0.8 * 0.6) ** (1 / 3))


@given(shares, shares, shares, st.floats(-1, 1) | st.just(math.nan))
def test_confidence_lies_in_0_1_whatever_the_figures(iou, stability, agreed, contrast):
    figures = {
        "predicted_iou": iou,
        "stability": stability,
        "agreement": agreed,
        "contrast": contrast,
    }
    for config in (ConfidenceConfig(), ConfidenceConfig(-3, 1, 2, 3, 40, 0.01)):
        assert 0 <= confidence(figures, config) <= 1


def test_the_logistic_model_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4)) * [1, 2, 3, 0.5]
    y = x @ [0.5, -1, 0.3, 2] + rng.logistic(size=400) > 0.4
    model = LogisticRegression(C=1, tol=1e-10, max_iter=1000).fit(x, y)
    found = fit_logistic(x, y)
    np.testing.assert_allclose(found, [*model.intercept_, *model.coef_[0]], atol=1e-5)
    config = ConfidenceConfig(*found, scale=0.05)
    seen = np.array([features(FIGURES, 0.05)])
    assert confidence(FIGURES, config) == pytest.approx(model.predict_proba(seen)[0, 1], abs=1e-5)


def test_nonsense_is_refused():
    with pytest.raises(ConfigError, match="finite"):
        ConfidenceConfig(bias=math.inf)
    with pytest.raises(ConfigError, match="scale"):
        ConfidenceConfig(scale=-1)
