"""An archive of small pictures, an engine, and one whole run, made once a session."""

import cv2
import numpy as np
import pytest
from running.attempts import COUNT, attempt

from medclipsam.engine.engine import Engine
from medclipsam.train.phantoms.phantoms import make_phantom

SETTINGS = {
    "saliency": {"method": "gscorecam", "k": 2, "rows": 8},
    "segment": {"batch": 2, "boxes": 4},
}


@pytest.fixture(scope="session")
def engine(tiny_bundle_folder):
    return Engine.open(str(tiny_bundle_folder), "cpu", settings=SETTINGS, threads=2)


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """24 pictures of several sizes, half of them in colour."""
    root = tmp_path_factory.mktemp("scans")
    for n in range(COUNT):
        phantom = make_phantom(n, "ultrasound", size=(41 + n % 3, 52))
        grey = (phantom.pixels * 255).astype(np.uint8)
        colour = np.stack([grey, grey // 2, 255 - grey], axis=2)
        cv2.imwrite(str(root / f"{n:02}.png"), colour if n % 2 else grey)
    return root


@pytest.fixture(scope="session")
def whole(engine, archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    attempt(engine, archive, out)
    return out
