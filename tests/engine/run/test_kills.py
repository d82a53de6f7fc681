"""SIGKILL at random moments, over and over: nothing is lost, nothing is done twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from medclipsam.train.phantoms.phantoms import make_phantom

SUPPORT = Path(__file__).parents[2] / "support"
KILLS = int(os.environ.get("KILLS", "8"))  # 200 in make test-all


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    for n in range(14):
        pixels = (make_phantom(n, size=(40 + n, 52)).pixels * 255).astype("uint8")
        cv2.imwrite(str(folder / f"scan {n}.png"), pixels)
    (folder / "bad.png").write_bytes((folder / "scan 0.png").read_bytes()[:300])
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)  # nothing but the number of kills bounds it
def test_killed_and_resumed_equals_uninterrupted(archive, tiny_bundle_folder, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, str(SUPPORT / "kill_run.py"), str(tiny_bundle_folder)),
            *(str(archive), str(tmp_path), str(KILLS), "0"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == [] and found["killed"] == KILLS
    assert found["runs"] >= KILLS / 4  # a run is killed four times at most
