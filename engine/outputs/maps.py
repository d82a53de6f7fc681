"""Saliency maps read back: values that order the pixels, as they are stored."""

from pathlib import Path

import numpy as np

from medclipsam.engine.archive.limits import DEFAULT_LIMITS, Limits, refuse
from medclipsam.engine.archive.readers.nifti import is_nifti, read_nifti_levels
from medclipsam.engine.archive.readers.raster import raster_kind, read_raster_levels
from medclipsam.engine.archive.readers.reader import read_file
from medclipsam.engine.types import Grid


def read_map(path: Path, limits: Limits = DEFAULT_LIMITS) -> tuple[np.ndarray, Grid]:
    """Read a saliency map: uint8 or uint16 (F, H, W), higher for more salient, and its grid.

    Raises:
        InputError: the file cannot be read as grey values of 8 or 16 bits.
    """
    data = read_file(path, limits)
    if is_nifti(data):
        levels, grid = read_nifti_levels(data, limits)
    elif raster_kind(data):
        levels, grid = read_raster_levels(data, limits)
    else:
        raise refuse(
            "unreadable",
            f"expected a map as PNG, TIFF or NIfTI, got {path.name!r} that starts with "
            f"{data[:8].hex(' ')}",
        )
    if levels.ndim != 3 or levels.dtype not in (np.uint8, np.uint16):
        raise refuse(
            "unsupported",
            f"expected a map of grey values of 8 or 16 bits, got {path.name!r} of {levels.dtype} "
            f"{levels.shape}; store its values as 16-bit greys",
        )
    return levels, grid
