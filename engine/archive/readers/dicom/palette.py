"""DICOM PALETTE COLOR: from indices to colours (PS3.3, C.7.6.3.1.5, C.7.6.3.1.6, C.7.9.2)."""

import numpy as np
from pydicom.dataset import Dataset

from medclipsam.engine.archive.limits import refuse
from medclipsam.engine.archive.readers.dicom.luts import read_descriptor, read_entries, words

COLOURS = ("Red", "Green", "Blue")
DISCRETE, LINEAR, INDIRECT = 0, 1, 2  # kinds of segments
NESTED = 8  # indirect segments that refer to each other


def show_palette(stored: np.ndarray, ds: Dataset) -> np.ndarray:
    """uint8 (F, H, W, 3) of (F, H, W) indices; the ends of the tables serve values beyond them.

    Tables whose entries all fit 8 bits are of 8 bits, whatever their descriptor says: as
    16 bits, they would show nothing.

    Raises:
        InputError: a table is missing, or shorter than it says.
    """
    tables = [_read_table(ds, colour) for colour in COLOURS]
    wide = max(int(entries.max()) for entries, _ in tables) > 255
    out = np.empty((*stored.shape, 3), np.uint8)
    for channel, (entries, first) in enumerate(tables):
        table = (entries >> 8 if wide else entries).astype(np.uint8)
        for frame, shown in zip(stored, out[..., channel], strict=True):
            shown[...] = table[np.clip(frame.astype(np.int64) - first, 0, len(table) - 1)]
    return out


def _read_table(ds: Dataset, colour: str) -> tuple[np.ndarray, int]:
    """The entries of one colour, and the value that the first one stands for."""
    name = f"{colour}PaletteColorLookupTable"
    signed = ds.get("PixelRepresentation", 0) == 1
    descriptor = read_descriptor(ds.get(f"{name}Descriptor"), signed)
    plain, segmented = f"{name}Data", f"Segmented{name}Data"
    if descriptor is None or (plain not in ds and segmented not in ds):
        raise refuse("unsupported", f"expected a {colour.lower()} palette in the file, got none")
    count, first, bits = descriptor
    little = ds.original_encoding[1] is not False
    if plain in ds:
        entries = read_entries(ds[plain], count, bits, little)
    else:
        entries = _expand(ds[segmented].value, count, bits, little)
    if len(entries) < count:
        raise refuse("unreadable", f"expected a palette of {count} entries, got {len(entries)}")
    return entries, first


def _expand(data: bytes, count: int, bits: int, little: bool) -> np.ndarray:
    """Entries of a segmented table; where its units do not give ``count``, the others may."""
    longest = np.zeros(0, np.int64)
    for size in (1, 2) if bits == 8 else (2, 1):
        units = words(data, size, True, little)
        entries = np.array(_segments(units, 0, None, [], count, size, NESTED), np.int64)
        if len(entries) == count:
            return entries
        longest = max(longest, entries, key=len)
    return longest[:0]


def _segments(
    units: np.ndarray,
    at: int,
    number: int | None,
    found: list[int],
    count: int,
    size: int,
    nested: int,
) -> list[int]:
    """Append ``number`` segments from unit ``at`` on, or all, to ``found``, and return it."""
    while at + 2 <= len(units) and len(found) < count and number != 0:
        kind, length = int(units[at]), int(units[at + 1])
        at += 2
        if kind == DISCRETE:
            found.extend(int(unit) for unit in units[at : at + length])
            at += length
        elif kind == LINEAR and found and at < len(units):
            ends = np.linspace(found[-1], int(units[at]), length + 1)
            found.extend(int(value) for value in np.rint(ends[1:]))
            at += 1
        elif kind == INDIRECT and nested and at + 4 // size <= len(units):
            place = sum(
                int(unit) << 8 * size * k for k, unit in enumerate(units[at : at + 4 // size])
            )
            _segments(units, place // size, length, found, count, size, nested - 1)
            at += 4 // size
        else:
            break
        number = None if number is None else number - 1
    return found
