"""Every write, sync, rename and close of a run fails in turn; SQLite's own method.

The calls are intercepted below Python, so that those of SQLite and Parquet count too.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[2] / "support"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
LEAST = 60  # calls; a run of two items makes more, else the interception does not work
KINDS = ["ENOSPC once", "ENOSPC for good", "EIO once", "EIO for good"]
EVERY = os.environ.get("FAULTS", "23")  # so many calls apart; 1, all of them, in make test-all


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    if COMPILER is None or not sys.platform.startswith("linux"):
        pytest.skip("intercepting system calls takes a C compiler on Linux")
    library = tmp_path_factory.mktemp("shim") / "faults.so"
    source = str(SUPPORT / "faults.c")
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", "-O1", "-o", str(library), source, "-ldl"], check=True
    )
    return library


@pytest.mark.slow
@pytest.mark.timeout(3600)  # nothing but the number of calls bounds it
def test_no_failing_call_gives_a_wrong_success(shim, small_archive, tiny_bundle_folder, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, str(SUPPORT / "fault_run.py"), str(tiny_bundle_folder)),
            *(str(small_archive), str(tmp_path), EVERY),
        ],
        env={**os.environ, "LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name: kind["wrong"] for name, kind in found.items()} == {key: [] for key in KINDS}
    assert min(kind["calls"] for kind in found.values()) > LEAST


@pytest.fixture(scope="module")
def small_archive(tmp_path_factory):
    import cv2

    from medclipsam.train.phantoms.phantoms import make_phantom

    folder = tmp_path_factory.mktemp("small")
    pixels = (make_phantom(3, size=(40, 52)).pixels * 255).astype("uint8")
    cv2.imwrite(str(folder / "good.png"), pixels)
    (folder / "bad.png").write_bytes((folder / "good.png").read_bytes()[:300])
    return folder
