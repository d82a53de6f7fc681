"""Members of tar files, plain or gzipped, one after the other.

A file may be several tar files joined, as ``cat a.tar b.tar`` makes it: each is read.

Headers are walked here rather than by ``tarfile``, which takes a damaged header for the
end of the archive, keeps every header, and reads extended ones of any size at once.
"""

import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO

from medclipsam.engine.archive.containers.blob import Blob
from medclipsam.engine.archive.containers.members import Member
from medclipsam.engine.archive.containers.stream import GzipStream, Stream
from medclipsam.engine.archive.kinds import MAGIC_END
from medclipsam.engine.archive.limits import refuse
from medclipsam.engine.errors import InputError

BLOCK = 512
EXTENDED = 1 << 20  # bytes of a long name or of PAX records
LONG_NAME, LONG_LINK, PAX, GLOBAL_PAX = b"L", b"K", (b"x", b"X"), b"g"
REGULAR = (b"0", b"\0", b"7")
NO_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
FOLDER, SPARSE = b"5", b"S"
MAGIC, MAGIC_AT = b"ustar", 257
PIECE = 1 << 20  # bytes searched at a time behind an end mark
RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")


@dataclass(frozen=True)
class Header:
    """One entry of a tar file: ``offset`` is where its data begins."""

    name: str
    type: bytes
    size: int
    offset: int
    sparse: bool

    @property
    def end(self) -> int:
        data = 0 if self.type in NO_DATA else self.size
        return self.offset + -(-data // BLOCK) * BLOCK


def tar_members(file: IO[bytes], blob: Blob, zipped: bool) -> Iterator[Member]:
    """The files, links and devices of a tar file, in its order.

    Raises:
        InputError: the tar file is damaged or ends early, after all members before that.
    """
    stream = GzipStream(file) if zipped else Stream(file)
    for header in _headers(stream):
        if header.type == FOLDER:
            continue
        error = _judge(header)
        if error is not None:
            yield Member(header.name, header.size, bytes, bytes, error)
        elif zipped or blob.streamed:
            body = _Body(stream, header)
            yield Member(header.name, header.size, body.start, body.fetch, streamed=True)
            body.passed = True
        else:
            read = partial(_read_part, blob, header)
            yield Member(header.name, header.size, partial(read, MAGIC_END), read)


def _judge(header: Header) -> InputError | None:
    if header.sparse:
        return refuse("unsupported", "expected a plain tar member, got a sparse one")
    if header.type not in REGULAR:
        return refuse("not-a-file", "expected a regular file, got a link, device or pipe")
    return None


def _read_part(blob: Blob, header: Header, limit: int | None = None) -> bytes:
    """A member of a plain tar file, or its first ``limit`` bytes; from any thread."""
    size = header.size if limit is None else min(limit, header.size)
    with blob.reading() as read_at:
        data = read_at(header.offset, size)
    return _whole(data, size)


def _whole(data: bytes, size: int) -> bytes:
    if len(data) < size:
        raise refuse("truncated", f"expected a member of {size} bytes, got {len(data)}")
    return data


class _Body:
    """The bytes of one member while they pass."""

    def __init__(self, stream: Stream, header: Header):
        self.passed = False
        self._stream, self._size = stream, header.size
        self._start = b""

    def start(self) -> bytes:
        if not self._start:
            size = min(MAGIC_END, self._size)
            self._start = _whole(self._stream.read(size), size)
        return self._start

    def fetch(self) -> bytes:
        if self.passed:
            raise RuntimeError("a streamed member was fetched after the listing went on")
        rest = self._size - len(self._start)
        return self._start + _whole(self._stream.read(rest), rest)


def _headers(stream: Stream) -> Iterator[Header]:
    defaults: dict[str, str] = {}
    own: dict[str, str] = {}
    block = _next_block(stream)
    while block:
        if not block.strip(b"\0"):
            block, defaults, own = _behind_end(stream), {}, {}
            continue
        info = _parse_header(block, stream)
        if info.type in (LONG_NAME, LONG_LINK, GLOBAL_PAX, *PAX):
            payload = _payload(stream, info)
            if info.type == LONG_NAME:
                own["path"] = _text(payload.split(b"\0")[0])
            elif info.type == GLOBAL_PAX:
                defaults |= _records(payload)
            elif info.type in PAX:
                own |= _records(payload)
        else:
            header = _merge(info, stream, {**defaults, **own})
            yield header
            stream.skip_to(header.end)
            own = {}
        block = _next_block(stream)


def _next_block(stream: Stream) -> bytes:
    """The next header, or the zeros that mark an end."""
    block = stream.read(BLOCK)
    if stream.position == 0:
        raise refuse("empty", "expected a tar file, got 0 bytes")
    if len(block) < BLOCK:
        raise refuse("truncated", f"expected an end mark, got the end at byte {stream.position}")
    return block


def _behind_end(stream: Stream) -> bytes:
    """The first header of the tar file that follows an end mark; nothing where none does.

    Zeros fill up a tar file. Other bytes that are no header are nobody's members, but a tar
    file somewhere behind them is one whose beginning is damaged.
    """
    block = stream.read(BLOCK)
    while len(block) == BLOCK and not block.strip(b"\0"):
        block = stream.read(BLOCK)
    if len(block) == BLOCK and (_is_header(block) or block.startswith(MAGIC, MAGIC_AT)):
        return block
    at, kept = stream.position - len(block), block
    while kept:
        for found in re.finditer(MAGIC, kept):
            start = found.start() - MAGIC_AT
            if start >= 0 and _is_header(kept[start : start + BLOCK]):
                raise refuse(
                    "unreadable",
                    f"expected a tar file behind the end mark before byte {at}, got other data "
                    "and then a tar header; repair the container",
                )
        more = stream.read(PIECE)
        kept = kept[-BLOCK:] + more if more else b""
    return b""


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _parse_header(block: bytes, stream: Stream) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as exc:
        at = stream.position - BLOCK
        raise refuse("unreadable", f"expected a tar header at byte {at}, got other data") from exc
    _check_size(info.size)
    return info


def _check_size(size: int) -> int:
    if size < 0:
        raise refuse("unreadable", f"expected the size of a tar member, got {size}")
    return size


def _payload(stream: Stream, info: tarfile.TarInfo) -> bytes:
    """The data of a header that describes the next one."""
    if info.size > EXTENDED:
        raise refuse("unreadable", f"expected a tar header, got one of {info.size} bytes")
    data = stream.read(-(-info.size // BLOCK) * BLOCK)
    return _whole(data, info.size)[: info.size]


def _records(payload: bytes) -> dict[str, str]:
    """``length key=value`` lines of a PAX header."""
    found, at = {}, 0
    while at < len(payload) and payload[at]:
        match = RECORD.match(payload, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(payload):
            raise refuse("unreadable", "expected PAX records in a tar header, got other data")
        found[_text(match[2])] = _text(payload[match.end() : end - 1])
        at = end
    return found


def _merge(info: tarfile.TarInfo, stream: Stream, records: dict[str, str]) -> Header:
    """The header with what came before it: its name, its size, its kind."""
    sparse = info.type == SPARSE or any(key.startswith("GNU.sparse") for key in records)
    if info.type == SPARSE:
        more = bool(info._sparse_structs[1])  # type: ignore[attr-defined]
        while more:
            block = _whole(stream.read(BLOCK), BLOCK)
            more = bool(block[504])
    try:
        size = _check_size(int(records.get("size", info.size)))
    except ValueError as exc:
        raise refuse("unreadable", "expected the size of a tar member, got a text") from exc
    name = records.get("GNU.sparse.name") or records.get("path", info.name)
    kind = FOLDER if info.type == b"\0" and name.endswith("/") else info.type
    return Header(name, kind, size, stream.position, sparse)


_text: Callable[[bytes], str] = partial(str, encoding="utf-8", errors="surrogateescape")
