"""Decode processes that all tests of runs share, unless a test is about them."""

import pytest
from running.kept import keeping

from medclipsam.engine.archive import Decoders
from medclipsam.engine.run import streaming


@pytest.fixture(scope="session")
def decoders():
    with Decoders(2) as pool:
        yield pool


@pytest.fixture(autouse=True)
def kept_decoders(request, monkeypatch):
    if request.node.get_closest_marker("own_decoders") is None:
        pool = request.getfixturevalue("decoders")
        monkeypatch.setattr(streaming, "Decoders", keeping(pool))
