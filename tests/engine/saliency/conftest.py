"""Pictures and encoded prompts of the tiny bundle, made once a session."""

import pytest
from clip_autograd import TEXTS
from models import pictures


@pytest.fixture(scope="session")
def images(tiny_encoder):
    return pictures(tiny_encoder.image_size, 2, seed=60)


@pytest.fixture(scope="session")
def prompts(tiny_encoder):
    return tiny_encoder.encode_text(TEXTS)
