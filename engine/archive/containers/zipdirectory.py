"""The directory of a zip file, record by record: it may be longer than memory.

Layout as in PKWARE's APPNOTE.TXT, 4.3.12 to 4.3.16 and 4.5.3.
"""

import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from medclipsam.engine.archive.limits import refuse
from medclipsam.engine.errors import InputError

LOCAL_MAGIC, MAGIC = b"PK\3\4", b"PK\1\2"
RECORD = struct.Struct("<4s4B4H3L5H2L")
PIECE = 1 << 20  # bytes of the directory at a time; a record takes less than a fifth of it
LONGEST = RECORD.size + 3 * 0xFFFF
UTF8 = 1 << 11  # flag of names that are UTF-8
WIDE, WIDE_EXTRA = 0xFFFFFFFF, 1  # a number that stands in the extra field, and which one
# Places in what zipfile._EndRecData returns.
SIZE, OFFSET, PLACE = 5, 6, 9
WIDE_END = 76  # bytes of the end records that only wide directories have


@dataclass(frozen=True, slots=True)
class Record:
    """What the directory says of one member.

    Attributes:
        name: as stored.
        flags, method, mode: bits, compression, and kind of file as Unix has it.
        crc: checksum of its content.
        packed, size: bytes stored, and what they are said to inflate to.
        offset: of its local header in the file.
    """

    name: str
    flags: int
    method: int
    mode: int
    crc: int
    packed: int
    size: int
    offset: int


def read_directory(file: IO[bytes]) -> Iterator[Record]:
    """The records in their order.

    Raises:
        InputError: the directory is missing, cut off or damaged, after the records before.
    """
    start, size, shift = _find(file)
    at, piece = 0, b""
    while at < size:
        if len(piece) < LONGEST and len(piece) < size - at:
            file.seek(start + at)  # members may have been read since
            piece = file.read(min(PIECE, size - at))
        record, length = _parse(piece, shift)
        at, piece = at + length, piece[length:]
        yield record


def _find(file: IO[bytes]) -> tuple[int, int, int]:
    """Where the directory begins, its bytes, and those put before the zip file."""
    try:
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    except InputError:
        raise
    except OSError as exc:
        raise refuse("unreadable", f"the zip file cannot be read: {exc.strerror}") from exc
    except Exception as exc:  # zipfile raises many kinds on damaged records
        raise _no_directory(file) from exc
    if not end:
        raise _no_directory(file)
    wide = WIDE_END if end[0] == b"PK\6\6" else 0
    shift = end[PLACE] - end[SIZE] - end[OFFSET] - wide
    if shift < 0:
        raise _no_directory(file)
    return end[OFFSET] + shift, end[SIZE], shift


def _no_directory(file: IO[bytes]) -> InputError:
    file.seek(0)
    if file.read(4) == LOCAL_MAGIC:
        return refuse("truncated", "expected a zip file up to its directory, got less")
    return refuse("unreadable", "expected a zip file, got other content")


def _parse(data: bytes, shift: int) -> tuple[Record, int]:
    """The record at the beginning of ``data``, and how many bytes it takes."""
    if len(data) < RECORD.size or not data.startswith(MAGIC):
        raise refuse("unreadable", "expected a record of a zip directory, got other data")
    fields = RECORD.unpack_from(data)
    flags, method, crc, packed, size = fields[5], fields[6], *fields[9:12]
    name_bytes, extra_bytes, comment_bytes = fields[12:15]
    mode, offset = fields[17] >> 16, fields[18]
    length = RECORD.size + name_bytes + extra_bytes + comment_bytes
    if len(data) < length:
        raise refuse("unreadable", "expected a record of a zip directory, got a part of one")
    name = data[RECORD.size : RECORD.size + name_bytes]
    extra = data[RECORD.size + name_bytes : length - comment_bytes]
    size, packed, offset = _widen((size, packed, offset), extra)
    try:
        text = name.decode("utf-8" if flags & UTF8 else "cp437")
    except UnicodeDecodeError as exc:
        raise refuse("unreadable", "expected a member's name in UTF-8, got other bytes") from exc
    return Record(text, flags, method, mode, crc, packed, size, offset + shift), length


def _widen(numbers: tuple[int, int, int], extra: bytes) -> tuple[int, int, int]:
    """Sizes and offset, from the extra field where they are too large for their own."""
    wide = b""
    while len(extra) >= 4 and not wide:
        kind, length = struct.unpack_from("<2H", extra)
        wide = extra[4 : 4 + length] if kind == WIDE_EXTRA else b""
        extra = extra[4 + length :]
    found = []
    for number in numbers:
        if number == WIDE:
            if len(wide) < 8:
                raise refuse("unreadable", "expected a size of 8 bytes in a zip record, got none")
            number, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        found.append(number)
    return found[0], found[1], found[2]
