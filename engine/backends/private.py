"""Files that only this user can have written, for what runs as code when it is read."""

import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medclipsam.engine.durable import make_folder, write_durable
from medclipsam.engine.errors import BackendError
from medclipsam.engine.jit import is_private

log = logging.getLogger(__name__)

PRIVATE = 0o600
REMEDY = "give it mode 700, or set MEDCLIPSAM_HOME to a folder of your own"


class NotPrivate(Exception):
    """Why a file's content is not to be trusted."""


def make_private(root: Path, folder: Path) -> None:
    """Create ``folder`` at or below ``root``, both and all between for this user alone.

    Raises:
        BackendError: one cannot be made, or others may write to it.
    """
    make_folder(root.parent)
    for part in _between(root, folder):
        try:
            part.mkdir(mode=0o700, exist_ok=True)
        except OSError as exc:
            raise BackendError(
                f"cannot make {part} ({exc.strerror}); set MEDCLIPSAM_HOME to a folder of your own"
            ) from exc
    require_private(root, folder)


def require_private(root: Path, folder: Path) -> None:
    """Refuse folders from ``root`` to ``folder`` that others own or may write to.

    Raises:
        BackendError: names the first of them.
    """
    for part in _between(root, folder):
        if not is_private(part):
            raise BackendError(
                f"{part} belongs to somebody else or others may write to it, and what lies there "
                f"runs as code: {REMEDY}"
            )


def _between(root: Path, folder: Path) -> list[Path]:
    return [p for p in reversed((folder, *folder.parents)) if p.is_relative_to(root)]


def read_private(path: Path) -> bytes:
    """A plain file that this user owns and nobody else can write to.

    Raises:
        NotPrivate: it is another kind of file, or others own it or may write to it.
        FileNotFoundError: it is not there.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise NotPrivate(f"{path.name} cannot be opened ({exc.strerror})") from exc
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise NotPrivate(f"{path.name} is not a plain file of this user")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise NotPrivate(f"others may write to {path.name}")
        return file.read()


def write_private(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, durably, readable by this user only.

    Raises:
        OutputError: it cannot be stored.
    """
    write_durable(path, data, PRIVATE)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, which is made if need be; waits for whoever has it."""
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, PRIVATE), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process, which holds %s", path)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
