"""From an item to its picture, whatever the file turns out to be.

The reader is chosen by magic bytes, never by suffix. Whatever is wrong with a file
comes out as InputError with a stable reason; anything else is a bug.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from medclipsam.engine.archive.dicom import is_dicom, read_dicom
from medclipsam.engine.archive.limits import DEFAULT_LIMITS, Limits, refuse
from medclipsam.engine.archive.nifti import is_nifti, read_nifti
from medclipsam.engine.archive.raster import raster_kind, read_raster
from medclipsam.engine.errors import InputError
from medclipsam.engine.types import Image, ItemRef

GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
DENIED = (errno.EACCES, errno.EPERM)


def read_image(root: Path, ref: ItemRef, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Read and decode one item of the archive at ``root`` (a folder, or one file).

    Raises:
        InputError: with stage ``read_image``, whenever the file cannot be used.
    """
    data = read_file(locate(root, ref), limits)
    if is_dicom(data):
        frames, grid = read_dicom(data, limits)
    elif is_nifti(data):
        frames, grid = read_nifti(data, limits)
    elif raster_kind(data):
        frames, grid = read_raster(data, limits)
    else:
        raise refuse(
            "unreadable",
            "expected PNG, JPEG, TIFF, BMP, DICOM or NIfTI, got a file that starts with "
            f"{data[:8].hex(' ')}",
        )
    return Image(ref, frames, grid)


def locate(root: Path, ref: ItemRef) -> Path:
    """Where the item's file is; a root that is one file is the item itself."""
    root = Path(root)
    return root / ref.path if root.is_dir() else root


def read_file(path: Path, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """All bytes of a regular file, through a single open that never blocks on a pipe."""
    try:
        _check_kind(path, os.stat(path).st_mode)
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            facts = os.fstat(handle)
            _check_kind(path, facts.st_mode)
            limits.check_bytes(facts.st_size)
            data = file.read(facts.st_size)
    except OSError as exc:
        raise _translate(path, exc) from exc
    if not data:
        raise refuse("empty", "expected an image, got a file of 0 bytes")
    if len(data) < facts.st_size:
        raise refuse(
            "truncated",
            f"expected {facts.st_size} bytes, got {len(data)}: the file shrank while it was read",
        )
    return data


def _check_kind(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        if not os.access(path, os.R_OK | os.X_OK):
            raise refuse("permission", "this folder may not be opened; grant access to it")
        raise refuse("not-a-file", "expected a regular file, got a folder")
    raise refuse("not-a-file", "expected a regular file, got a pipe, socket or device")


def _translate(path: Path, exc: OSError) -> InputError:
    if exc.errno == errno.ELOOP or (exc.errno in GONE and os.path.islink(path)):
        return refuse("not-a-file", "expected a regular file, got a link that leads nowhere")
    if exc.errno in GONE:
        return refuse("vanished", "the file was there when it was listed and is gone now")
    if exc.errno in DENIED:
        return refuse("permission", "the file may not be read; grant access to it")
    if exc.errno in (errno.ENXIO, errno.ENODEV):
        return refuse("not-a-file", "expected a regular file, got a socket or device")
    return refuse("unreadable", f"the file cannot be read: {exc.strerror}")
