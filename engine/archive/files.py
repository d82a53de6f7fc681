"""Bytes of local files, through opens that never block, and what went wrong with them."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from medclipsam.engine.archive.kinds import MAGIC_END
from medclipsam.engine.archive.limits import DEFAULT_LIMITS, Limits, refuse
from medclipsam.engine.archive.readers.dicom.file import is_dicom
from medclipsam.engine.errors import BackendError, InputError

GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
DENIED = (errno.EACCES, errno.EPERM)
# What no file is to blame for: the machine is short of something, or storage does not answer.
MACHINE = (
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS),
    *(errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNREFUSED),
)


def read_file(path: Path, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """All bytes of a regular file."""
    with open_file(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            limits.check_bytes(size)
            data = file.read(size)
        except OSError as exc:
            raise translate(path, exc) from exc
    if not data:
        raise refuse("empty", "expected an image, got a file of 0 bytes")
    if len(data) < size:
        raise refuse(
            "truncated",
            f"expected {size} bytes, got {len(data)}: the file shrank while it was read",
        )
    return data


def open_file(path: Path) -> BinaryIO:
    """Open a regular file, through a single open that never blocks on a pipe."""
    try:
        _check_kind(path, os.stat(path).st_mode)
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as exc:
        raise translate(path, exc) from exc
    except ValueError as exc:  # a NUL in a list's row
        raise refuse("vanished", "no file can have a name with a NUL in it") from exc
    try:
        _check_kind(path, os.fstat(handle).st_mode)
    except BaseException:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def _check_kind(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        if not os.access(path, os.R_OK | os.X_OK):
            raise refuse("permission", "this folder may not be opened; grant access to it")
        raise refuse("not-a-file", "expected a regular file, got a folder")
    raise refuse("not-a-file", "expected a regular file, got a pipe, socket or device")


def translate(path: Path, exc: OSError) -> InputError:
    """What an operating system's error means for the item at ``path``.

    Raises:
        BackendError: nothing: the machine or its storage broke.
    """
    refuse_away(exc)
    if exc.errno == errno.ELOOP or (exc.errno in GONE and os.path.islink(path)):
        return refuse("not-a-file", "expected a regular file, got a link that leads nowhere")
    if exc.errno in GONE:
        return refuse("vanished", "the file was there when it was listed and is gone now")
    if exc.errno in DENIED:
        return refuse("permission", "the file may not be read; grant access to it")
    if exc.errno in (errno.ENXIO, errno.ENODEV):
        return refuse("not-a-file", "expected a regular file, got a socket or device")
    return refuse("unreadable", f"the file cannot be read: {exc.strerror}")


def is_away(exc: BaseException | None) -> bool:
    """Whether ``exc``, or what it was raised from, says that storage does not answer, or that
    the machine is short of something. (fsspec calls a server that is down a missing file.)"""
    while exc is not None:
        if isinstance(exc, OSError) and exc.errno in MACHINE:
            return True
        exc = exc.__cause__
    return False


def refuse_away(exc: Exception) -> None:
    """Raise what is no fault of a file; return otherwise.

    Raises:
        BackendError: the machine is short of something, or the storage does not answer.
    """
    if is_away(exc):
        said = getattr(exc, "strerror", "") or exc
        raise BackendError(
            f"cannot read the archive ({said}); see to the storage or the limits of this machine, "
            "then run the same command again"
        ) from exc


def read_start(path: Path, size: int) -> bytes:
    """The first bytes of a file; none where it cannot be read or is not regular."""
    try:
        with open_file(path) as file:
            return file.read(size)
    except (OSError, InputError):
        return b""


def has_magic(path: Path) -> bool:
    """Whether a regular file begins as DICOM does."""
    return is_dicom(read_start(path, MAGIC_END))
