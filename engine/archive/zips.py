"""Members of zip files, in the order of the central directory.

Only stored and deflated members are read: the other methods cannot be inflated under a
limit. What a member claims to inflate to is a limit, never a promise.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from typing import IO

from medclipsam.engine.archive.blob import Blob
from medclipsam.engine.archive.kinds import MAGIC_END
from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.archive.members import Member
from medclipsam.engine.errors import InputError

LOCAL_MAGIC = b"PK\3\4"
LOCAL_BYTES = 30
ENCRYPTED = 1
PROBE = 1 << 10  # compressed bytes that surely inflate to a DICOM preamble


def zip_members(file: IO[bytes], blob: Blob, limits: Limits) -> Iterator[Member]:
    """The files of a zip file.

    Raises:
        InputError: its directory, at its end, is damaged or cut off.
    """
    for info in _directory(file):
        if info.is_dir():
            continue
        read = partial(_read, blob, info, limits)
        yield Member(
            info.orig_filename,
            info.file_size,
            partial(_start, blob, info),
            read,
            _judge(info),
            streamed=blob.streamed,
        )


def _directory(file: IO[bytes]) -> list[zipfile.ZipInfo]:
    try:
        return zipfile.ZipFile(file).infolist()
    except InputError:
        raise
    except OSError as exc:
        raise refuse("unreadable", f"the zip file cannot be read: {exc.strerror}") from exc
    except Exception as exc:  # zipfile raises many kinds on damaged directories
        file.seek(0)
        if file.read(4) == LOCAL_MAGIC:
            raise refuse("truncated", "expected a zip file up to its directory, got less") from exc
        raise refuse("unreadable", "expected a zip file, got other content") from exc


def _judge(info: zipfile.ZipInfo) -> InputError | None:
    mode = stat.S_IFMT(info.external_attr >> 16)
    if mode and not stat.S_ISREG(mode):
        return refuse("not-a-file", "expected a regular file, got a link, device or pipe")
    if info.flag_bits & ENCRYPTED:
        return refuse("unsupported", "the member is encrypted; store it without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return refuse(
            "unsupported",
            f"expected a stored or deflated member, got zip method {info.compress_type}",
        )
    return None


def _start(blob: Blob, info: zipfile.ZipInfo) -> bytes:
    """The first bytes of a member; none where it is damaged."""
    try:
        return _inflate(_packed(blob, info, PROBE), info, MAGIC_END)
    except (InputError, zlib.error):
        return b""


def _read(blob: Blob, info: zipfile.ZipInfo, limits: Limits) -> bytes:
    """All of a member, checked against its length and checksum; from any thread."""
    limits.check_bytes(max(info.compress_size, info.file_size))
    try:
        data = _inflate(_packed(blob, info, info.compress_size), info, info.file_size + 1)
    except zlib.error as exc:
        raise refuse("unreadable", "expected a deflated member, got damaged content") from exc
    if len(data) > info.file_size:
        raise refuse("too-large", f"the member inflates to more than its {info.file_size} bytes")
    if len(data) < info.file_size:
        message = f"expected a member of {info.file_size} bytes, got {len(data)}"
        raise refuse("truncated", message)
    if zlib.crc32(data) != info.CRC:
        raise refuse("unreadable", "expected an intact member, got a checksum that differs")
    return data


def _packed(blob: Blob, info: zipfile.ZipInfo, limit: int) -> bytes:
    """The bytes of a member as stored, ``limit`` of them at most."""
    with blob.reading() as read_at:
        head = read_at(info.header_offset, LOCAL_BYTES)
        if len(head) < LOCAL_BYTES or not head.startswith(LOCAL_MAGIC):
            raise refuse("unreadable", "expected the header of a zip member, got other data")
        name, extra = struct.unpack_from("<2H", head, 26)
        offset = info.header_offset + LOCAL_BYTES + name + extra
        return read_at(offset, min(limit, info.compress_size))


def _inflate(packed: bytes, info: zipfile.ZipInfo, limit: int) -> bytes:
    if info.compress_type == zipfile.ZIP_STORED:
        return packed[:limit]
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, limit)
