"""A folder that grows under a hidden name and appears whole.

Killed before it is published, its target is as it was. Only a folder that replaces an
older one is missing for the moment between two renames.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medclipsam.engine.durable import sync_folder
from medclipsam.engine.errors import OutputError

GROWING, OLD = ".collecting-", ".replaced-"


class Staging:
    """A growing folder beside ``target``; what a killed predecessor left goes first.

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
        """Put a new file into the growing folder, and its bytes on the disk.

        Raises:
            OutputError: the disk is full.
        """
        path = self.path / relative
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

    def publish(self) -> None:
        """Put the folder, as it is now, in the target's place.

        Raises:
            OutputError: it cannot be renamed.
        """
        with _explained(self.target):
            for folder, _, _ in os.walk(self.path, topdown=False):
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
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise OutputError(
            f"cannot write {path}: {exc.strerror or exc}. Free space, then run the same "
            "command again."
        ) from exc
