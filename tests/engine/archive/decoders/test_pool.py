"""Decode processes give what this process gives, are shared by threads, and end with the pool."""

import gzip
import hashlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from archives.decoding import LOSSLESS, PATIENCE, pids, reason, same, wait_until
from archives.drawn import COLOUR, NOISE, deep, dicom, nifti, picture, volume

from medclipsam.engine.archive import Decoders, Entry, Limits, decode, open_archive
from medclipsam.engine.archive.limits import refuse
from medclipsam.engine.errors import BackendError, ConfigError, InputError
from medclipsam.engine.types import ItemRef


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def samples() -> dict[str, bytes]:
    return {
        "grey.png": picture(NOISE),
        "colour.png": picture(COLOUR),
        "frames.dcm": dicom(np.stack([deep(), deep().T])),
        "volume.nii.gz": gzip.compress(nifti(volume())),
    }


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
