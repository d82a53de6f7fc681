"""Files that are either whole and on disk, or not there at all.

Refuses to know what it writes. Readers never see a torn file: bytes go to a
temporary name in the same folder, are synced, renamed, and the folder is synced.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from medclipsam.engine.errors import OutputError


def write_durable(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, creating its folders.

    Raises:
        OutputError: the folder cannot be made or the bytes cannot be stored.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as exc:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise OutputError(
            f"cannot write {path}: {exc.strerror or exc}. "
            "Free space or choose another output folder, then run the same command again."
        ) from exc


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut (a no-op where unsupported)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
