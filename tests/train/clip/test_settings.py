"""Settings that make no sense are refused by name."""

from dataclasses import replace
from typing import get_args, get_type_hints

import pytest

from medclipsam.engine.errors import ConfigError
from medclipsam.train.clip.settings import ClipTraining
from medclipsam.train.losses import LOSSES

SHORT = ClipTraining(
    epochs=2, batch=6, learning_rate=1e-3, warmup=2, temperature=0.07, augmentation="patches"
)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss": "clip"}, "loss must be dhn-nce, .*info-nce, got 'clip'"),
        ({"augmentation": "all"}, "augmentation must be none, light or patches"),
        ({"batch": 1}, "batch must be at least 2, got 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"ema": 1.0}, "ema must be below 1"),
        ({"lora": 4, "from_scratch": True}, "teach nothing"),
    ],
)
def test_settings_that_make_no_sense(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        replace(SHORT, **changes)


def test_every_loss_can_be_chosen():
    assert get_args(get_type_hints(ClipTraining)["loss"]) == LOSSES
