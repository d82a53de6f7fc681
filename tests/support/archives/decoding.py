"""Decode processes under watch: their ids, their reasons, and what they gave."""

import time
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medclipsam.engine.archive import Decoders, Entry
from medclipsam.engine.errors import InputError

PATIENCE = 240.0  # seconds for what takes a fraction of one: only what hangs reaches them
LOSSLESS = Path(pydicom.__file__).parent / "data" / "test_files" / "SC_rgb_jpeg_gdcm.dcm"


def marker_of(folder: Path) -> str:
    """Where a hooked process leaves a letter for each item."""
    return str(folder / "marker")


def reason(pool: Decoders, entry: Entry) -> str:
    with pytest.raises(InputError) as caught:
        pool.decode(entry)
    assert caught.value.stage == "read_image"
    return caught.value.reason


def pids(pool: Decoders) -> list[int]:
    return [process._child.pid for process in pool._all if process._child is not None]


def wait_until(condition) -> bool:
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


def same(one, other) -> None:
    np.testing.assert_array_equal(one.frames, other.frames)
    assert one.frames.dtype == np.uint8
    assert one.frames.strides[-1] == other.frames.strides[-1], "grey stays one byte a pixel"
    assert one.frames.flags.writeable == other.frames.flags.writeable
    assert (one.digest, one.sources) == (other.digest, other.sources)
    facts, others = vars(one.grid).copy(), vars(other.grid).copy()
    np.testing.assert_array_equal(facts.pop("affine"), others.pop("affine"))
    assert facts == others
