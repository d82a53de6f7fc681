"""Samples in a file without a name, which the system pages in and out: their number is bounded
by the disk, not by memory. Refuses to know what they show."""

import tempfile
from pathlib import Path
from typing import IO

import numpy as np

from medclipsam.engine.errors import OutputError


class Spool:
    """An array that grows row by row in a file without a name.

    Args:
        shape: of a row of uint8.
        folder: on whose file system.
    """

    def __init__(self, shape: tuple[int, ...], folder: Path | None = None):
        self._shape, self._rows = shape, 0
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        except OSError as exc:
            raise self._failure(exc) from exc

    def add(self, row: np.ndarray) -> None:
        """Raises OutputError where the disk is full."""
        try:
            self._file.write(np.ascontiguousarray(row, np.uint8).tobytes())
        except OSError as exc:
            raise self._failure(exc) from exc
        self._rows += 1

    def close(self) -> np.ndarray:
        """All rows, read-only; the file lives as long as they do."""
        if not self._rows:
            self._file.close()
            return np.zeros((0, *self._shape), np.uint8)
        try:
            self._file.flush()
        except OSError as exc:
            raise self._failure(exc) from exc
        with self._file as file:
            return np.memmap(file, np.uint8, "r", shape=(self._rows, *self._shape))

    def _failure(self, exc: OSError) -> OutputError:
        return OutputError(
            f"cannot store the samples to train on: {exc.strerror}; free space beside the output "
            "folder, or lower --image-size"
        )
