"""Files that are either whole and on disk, or not there at all.

Refuses to know what it writes. Readers never see a torn file: bytes go to a temporary name
on the same file system, are synced, renamed, and the folder is synced. A killed process
leaves its temporary files behind; ``remove_unfinished`` clears a folder of them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from medclipsam.engine.errors import OutputError

READABLE = 0o644
PREFIX = ".writing-"


def write_durable(path: Path, data: bytes, mode: int = READABLE) -> None:
    """Put ``data`` at ``path``, creating its folders.

    Raises:
        OutputError: the folder cannot be made or the bytes cannot be stored.
    """
    with durable_file(path, mode) as file:
        file.write(data)


def write_together(files: Sequence[tuple[Path, bytes]], scratch: Path) -> None:
    """Put several files at their paths; each folder is synced once, at the end.

    Args:
        scratch: folder of the temporary files, on the same file system.

    Raises:
        OutputError: as above; those already renamed stay, whole.
    """
    for path, data in files:
        with durable_file(path, sync=False, scratch=scratch) as file:
            file.write(data)
    for folder in dict.fromkeys(path.parent for path, _ in files):
        with _explained(folder):
            sync_folder(folder)


@contextmanager
def durable_file(
    path: Path, mode: int = READABLE, sync: bool = True, scratch: Path | None = None
) -> Iterator[IO[bytes]]:
    """A file to write to, which appears at ``path`` at the end, or not at all.

    Args:
        mode: permissions.
        sync: sync the folder too; without it the name may be lost in a power cut.
        scratch: folder of the temporary file, the same as ``path``'s by default.

    Raises:
        OutputError: the folder cannot be made or the bytes cannot be stored.
    """
    temporary = ""
    try:
        with _explained(path):
            make_folder(path.parent)
            handle, temporary = tempfile.mkstemp(prefix=PREFIX, dir=scratch or path.parent)
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, path)
            if sync:
                sync_folder(path.parent)
    except BaseException:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise OutputError(
            f"cannot write {path}: {exc.strerror or exc}. "
            "Free space or choose another output folder, then run the same command again."
        ) from exc


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process was writing directly into ``folder``."""
    with _explained(folder):
        for path in folder.glob(f"{PREFIX}*"):
            path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create ``folder`` and those above it, so that they survive a power cut.

    Raises:
        OutputError: it cannot be made.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with _explained(folder):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut (a no-op where unsupported)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
