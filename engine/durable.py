"""Files and folders that are either whole and on disk, or not there at all; and locks.

Refuses to know what it writes. Readers never see a torn file: bytes go to a temporary name
on the same file system, are synced, renamed, and the folder is synced. A killed process
leaves its temporary files behind; ``remove_unfinished`` clears a folder of them.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from medclipsam.engine.errors import ConfigError, OutputError

READABLE = 0o644
PREFIX = ".writing-"
GROWING, OLD = ".growing-", ".replaced-"


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


class GrowingFolder:
    """A folder that grows under a hidden name beside ``target`` and appears there whole.

    Killed before it is published, its target is as it was. Only a folder that replaces an
    older one is missing for the moment between two renames. What a killed predecessor left
    goes first.

    Raises:
        OutputError: it cannot be made.
    """

    def __init__(self, target: Path):
        self.target = target
        self.path = target.with_name(GROWING + target.name)
        self._old = target.with_name(OLD + target.name)
        self.discard()
        with _explained(target):
            self.path.mkdir(parents=True)

    def write(self, relative: str, data: bytes) -> None:
        """Put a new file into the growing folder.

        Raises:
            OutputError: the disk is full.
        """
        path = self.path / relative
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(data)

    def publish(self) -> None:
        """Put the folder, as it is now and with its bytes on the disk, in the target's place.

        Raises:
            OutputError: it cannot be renamed.
        """
        with _explained(self.target):
            for folder, _, names in os.walk(self.path, topdown=False):
                for name in names:
                    with Path(folder, name).open("rb") as file:
                        os.fsync(file.fileno())
                sync_folder(Path(folder))
            if self.target.exists():
                os.replace(self.target, self._old)
            os.replace(self.path, self.target)
            sync_folder(self.target.parent)
        self.discard()

    def discard(self) -> None:
        """Remove what is not published, and what was replaced."""
        with _explained(self.target):
            for leftover in (self.path, self._old):
                if leftover.exists():
                    shutil.rmtree(leftover)


@contextmanager
def growing_folder(target: Path) -> Iterator[GrowingFolder]:
    """A folder to fill, which appears at ``target`` at the end, or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    growing = GrowingFolder(target)
    try:
        with _explained(target):
            yield growing
        growing.publish()
    finally:
        growing.discard()


def take_lock(path: Path, taken: str) -> FileLock:
    """The lock file ``path``, held by this process until its ``release()``.

    Args:
        taken: what is said where another process holds it.

    Raises:
        ConfigError: another process holds it.
        OutputError: it cannot be made.
    """
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as exc:
        raise ConfigError(taken) from exc
    except OSError as exc:
        raise OutputError(f"cannot write {path}: {exc.strerror or exc}") from exc
    return lock
