"""A simulated device, and what is opened on it."""

import sys

import pytest
from simulated.cuda import Simulation
from simulated.models import build_models, simulated_pipeline


@pytest.fixture(scope="session")
def models():
    build_models()


@pytest.fixture
def sim(models):
    """A machine with one device, on which nothing lies yet that the engine keeps."""
    for name, module in list(sys.modules.items()):
        if name.startswith("medclipsam.engine.backends."):
            for kept in vars(module).values():
                if hasattr(kept, "cache_clear"):
                    kept.cache_clear()
    with Simulation() as simulation:
        yield simulation


@pytest.fixture
def open_pipeline(sim):
    """(method, precision, bundle=…, settings of the method …) → ``Pipeline``."""
    return simulated_pipeline
