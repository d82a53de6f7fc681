"""Where a container's bytes are: in a local file here, elsewhere in ``remote``."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from medclipsam.engine.archive.files import open_file, translate

ReadAt = Callable[[int, int], bytes]


class Blob(Protocol):
    """The bytes of one container."""

    @property
    def path(self) -> str:
        """The container's own path below the archive's root."""

    @property
    def streamed(self) -> bool:
        """Whether members must be read in the order of the listing."""

    def open(self) -> BinaryIO:
        """The file from its start, or InputError."""

    def reading(self) -> AbstractContextManager[ReadAt]:
        """A function ``(offset, size) → bytes``, fewer at the file's end."""


@dataclass(frozen=True)
class LocalBlob:
    """A container in a file; any thread may read any part of it at any time."""

    path: str
    file: Path
    streamed: bool = False

    def open(self) -> BinaryIO:
        return open_file(self.file)

    @contextmanager
    def reading(self) -> Iterator[ReadAt]:
        with open_file(self.file) as file:
            handle = file.fileno()

            def read_at(offset: int, size: int) -> bytes:
                try:
                    return _read_whole(handle, offset, size)
                except OSError as exc:
                    raise translate(self.file, exc) from exc

            yield read_at


def _read_whole(handle: int, offset: int, size: int) -> bytes:
    """``size`` bytes, or fewer at the file's end; one call reads 2 GiB at most."""
    data = os.pread(handle, size, offset)
    while data and len(data) < size:
        more = os.pread(handle, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
