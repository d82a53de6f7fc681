"""Members of zip files, in the order of the central directory.

Only stored and deflated members are read: the other methods cannot be inflated under a
limit. What a member claims to inflate to is a limit, never a promise.
"""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from typing import IO

from medclipsam.engine.archive.containers.blob import Blob
from medclipsam.engine.archive.containers.members import Member
from medclipsam.engine.archive.containers.zipdirectory import LOCAL_MAGIC, Record, read_directory
from medclipsam.engine.archive.kinds import MAGIC_END
from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.errors import InputError

LOCAL_BYTES = 30
ENCRYPTED = 1
PROBE = 1 << 10  # compressed bytes that surely inflate to a DICOM preamble


def zip_members(file: IO[bytes], blob: Blob, limits: Limits) -> Iterator[Member]:
    """The files of a zip file.

    Raises:
        InputError: its directory, at its end, is damaged or cut off.
    """
    for record in read_directory(file):
        if not record.name.endswith("/"):
            start, read = partial(_start, blob, record), partial(_read, blob, record, limits)
            yield Member(record.name, record.size, start, read, _judge(record), blob.streamed)


def _judge(record: Record) -> InputError | None:
    mode = stat.S_IFMT(record.mode)
    if mode and not stat.S_ISREG(mode):
        return refuse("not-a-file", "expected a regular file, got a link, device or pipe")
    if record.flags & ENCRYPTED:
        return refuse("unsupported", "the member is encrypted; store it without a password")
    if record.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return refuse(
            "unsupported",
            f"expected a stored or deflated member, got zip method {record.method}",
        )
    return None


def _start(blob: Blob, record: Record) -> bytes:
    """The first bytes of a member; none where it is damaged."""
    try:
        return _inflate(_packed(blob, record, PROBE), record, MAGIC_END)
    except (InputError, zlib.error):
        return b""


def _read(blob: Blob, record: Record, limits: Limits) -> bytes:
    """All of a member, checked against its length and checksum; from any thread."""
    limits.check_bytes(max(record.packed, record.size))
    try:
        data = _inflate(_packed(blob, record, record.packed), record, record.size + 1)
    except zlib.error as exc:
        raise refuse("unreadable", "expected a deflated member, got damaged content") from exc
    if len(data) > record.size:
        raise refuse("too-large", f"the member inflates to more than its {record.size} bytes")
    if len(data) < record.size:
        message = f"expected a member of {record.size} bytes, got {len(data)}"
        raise refuse("truncated", message)
    if zlib.crc32(data) != record.crc:
        raise refuse("unreadable", "expected an intact member, got a checksum that differs")
    return data


def _packed(blob: Blob, record: Record, limit: int) -> bytes:
    """The bytes of a member as stored, ``limit`` of them at most."""
    with blob.reading() as read_at:
        head = read_at(record.offset, LOCAL_BYTES)
        if len(head) < LOCAL_BYTES or not head.startswith(LOCAL_MAGIC):
            raise refuse("unreadable", "expected the header of a zip member, got other data")
        name, extra = struct.unpack_from("<2H", head, 26)
        offset = record.offset + LOCAL_BYTES + name + extra
        return read_at(offset, min(limit, record.packed))


def _inflate(packed: bytes, record: Record, limit: int) -> bytes:
    if record.method == zipfile.ZIP_STORED:
        return packed[:limit]
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, limit)
