"""The learning rate rises in a line and falls in a cosine."""

import pytest

from medclipsam.train.schedule import warmup_cosine


def test_the_rate_rises_and_falls():
    rates = [warmup_cosine(step, 4, 12) for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4] == 1.0
    assert rates[8] == pytest.approx(0.5) and rates[11] < 0.05
