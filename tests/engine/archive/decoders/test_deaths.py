"""Whatever happens to a decode process costs its item at most, and a broken machine costs none."""

import errno
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from archives.decoding import PATIENCE, marker_of, pids, reason, same, wait_until

from medclipsam.engine.archive import Decoders, Limits, decode
from medclipsam.engine.archive.decoders import pool as decoders
from medclipsam.engine.errors import BackendError, InputError


def test_a_process_that_is_killed_costs_nothing(item, hook, tmp_path):
    marker = hook(f"if os.path.getsize({marker_of(tmp_path)!r}) == 1: time.sleep(3600)")
    with Decoders(1) as pool, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.decode, item)
        assert wait_until(lambda: marker.exists() and marker.stat().st_size)
        (pid,) = pids(pool)
        os.kill(pid, signal.SIGKILL)
        same(waiting.result(PATIENCE), decode(item.files))
        assert marker.read_text() == "xx" and pids(pool) != [pid]


def test_an_idle_process_that_is_killed_costs_nothing(item):
    with Decoders(1) as pool:
        first = pool.decode(item)
        os.kill(pids(pool)[0], signal.SIGKILL)
        same(pool.decode(item), first)


def test_an_item_that_ends_every_process(item, hook):
    marker = hook("os.abort()")
    with Decoders(1) as pool:
        assert reason(pool, item) == "crashed"
        assert marker.read_text() == "xxx"
        assert reason(pool, item) == "crashed", "the pool goes on"


def test_an_item_that_never_ends(item, hook):
    marker = hook("time.sleep(3600)")
    with Decoders(1, Limits(max_seconds=0.3)) as pool:
        started = time.monotonic()
        assert reason(pool, item) == "timeout"
        assert time.monotonic() - started < PATIENCE
        assert marker.read_text() == "x", "a timeout is not tried again"


def test_a_loop_that_nobody_waits_for_ends_by_its_alarm(item, hook, monkeypatch):
    """In C code that holds the interpreter, with its parent gone."""
    hook("worker.signal.setitimer(worker.signal.ITIMER_REAL, 0.3); (10**8)**(10**8)")
    with Decoders(1) as pool:
        assert reason(pool, item) == "crashed"


def test_memory_is_capped(item, hook):
    hook("import numpy; numpy.empty(1 << 40, 'u1')")
    with Decoders(1, Limits(max_memory=4 << 30)) as pool:
        with pytest.raises(InputError, match="max_memory") as caught:
            pool.decode(item)
        assert caught.value.reason == "too-large" and pids(pool)


def test_a_bug_in_a_decoder_costs_one_item(item, hook):
    hook("raise KeyError('Secret^Patient')")
    with Decoders(1) as pool, pytest.raises(InputError, match="KeyError") as caught:
        pool.decode(item)
    assert caught.value.reason == "failed" and "Secret" not in str(caught.value)


def test_a_process_that_cannot_start(item, monkeypatch):
    monkeypatch.setattr(decoders, "PROGRAM", "raise SystemExit(1)")
    with Decoders(1) as pool:
        for _ in range(2):
            with pytest.raises(BackendError, match="cannot start"):
                pool.decode(item)
        assert not pids(pool)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EAGAIN, errno.EMFILE])
def test_a_machine_without_room_for_a_process_is_no_fault_of_an_item(item, monkeypatch, number):
    def popen(*args, **more):
        raise OSError(number, os.strerror(number))

    with Decoders(1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(decoders.subprocess, "Popen", popen)
            with pytest.raises(BackendError, match=r"start a decode process .*same command"):
                pool.decode(item)
        pool.decode(item)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.ENOTCONN])
def test_storage_that_does_not_answer_is_no_fault_of_an_item(item, hook, number):
    """Also where it is a decode process that opens the file."""
    hook(f"os.open = lambda *_, **__: (_ for _ in ()).throw(OSError({number}, 'away'))")
    with Decoders(1) as pool, pytest.raises(BackendError, match="cannot read the archive"):
        pool.decode(item)


def test_files_that_vanish_or_shrink(tmp_path, item):
    (path,) = item.files
    data = path.read_bytes()
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            path.write_bytes(data[:100])
            path.unlink()
            path.write_bytes(data)
            time.sleep(0.002)

    with Decoders(1) as pool, ThreadPoolExecutor(1) as threads:
        expected = pool.decode(item)
        threads.submit(disturb)
        reasons = set()
        for _ in range(200):
            try:
                same(pool.decode(item), expected)
                reasons.add("")
            except InputError as error:
                reasons.add(error.reason)
        stop.set()
    assert reasons <= {"", "vanished", "truncated", "empty", "unreadable"} and len(reasons) > 1
