"""The bad-input corpus: every item ends as it must, in bounded time and memory."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_input import write_corpus

from medclipsam.engine.archive import Decoders, Entry, Limits, open_archive
from medclipsam.engine.errors import InputError

SECONDS = 120.0  # for one item; the slowest bomb takes about two, more on a busy machine
RESIDENT = 900 << 20  # bytes of a decode process; max_pixels alone allows 256 MiB of greys
LIMITS = Limits(max_seconds=SECONDS, max_memory=3 << 30)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return folder, write_corpus(folder)


@pytest.fixture(scope="module")
def outcomes(corpus):
    """Item id → (reason or "", seconds), each decoded in one of two processes."""
    folder, _ = corpus
    with Decoders(1, LIMITS) as pool:
        found = {entry.ref.id: judged(pool, entry) for entry in open_archive(folder)}
        assert peak(pool) < RESIDENT
    return found


def judged(pool: Decoders, entry: Entry) -> tuple[str, float]:
    started = time.monotonic()
    try:
        frames = pool.decode(entry).frames
    except InputError as error:
        assert error.stage == "read_image" and str(error) and "Secret" not in str(error)
        return error.reason, time.monotonic() - started
    assert frames.ndim == 4 and frames.shape[-1] == 3 and frames.max() > frames.min()
    return "", time.monotonic() - started


def peak(pool: Decoders) -> int:
    """The most memory that any process of the pool has held."""
    return max(map(high_water, children(pool)))


def children(pool: Decoders) -> Iterator[int]:
    return (process._child.pid for process in pool._all if process._child is not None)


def high_water(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_every_file_is_accounted_for_once(corpus, outcomes):
    folder, expected = corpus
    assert set(outcomes) == set(expected)
    ids = [entry.ref.id for entry in open_archive(folder)]
    assert ids == list(outcomes), "the same order each time, and nothing twice"


def test_every_item_ends_as_it_must(corpus, outcomes):
    _, expected = corpus
    wrong = {
        item: (reason, set(expected[item]))
        for item, (reason, _) in outcomes.items()
        if reason not in expected[item]
    }
    assert not wrong


def test_no_item_takes_long(outcomes):
    slow = {item: seconds for item, (_, seconds) in outcomes.items() if seconds > SECONDS}
    assert not slow


def test_ids_are_harmless_as_paths(outcomes):
    for item in outcomes:
        assert not item.startswith("/") and ".." not in item.split("/") and item.isprintable()
