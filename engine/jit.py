"""How numba compiles our kernels, and where it keeps the machine code.

Numba's cache files are pickles: whoever can write them runs code in every process that
reads them. They therefore live in a folder of the user's own that nobody else can write,
unless ``NUMBA_CACHE_DIR`` names another.
"""

import atexit
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import config as numba_config
from numba.extending import intrinsic as _intrinsic

from medclipsam.engine.home import home

config: Any = numba_config  # attributes are made at run time
intrinsic: Any = _intrinsic  # called without its first argument


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first use, release the interpreter lock, keep the machine code.

    Serial on purpose: images run side by side on threads, and parallel regions entered
    from several Python threads abort the process. ``fastmath`` leaves NaN and infinity alone;
    numpy's error model spares a test for zero at each division, which forbids vectors.
    """
    before, config.CACHE_DIR = config.CACHE_DIR, config.CACHE_DIR or private_cache()
    try:
        return numba.njit(
            nogil=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy"
        )(function)
    finally:
        config.CACHE_DIR = before


@cache
def private_cache() -> str:
    """A folder that belongs to this user alone; a temporary one if home cannot be written."""
    folder = home() / "numba"
    try:
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        if is_private(folder) and os.access(folder, os.W_OK):
            return str(folder)
    except OSError:
        pass
    temporary = tempfile.mkdtemp(prefix="medclipsam-numba-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary


def is_private(folder: Path) -> bool:
    """Whether this user owns ``folder`` and neither group nor others can write to it."""
    found = folder.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
