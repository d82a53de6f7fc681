"""An item to decode, and a line of Python that decode processes run before each."""

from pathlib import Path

import pytest
from archives.decoding import marker_of
from archives.drawn import NOISE, picture

from medclipsam.engine.archive import Entry
from medclipsam.engine.archive.decoders import pool as decoders
from medclipsam.engine.types import ItemRef

# The same program as the real one, but for what it does before it decodes.
HOOKED = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
import os, sys, time
from medclipsam.engine.archive.decoders import worker
real = worker.decode
def hooked(*args):
    with open({marker!r}, "a") as file:
        file.write("x")
    {action}
    return real(*args)
worker.decode = hooked
worker.serve()
"""


@pytest.fixture
def item(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(picture(NOISE))
    return Entry(ItemRef("x.png"), files=(path,))


@pytest.fixture
def hook(tmp_path, monkeypatch):
    """Makes every decode process run a line of Python before each item."""
    marker = Path(marker_of(tmp_path))

    def install(action: str) -> Path:
        program = HOOKED.format(marker=str(marker), action=action)
        monkeypatch.setattr(decoders, "PROGRAM", program)
        return marker

    return install
