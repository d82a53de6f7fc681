"""Headers and ends of JPEG, JPEG-LS and JPEG 2000 streams, whatever file holds them.

Sources: ITU-T T.81 annex B, ITU-T T.87 annex C, ITU-T T.800 annex A.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

JPEG_START = b"\xff\xd8"
J2K_START = b"\xff\x4f\xff\x51"  # SOC and SIZ
JPEG_LS, JPEG_2000 = 0xF7, 0x51  # markers that stand for the coding
# What T.81 and T.87 call each coding, by the marker of its frame header.
CODINGS = {
    0xC0: "baseline JPEG",
    0xC1: "extended sequential JPEG",
    0xC2: "progressive JPEG",
    0xC3: "lossless JPEG",
    0xC5: "hierarchical JPEG",
    0xC6: "hierarchical progressive JPEG",
    0xC7: "hierarchical lossless JPEG",
    0xC9: "arithmetic-coded JPEG",
    0xCA: "arithmetic-coded progressive JPEG",
    0xCB: "arithmetic-coded lossless JPEG",
    0xCD: "arithmetic-coded hierarchical JPEG",
    0xCE: "arithmetic-coded hierarchical progressive JPEG",
    0xCF: "arithmetic-coded hierarchical lossless JPEG",
    JPEG_LS: "JPEG-LS",
    JPEG_2000: "JPEG 2000",
}
# In coded data, FF and a byte from 80 on is a marker; restart marks belong to the data.
MARKER = re.compile(rb"\xff+([\x80-\xcf\xd8-\xfe])", re.DOTALL)


@dataclass(frozen=True)
class Frame:
    """What a stream's frame header declares.

    Attributes:
        coding: the marker that stands for it, a key of ``CODINGS``.
        bits: of a sample.
        rows: of the picture, in pixels.
        columns: of the picture, in pixels.
    """

    coding: int
    bits: int
    rows: int
    columns: int


def read_frame(stream: bytes) -> Frame | None:
    """The frame header of a stream; None where there is none."""
    start = stream.find(J2K_START, 0, 4096)  # bare or in a JP2 box
    if start >= 0 and start + 43 <= len(stream):
        width, height, left, top = struct.unpack_from(">4I", stream, start + 8)
        return Frame(JPEG_2000, (stream[start + 42] & 0x7F) + 1, height - top, width - left)
    at = 2
    while stream.startswith(JPEG_START) and at + 9 <= len(stream):
        marker = stream[at + 1]
        if stream[at] != 0xFF:
            return None
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in CODINGS and marker != JPEG_2000:
            bits, rows, columns = struct.unpack_from(">B2H", stream, at + 4)
            return Frame(marker, bits, rows, columns)
        else:
            at += 2 + struct.unpack_from(">H", stream, at + 2)[0]
    return None


def find_end(stream: bytes) -> int | None:
    """The place behind a stream's end mark; None where the stream is cut off before it.

    The structure is followed, because an end mark may also stand in a preview, and any
    bytes behind the picture.
    """
    start = stream.find(J2K_START, 0, 4096)
    try:
        return _end_of_jpeg_2000(stream, start) if start >= 0 else _end_of_jpeg(stream)
    except (struct.error, IndexError):
        return None


def _end_of_jpeg(stream: bytes) -> int | None:
    at = 2
    while True:
        match = MARKER.match(stream, at)
        if match is None:
            return None
        at, marker = match.end(), match[1][0]
        if marker == 0xD9:
            return at
        at += struct.unpack_from(">H", stream, at)[0]
        if marker == 0xDA:  # coded data follow, up to the next marker
            following = MARKER.search(stream, at)
            if following is None:
                return None
            at = following.start()


def _end_of_jpeg_2000(stream: bytes, start: int) -> int | None:
    at = start + 2
    while at < len(stream):
        marker = stream[at : at + 2]
        if marker == b"\xff\xd9":
            return at + 2
        if marker[:1] != b"\xff":
            return None
        if marker != b"\xff\x90":
            at += 2 + struct.unpack_from(">H", stream, at + 2)[0]
            continue
        (size,) = struct.unpack_from(">I", stream, at + 6)  # of the tile-part
        if not size:  # the last one, up to the end mark
            end = stream.find(b"\xff\xd9", at + 12)  # no pair above FF 8F stands in its data
            return None if end < 0 else end + 2
        at += size
    return None
