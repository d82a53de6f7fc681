"""Image file directories of TIFF and BigTIFF: where the pages lie and how they are stored.

Refuses to know pixels. Source: TIFF 6.0 and the BigTIFF design of libtiff.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from medclipsam.engine.archive.limits import refuse

BIG = (b"+\0", b"\0+")
# TIFF 6.0, section 2, and BigTIFF: the numpy type of a value, and how many make one.
TYPES = {
    1: ("u1", 1),
    2: ("S1", 1),
    3: ("u2", 1),
    4: ("u4", 1),
    5: ("u4", 2),
    6: ("i1", 1),
    7: ("u1", 1),
    8: ("i2", 1),
    9: ("i4", 1),
    10: ("i4", 2),
    11: ("f4", 1),
    12: ("f8", 1),
    13: ("u4", 1),
    16: ("u8", 1),
    17: ("i8", 1),
    18: ("u8", 1),
}
# The tags that are looked at, by their names in TIFF 6.0 and libtiff.
TAGS = {
    "NewSubfileType": 254,
    "SubfileType": 255,
    "ImageWidth": 256,
    "ImageLength": 257,
    "BitsPerSample": 258,
    "Compression": 259,
    "PhotometricInterpretation": 262,
    "FillOrder": 266,
    "ImageDescription": 270,
    "StripOffsets": 273,
    "SamplesPerPixel": 277,
    "RowsPerStrip": 278,
    "StripByteCounts": 279,
    "PlanarConfiguration": 284,
    "T4Options": 292,
    "T6Options": 293,
    "Predictor": 317,
    "ColorMap": 320,
    "TileWidth": 322,
    "TileLength": 323,
    "TileOffsets": 324,
    "TileByteCounts": 325,
    "InkSet": 332,
    "ExtraSamples": 338,
    "SampleFormat": 339,
    "JPEGTables": 347,
    "YCbCrSubSampling": 530,
    "ImageDepth": 32997,
    "UIC2tag": 33629,
}
NAMES = {number: name for name, number in TAGS.items()}


@dataclass(frozen=True)
class Directory:
    """One image file directory.

    Attributes:
        at: its place in the file.
        order: ``<`` or ``>``, the byte order of the file.
        values: name of a tag → its values as a 1-D array.
    """

    at: int
    order: str
    values: dict[str, np.ndarray]

    def numbers(self, name: str, *default: int) -> tuple[int, ...]:
        """All values of a tag, or ``default``."""
        found = self.values.get(name)
        return default if found is None else tuple(int(value) for value in found)

    def number(self, name: str, default: int | None = None) -> int:
        """The first value of a tag, or ``default``.

        Raises:
            InputError: the tag is missing and has no default.
        """
        found = self.numbers(name)
        if found:
            return found[0]
        if default is None:
            raise refuse("unreadable", f"expected the TIFF tag {name} in every page, got none")
        return default

    def text(self, name: str) -> str:
        """A tag of text, or empty."""
        found = self.values.get(name)
        return "" if found is None else found.tobytes().rstrip(b"\0").decode("utf-8", "replace")


def read_directories(data: bytes) -> list[Directory]:
    """The chain of directories; those below others (SubIFDs) are left aside.

    Raises:
        InputError: the chain leads out of the file.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in BIG
    pointer, counter = ("Q", "Q") if big else ("I", "H")
    found: dict[int, Directory] = {}
    try:
        (at,) = struct.unpack_from(order + pointer, data, 8 if big else 4)
        while at and at not in found:
            (count,) = struct.unpack_from(order + counter, data, at)
            start = at + struct.calcsize(order + counter)
            end = start + count * (20 if big else 12)
            following = struct.unpack_from(order + pointer, data, end)[0]
            found[at] = Directory(at, order, _read_values(data, order, big, start, end))
            at = following
    except (struct.error, OverflowError) as exc:  # BigTIFF holds offsets beyond any index
        raise refuse("truncated", f"expected more TIFF pages beyond byte {len(data)}") from exc
    if not found:
        raise refuse("truncated", "expected a TIFF with pages, got none")
    return list(found.values())


def _read_values(data: bytes, order: str, big: bool, start: int, end: int) -> dict[str, Any]:
    entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    pointer = order + ("Q" if big else "I")
    values: dict[str, np.ndarray] = {}
    for tag, kind, count, inline in entry.iter_unpack(data[start:end]):
        name = NAMES.get(tag)
        if name is None or kind not in TYPES or not count:
            continue
        dtype, parts = np.dtype(order + TYPES[kind][0]), TYPES[kind][1]
        size = count * parts * dtype.itemsize
        if size <= len(inline):
            values[name] = np.frombuffer(inline, dtype, count * parts)
            continue
        (offset,) = struct.unpack(pointer, inline)
        if offset + size > len(data):
            raise refuse(
                "truncated",
                f"expected the TIFF tag {name} up to byte {offset + size}, got {len(data)} bytes",
            )
        values[name] = np.frombuffer(data, dtype, count * parts, offset)
    return values
