"""Decode processes: the same pictures as in this process, whatever happens to them."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from bad_input import COLOUR, NOISE, deep, dicom, gzip, nifti, picture, volume

from medclipsam.engine.archive import Decoders, Entry, Limits, decode, open_archive
from medclipsam.engine.archive.decoders import pool as decoders
from medclipsam.engine.archive.limits import refuse
from medclipsam.engine.errors import BackendError, ConfigError, InputError
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
PATIENCE = 240.0  # seconds for what takes a fraction of one: only what hangs reaches them
LOSSLESS = Path(pydicom.__file__).parent / "data" / "test_files" / "SC_rgb_jpeg_gdcm.dcm"


@pytest.fixture
def item(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(picture(NOISE))
    return Entry(ItemRef("x.png"), files=(path,))


def marker_of(folder: Path) -> str:
    """Where a hooked process leaves a letter for each item."""
    return str(folder / "marker")


@pytest.fixture
def hook(tmp_path, monkeypatch):
    """Makes every decode process run a line of Python before each item."""
    marker = Path(marker_of(tmp_path))

    def install(action: str) -> Path:
        program = HOOKED.format(marker=str(marker), action=action)
        monkeypatch.setattr(decoders, "PROGRAM", program)
        return marker

    return install


def reason(pool: Decoders, entry: Entry) -> str:
    with pytest.raises(InputError) as caught:
        pool.decode(entry)
    assert caught.value.stage == "read_image"
    return caught.value.reason


def pids(pool: Decoders) -> list[int]:
    return [process._child.pid for process in pool._all if process._child is not None]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition) -> bool:
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


def samples() -> dict[str, bytes]:
    return {
        "grey.png": picture(NOISE),
        "colour.png": picture(COLOUR),
        "frames.dcm": dicom(np.stack([deep(), deep().T])),
        "volume.nii.gz": gzip.compress(nifti(volume())),
    }


def same(one, other) -> None:
    np.testing.assert_array_equal(one.frames, other.frames)
    assert one.frames.dtype == np.uint8
    assert one.frames.strides[-1] == other.frames.strides[-1], "grey stays one byte a pixel"
    assert one.frames.flags.writeable == other.frames.flags.writeable
    assert (one.digest, one.sources) == (other.digest, other.sources)
    facts, others = vars(one.grid).copy(), vars(other.grid).copy()
    np.testing.assert_array_equal(facts.pop("affine"), others.pop("affine"))
    assert facts == others


@pytest.mark.parametrize("keep", [False, True])
def test_a_process_gives_what_this_process_gives(tmp_path, keep):
    with Decoders(1) as pool:
        for name, data in samples().items():
            (tmp_path / name).write_bytes(data)
            expected = decode(data, keep=keep)
            assert expected.digest == hashlib.sha256(data).hexdigest()
            assert expected.sources == ((data,) if keep and name.endswith(".dcm") else ())
            same(pool.decode(Entry(ItemRef(name), files=(tmp_path / name,)), keep), expected)
            same(pool.decode(Entry(ItemRef(name), fetch=lambda d=data: d), keep), expected)


def test_jpeg_lossless_shows_what_an_uncompressed_copy_shows():
    plain = decode((LOSSLESS.parent / "SC_rgb_rle.dcm").read_bytes())
    with Decoders(1) as pool:
        found = pool.decode(Entry(ItemRef("x"), files=(LOSSLESS,)))
    np.testing.assert_array_equal(found.frames, plain.frames)


def test_large_pictures_cross_the_pipe(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2100, 1900, 3), np.uint8)
    data = picture(noise, "BMP")
    assert len(data) > 1 << 23
    with Decoders(1) as pool:
        found = pool.decode(Entry(ItemRef("x"), fetch=lambda: data))
    np.testing.assert_array_equal(found.frames[0], noise)


def test_errors_come_through(tmp_path, item):
    known = refuse("unsafe-name", "as listed")

    def fetch() -> bytes:
        raise refuse("permission", "no")

    with Decoders(1) as pool:
        assert reason(pool, Entry(ItemRef("a"), error=known)) == "unsafe-name"
        assert reason(pool, Entry(ItemRef("a"), fetch=fetch)) == "permission"
        assert reason(pool, Entry(ItemRef("a"), files=(tmp_path / "gone.png",))) == "vanished"
        assert reason(pool, Entry(ItemRef("a"), fetch=bytes)) == "empty"
        assert (
            reason(pool, Entry(ItemRef("a"), fetch=lambda: b"<html>" + bytes(90))) == "unreadable"
        )
        with pytest.raises(InputError, match="starts with 3c 68 74"):
            pool.decode(Entry(ItemRef("a"), fetch=lambda: b"<html>" + bytes(90)))
        pool.decode(item)
    with Decoders(1, Limits(max_pixels=20)) as pool:
        assert reason(pool, item) == "too-large"
    with pytest.raises(ConfigError, match="max_seconds=0"):
        Limits(max_seconds=0)


def test_threads_share_a_pool(tmp_path):
    pictures = {f"{k:03}.png": np.roll(NOISE, k) for k in range(120)}
    for name, pixels in pictures.items():
        (tmp_path / name).write_bytes(picture(pixels))
    with Decoders(2) as pool, ThreadPoolExecutor(5) as threads:
        entries = list(open_archive(tmp_path))
        for entry, found in zip(entries, threads.map(pool.decode, entries), strict=True):
            np.testing.assert_array_equal(found.frames[0, ..., 0], pictures[entry.ref.path])
        assert len(pids(pool)) == 2


def test_processes_start_with_the_first_item_and_are_kept(item):
    with Decoders(3) as pool:
        assert not pids(pool)
        pool.decode(item)
        (pid,) = pids(pool)
        pool.decode(item)
        assert pids(pool) == [pid]


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


def test_close_leaves_nothing_behind(item):
    pool = Decoders(2)
    with ThreadPoolExecutor(2) as threads:
        lossless = Entry(ItemRef("x"), files=(LOSSLESS,))
        list(threads.map(pool.decode, [lossless, lossless, item, item]))
    found = pids(pool)
    pool.close()
    assert wait_until(lambda: not any(map(alive, found))) and not pids(pool)
    with pytest.raises(BackendError, match="closed"):
        pool.decode(item)
    pool.close()


def test_close_does_not_wait_for_items(item, hook):
    marker = hook("time.sleep(3600)")
    pool = Decoders(1)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.decode, item)
        assert wait_until(marker.exists)
        started = time.monotonic()
        pool.close()
        with pytest.raises(BackendError, match="closed"):
            waiting.result(PATIENCE)
        assert time.monotonic() - started < PATIENCE


def test_the_processes_of_a_parent_that_was_killed_end(tmp_path):
    program = f"""
from medclipsam.engine.archive import Decoders, Entry
from medclipsam.engine.types import ItemRef
from pathlib import Path
import time
pool = Decoders(1)
pool.decode(Entry(ItemRef("x"), files=(Path({str(LOSSLESS)!r}),)))
print(pool._all[0]._child.pid, flush=True)
time.sleep(3600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        lived = alive(child)
        parent.kill()
    assert lived and wait_until(lambda: not alive(child))


def test_an_interrupt_from_the_keyboard_does_not_end_them(item):
    with Decoders(1) as pool:
        pool.decode(item)
        (pid,) = pids(pool)
        os.killpg(pid, signal.SIGINT)
        pool.decode(item)
        assert pids(pool) == [pid]


def test_what_is_loaded_in_them(item, hook, tmp_path):
    found = tmp_path / "modules"
    hook(f"open({str(found)!r}, 'w').write(' '.join(sys.modules))")
    with Decoders(1) as pool:
        pool.decode(item)
    loaded = {name.split(".")[0] for name in found.read_text().split()}
    assert "numpy" in loaded and not loaded & {"torch", "cv2", "gdcm", "pyarrow", "fsspec"}


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
