"""Entries of DICOM lookup tables, in every way that files pack them.

A descriptor tells the number of entries, the value that the first one stands for, and 8 or
16 bits. What the data hold counts more than the bits it tells (PS3.3, C.7.6.3.1.6: entries
of 8 bits occur in 16 allocated ones, and are known by the length of the data).
"""

from typing import Any

import numpy as np
from pydicom.dataelem import DataElement

SIZE = 1 << 16  # entries that a count of 0 stands for


def read_descriptor(value: Any, signed: bool) -> tuple[int, int, int] | None:
    """(entries, value of the first one, bits); None where it is no descriptor.

    Args:
        value: of the element, unsigned or signed by whatever VR it was written in.
        signed: whether the value of the first entry is.
    """
    if value is None or isinstance(value, (str, bytes)) or len(value) < 3:
        return None
    count, first, bits = (int(number) & 0xFFFF for number in value)
    return count or SIZE, first - SIZE if signed and first >= SIZE // 2 else first, bits


def read_entries(element: DataElement, count: int, bits: int, little: bool) -> np.ndarray:
    """Up to ``count`` entries, unsigned integers; fewer where the data end before.

    Args:
        element: LUTData or its like: bytes, one number, or several.
        bits: that the descriptor tells.
        little: whether the file is little-endian.
    """
    data = element.value
    if isinstance(data, bytes):
        packed = len(data) < 2 * count or (count == 1 and bits == 8)
        return words(data, 1 if packed else 2, element.VR == "OW", little)[:count]
    numbers = np.atleast_1d(np.asarray([] if data is None else data)).astype(np.int64) & 0xFFFF
    if bits == 8 and len(numbers) < count <= 2 * len(numbers):  # two entries in each number
        numbers = numbers.astype("<u2").view(np.uint8)
    return numbers[:count]


def words(data: bytes, size: int, as_words: bool, little: bool) -> np.ndarray:
    """``data`` as unsigned integers of ``size`` bytes, whatever the file's byte order.

    Args:
        as_words: whether pairs of bytes are swapped in a big-endian file.
    """
    data = data[: len(data) // 2 * 2] if size == 2 or (as_words and not little) else data
    if size == 2:
        return np.frombuffer(data, "<u2" if little else ">u2").astype(np.uint16)
    entries = np.frombuffer(data, np.uint8)
    return entries if little or not as_words else entries.reshape(-1, 2)[:, ::-1].reshape(-1)
