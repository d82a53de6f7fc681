"""Compressed frames inside DICOM objects: how many there are, and whether they are whole."""

from __future__ import annotations

import struct
from itertools import islice

from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import RLELossless

from medclipsam.engine.archive.limits import refuse


def check_streams(ds: Dataset, count: int) -> None:
    """Refuse compressed frames that are missing, cut off, or of another size than declared.

    Decoders fill the rest of a picture that is cut off with grey, and a frame may claim
    more pixels than the header that the limits were checked against.
    """
    offsets = None
    if "ExtendedOffsetTable" in ds and "ExtendedOffsetTableLengths" in ds:
        offsets = (ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths)
    streams = generate_frames(ds.PixelData, number_of_frames=count, extended_offsets=offsets)
    got = 0
    for stream in islice(streams, count):
        got += 1
        if ds.file_meta.TransferSyntaxUID == RLELossless:
            continue
        size = stream_size(stream)
        if size is not None and size != (ds.Rows, ds.Columns):
            raise refuse(
                "unreadable",
                f"expected frames of {ds.Rows} × {ds.Columns}, got one of {size[0]} × {size[1]}",
            )
        if stream.rfind(b"\xff\xd9", max(0, len(stream) - 64)) < 0:
            raise refuse("truncated", f"expected frame {got} up to its end mark, got only a part")
    if got < count:
        raise refuse("truncated", f"expected {count} frames, got {got}")


def stream_size(stream: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 stream declares, where it does."""
    start = stream.find(b"\xff\x4f\xff\x51", 0, 4096)  # JPEG 2000, bare or in a JP2 box
    if start >= 0:
        width, height, left, top = struct.unpack_from(">4I", stream, start + 8)
        return height - top, width - left
    at = 2
    while stream.startswith(b"\xff\xd8") and at + 9 <= len(stream):
        marker = stream[at + 1]
        if stream[at] != 0xFF:
            return None
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack_from(">2H", stream, at + 5)
            return rows, columns
        else:
            at += 2 + struct.unpack_from(">H", stream, at + 2)[0]
    return None
