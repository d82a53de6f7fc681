"""Objects behind a URL, read through fsspec.

Read-only and without memory of what was listed. A failure that may pass by itself is
waited for and tried again; what remains comes out as InputError.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from medclipsam.engine.archive.containers.blob import ReadAt
from medclipsam.engine.archive.files import is_away, refuse_away
from medclipsam.engine.archive.kinds import MAGIC_END
from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.archive.readers.dicom.file import is_dicom
from medclipsam.engine.errors import ConfigError, InputError

PAUSES = (0.5, 1.0, 2.0)  # seconds before each further attempt
PIECE = 1 << 22  # bytes of an object of unknown size at a time
DENIED = (401, 403)  # HTTP status
T = TypeVar("T")


@dataclass(frozen=True)
class Object:
    """What a folder holds: a folder or an object of ``size`` bytes, 0 if not told."""

    name: str
    path: str
    size: int
    is_folder: bool


def connect(urls: Sequence[str]) -> tuple[Store, list[str]]:
    """The store that URLs of one protocol lead to, and their paths in it.

    Raises:
        ConfigError: no such protocol, or the package that it needs is missing.
    """
    from fsspec.core import url_to_fs

    scheme = urls[0].partition("://")[0]
    try:
        found = [url_to_fs(url, use_listings_cache=False) for url in urls]
    except ImportError as exc:
        raise ConfigError(f"{scheme}:// needs a package that is not installed: {exc}") from exc
    except ValueError as exc:
        raise ConfigError(f"{scheme}:// is no kind of URL that can be read: {exc}") from exc
    return Store(found[0][0]), [path for _, path in found]


class Store:
    """A file system of fsspec's, reduced to reading."""

    def __init__(self, fs: Any):
        self._fs = fs
        self._web = "http" in fs.protocol

    def list(self, folder: str) -> list[Object]:
        """What a folder holds, by name."""
        own = folder.rstrip("/")
        found = []
        for entry in _patiently(lambda: self._fs.ls(folder, detail=True)):
            path = entry["name"].rstrip("/")
            parent, _, name = path.rpartition("/")
            if name and parent == own:
                is_folder = entry.get("type") == "directory"
                found.append(Object(name, path, int(entry.get("size") or 0), is_folder))
        return sorted(found, key=lambda entry: entry.name)

    def size(self, path: str) -> int:
        """Bytes of an object, 0 if not told."""
        return int(_patiently(lambda: self._fs.info(path)).get("size") or 0)

    def has_magic(self, path: str) -> bool:
        """Whether an object begins as DICOM does."""
        try:
            start = _patiently(lambda: self._fs.cat_file(path, start=0, end=MAGIC_END))
        except InputError:
            return False
        return is_dicom(bytes(start))

    def fetch(self, path: str, size: int, limits: Limits) -> bytes:
        """All of an object, from any thread."""
        limits.check_bytes(size)
        if not size:
            return _patiently(lambda: self._read_unsized(path, limits))
        data = bytes(_patiently(lambda: self._fs.cat_file(path)))
        limits.check_bytes(len(data))
        if len(data) < size:
            raise refuse("truncated", f"expected {size} bytes, got {len(data)}")
        return data

    def open(self, path: str, ahead: bool = True) -> RemoteFile:
        """An object to be read, only from front to back or also in parts."""
        # Of the web in one request, because not every server gives parts.
        options = {"block_size": 0} if ahead and self._web else {}
        return RemoteFile(_patiently(lambda: self._fs.open(path, "rb", **options)))

    def _read_unsized(self, path: str, limits: Limits) -> bytes:
        data = bytearray()
        with self._fs.open(path, "rb") as file:
            while part := file.read(PIECE):
                data += part
                limits.check_bytes(len(data))
        return bytes(data)


class RemoteFile:
    """An open object that tries again, and goes ahead where a server gives no parts."""

    def __init__(self, file: Any):
        self._file = file
        self._position = 0
        self._head = self._again = b""

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def read(self, size: int = -1) -> bytes:
        again, self._again = self._again, b""
        data = again + self._read(max(size - len(again), 0) if size >= 0 else size)
        if self._position == 0:
            self._head = data[:2]
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            self._position = self._file.seek(offset, whence)
        except (ValueError, OSError) as exc:
            if whence or not self._go_to(offset):
                raise _only_whole() from exc
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()

    def _go_to(self, offset: int) -> bool:
        """Pass over bytes, or go back over the first two."""
        if offset == 0 and self._position == len(self._head):
            self._again, self._position = self._head, 0
        while self._position < offset and self.read(min(PIECE, offset - self._position)):
            continue
        return self._position == offset

    def _read(self, size: int) -> bytes:
        """Whole reads out of those that give what is there at the moment."""
        pieces = [self._piece(self._position, size)]
        got = len(pieces[0])
        while pieces[-1] and got < size:
            pieces.append(self._piece(self._position + got, size - got))
            got += len(pieces[-1])
        return b"".join(pieces)

    def _piece(self, start: int, size: int) -> bytes:
        tried = False

        def attempt() -> bytes:
            nonlocal tried
            if tried:
                self._file.seek(start)
            tried = True
            return bytes(self._file.read(size))

        return _patiently(attempt)


class RemoteBlob:
    """A container behind a URL, whose bytes pass once."""

    streamed = True

    def __init__(self, path: str, store: Store, location: str):
        self.path = path
        self._store, self._location = store, location
        self._file: RemoteFile | None = None

    def open(self) -> BinaryIO:
        self._file = self._store.open(self._location, ahead=not self.path.lower().endswith(".zip"))
        return self._file  # type: ignore[return-value]

    @contextmanager
    def reading(self) -> Iterator[ReadAt]:
        file = self._file
        if file is None:
            raise RuntimeError("the container is not open")

        def read_at(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        yield read_at


def _patiently(action: Callable[[], T]) -> T:
    """What ``action`` gives, at the fourth attempt if need be.

    Raises:
        InputError: the object cannot be had.
        BackendError: its server cannot be reached.
    """
    for pause in (*PAUSES, None):
        try:
            return action()
        except InputError:
            raise
        except Exception as exc:  # every protocol has errors of its own
            error, lasting = _judge(exc)
            if pause is None or (lasting and not is_away(exc)):
                refuse_away(exc)
                raise error from exc
            time.sleep(pause)
    raise AssertionError("unreachable")


def _judge(exc: Exception) -> tuple[InputError, bool]:
    """What an error means, and whether trying again is of no use."""
    if isinstance(exc, FileNotFoundError):
        return refuse("vanished", "the object is not there, or is there no more"), True
    if isinstance(exc, PermissionError) or getattr(exc, "status", None) in DENIED:
        return refuse("permission", "the object may not be read; grant access to it"), True
    if isinstance(exc, ValueError):  # fsspec's word for it
        return _only_whole(), True
    return refuse("unreadable", f"the object cannot be read ({type(exc).__name__})"), False


def _only_whole() -> InputError:
    return refuse(
        "unsupported", "the server gives a file only as a whole; download the container first"
    )
