"""Files are whole or not there, whichever system call fails."""

import errno
import os
import resource
import stat

import pytest

from medclipsam.engine.durable import sync_folder, write_durable
from medclipsam.engine.errors import OutputError

OLD, NEW = b"old content", os.urandom(300_000)


class FullDisk:
    """A file object that stores half of what it is given and then fails."""

    def __init__(self, file, error):
        self.file, self.error = file, error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        raise OSError(self.error, os.strerror(self.error))


def break_write(monkeypatch, error):
    real = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda *args: FullDisk(real(*args), error))


def break_call(name):
    def breaker(monkeypatch, error):
        def fail(*_, **__):
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(os, name, fail)

    return breaker


STEPS = {
    "write": break_write,
    "fsync": break_call("fsync"),
    "chmod": break_call("chmod"),
    "rename": break_call("replace"),
}


@pytest.mark.parametrize("old", [None, OLD])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_leaves_the_old_and_nothing_else(tmp_path, monkeypatch, step, error, old):
    path = tmp_path / "mask.png"
    if old is not None:
        path.write_bytes(old)
    with monkeypatch.context() as broken:
        STEPS[step](broken, error)
        with pytest.raises(OutputError, match="same command again") as caught:
            write_durable(path, NEW)
    assert str(path) in str(caught.value) and os.strerror(error) in str(caught.value)
    assert caught.value.__cause__.errno == error
    assert [p.name for p in tmp_path.iterdir()] == ([] if old is None else ["mask.png"])
    assert old is None or path.read_bytes() == old
    write_durable(path, NEW)  # once there is space, the same call works
    assert path.read_bytes() == NEW


def test_a_file_size_limit_is_an_error_of_output(tmp_path):
    """The kernel itself refuses in the middle of the bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "mask.png"
    path.write_bytes(OLD)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(NEW) // 2, before[1]))
        with pytest.raises(OutputError, match="File too large"):
            write_durable(path, NEW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["mask.png"] and path.read_bytes() == OLD


def test_a_folder_that_cannot_be_synced_is_reported(tmp_path, monkeypatch):
    """The rename has happened: what readers see is the whole new file."""
    real = os.fsync
    calls = []

    def fsync(handle):
        calls.append(stat.S_ISDIR(os.fstat(handle).st_mode))
        if calls[-1]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(handle)

    path = tmp_path / "mask.png"
    path.write_bytes(OLD)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError):
        write_durable(path, NEW)
    assert calls == [False, True]  # the file first, then its folder
    assert [p.name for p in tmp_path.iterdir()] == ["mask.png"] and path.read_bytes() == NEW


def test_bytes_are_synced_before_they_get_their_name(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, real=real, name=name: (order.append(name), real(*args))[1]
        )
    write_durable(tmp_path / "a", NEW)
    assert order == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("data", [b"", b"x", NEW])
def test_folders_are_made_and_files_are_readable(tmp_path, data):
    path = tmp_path / "a" / "ü b" / "mask.png"
    write_durable(path, data)
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]
    sync_folder(path.parent)


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "a").write_bytes(OLD)
    with pytest.raises(OutputError, match="cannot write"):
        write_durable(tmp_path / "a" / "mask.png", NEW)
    assert (tmp_path / "a").read_bytes() == OLD


def test_a_folder_in_the_way_of_a_file_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_durable(tmp_path / "a", NEW)
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and not any((tmp_path / "a").iterdir())
