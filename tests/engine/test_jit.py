"""How kernels are compiled and where their machine code is kept."""

import os
import subprocess
import sys

import numba
import pytest
from numba.core import config

from medclipsam.engine import boxes, jit
from medclipsam.engine.crf import bilateral, convolve, permutohedral, pointwise

KERNELS = [
    value
    for module in (bilateral, boxes, convolve, permutohedral, pointwise)
    for value in vars(module).values()
    if isinstance(value, numba.core.registry.CPUDispatcher)
]


@pytest.mark.parametrize("function", KERNELS, ids=lambda f: f.py_func.__qualname__)
def test_kernels_release_the_lock_and_stay_serial(function):
    assert function.targetoptions["nogil"] and not function.targetoptions.get("parallel")
    assert set(function.targetoptions["fastmath"]) <= {"contract", "reassoc"}


@pytest.mark.parametrize("function", KERNELS, ids=lambda f: f.py_func.__qualname__)
def test_kernels_call_kernels_of_their_own_file_only(function):
    """Numba's cache does not see a change in another file."""
    names = {**function.py_func.__globals__}
    for name in function.py_func.__code__.co_names:
        other = names.get(name)
        if isinstance(other, numba.core.registry.CPUDispatcher):
            assert other.py_func.__module__ == function.py_func.__module__, name


def test_there_are_kernels():
    assert len(KERNELS) > 15


def compiled_in(home, **environment):
    """Compile a kernel in a process of its own; where numba put its cache."""
    program = (
        "import numpy as np\n"
        "from medclipsam.engine.crf import pointwise\n"
        "pointwise.symmetric_norm(np.ones(3, np.float32))\n"
        "print(pointwise.symmetric_norm._cache.cache_path)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "MEDCLIPSAM_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_machine_code_is_kept_where_nobody_else_writes(tmp_path):
    path = compiled_in(tmp_path / "home")
    assert path.startswith(str(tmp_path / "home" / "numba"))
    assert os.listdir(path)
    assert (tmp_path / "home" / "numba").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_can_write_is_not_used(tmp_path):
    shared = tmp_path / "home" / "numba"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    assert not compiled_in(tmp_path / "home").startswith(str(tmp_path))


def test_the_users_own_folder_wins(tmp_path):
    path = compiled_in(tmp_path / "home", NUMBA_CACHE_DIR=str(tmp_path / "mine"))
    assert path.startswith(str(tmp_path / "mine"))


def test_other_packages_keep_their_folder():
    before = config.CACHE_DIR
    jit.kernel(lambda x: x)
    assert before == config.CACHE_DIR
