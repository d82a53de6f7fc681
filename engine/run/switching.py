"""How soon a thread that has work gets Python's lock from one that computes in plain Python."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

INTERVAL = 1e-4  # seconds; ``benchmarks/results/switching.md``


@contextmanager
def quick_switching() -> Iterator[None]:
    """Switch threads every ``INTERVAL`` inside, for the whole process.

    Whoever launches work on a device lets go of the lock at every launch. With Python's own 5 ms,
    one thread in plain Python (a decoder, an encoder of masks) keeps it that long each time.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, INTERVAL))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
