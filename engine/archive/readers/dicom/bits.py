"""Stored values from the bits that hold them (DICOM PS3.5, section 8.1.1).

Refuses to know codecs: whatever decoded the pixels, the unused bits of a cell may hold an
overlay or anything else, and are no part of a value.
"""

from typing import Any

import numpy as np
from pydicom.dataset import Dataset

# Options of pydicom's decoders that leave cells as they are: its own corrections know
# neither HighBit nor streams of more bits than BitsStored.
AS_STORED: dict[str, Any] = {
    "correct_unused_bits": False,
    "apply_j2k_sign_correction": False,
    "apply_jls_sign_correction": False,
    "allow_excess_frames": False,
}


def stored_values(cells: np.ndarray, ds: Dataset, held: int) -> np.ndarray:
    """Values of BitsStored bits, extended by their sign where they are signed.

    Args:
        cells: integers of any shape as decoded; floats and single bits come back unchanged.
        ds: tells BitsStored, HighBit and PixelRepresentation.
        held: bits of a cell that the pixel data hold: BitsAllocated, or those of a sample in
            a compressed stream. Where these do not reach HighBit, values begin at bit 0.
    """
    if cells.dtype.kind == "f" or int(ds.BitsAllocated) == 1:
        return cells
    width, stored = 8 * cells.dtype.itemsize, min(int(ds.BitsStored), held)
    high = int(ds.get("HighBit", ds.BitsStored - 1))
    if not int(ds.BitsStored) - 1 <= high < int(ds.BitsAllocated):
        high = int(ds.BitsStored) - 1
    below = high + 1 - stored if held > high else 0
    if stored == width:
        return cells
    cells = cells.astype(cells.dtype.newbyteorder("="), copy=False)
    kind = "i" if ds.get("PixelRepresentation", 0) == 1 else "u"
    # Up to the top of the cell and down again: this drops the other bits on both sides.
    up = cells.view(f"u{width // 8}") << (width - stored - below)
    return up.view(f"{kind}{width // 8}") >> (width - stored)
