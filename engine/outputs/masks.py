"""Masks as files: how they are encoded and how they are read back.

Refuses to know where a run folder is and when to write. Equal masks give equal bytes.
"""

from pathlib import Path

import numpy as np

from medclipsam.engine.archive.limits import DEFAULT_LIMITS, Limits, refuse
from medclipsam.engine.archive.readers.nifti import is_nifti, read_nifti_mask
from medclipsam.engine.archive.readers.raster import raster_kind, read_raster_mask
from medclipsam.engine.archive.readers.reader import read_file
from medclipsam.engine.outputs.planes import encode_planes
from medclipsam.engine.types import Grid


def encode_mask(mask: np.ndarray, grid: Grid) -> tuple[str, bytes]:
    """The mask file of one item and label, on the grid of its source.

    Args:
        mask: bool (F, H, W), in the order of the item's frames.
        grid: how these frames lie in the source file.

    Returns:
        Suffix and content: ``.nii.gz`` uint8 0/1 in the source's stored voxel order,
        ``.png`` 0/255 for one frame, ``.tif`` 0/255 with one page a frame otherwise.
    """
    if mask.ndim != 3 or mask.dtype != bool:
        raise ValueError(f"expected a bool mask (F, H, W), got {mask.dtype} {mask.shape}")
    return encode_planes(mask * np.uint8(1 if grid.kind == "nifti" else 255), grid)


def read_mask(path: Path, limits: Limits = DEFAULT_LIMITS) -> tuple[np.ndarray, Grid]:
    """Read a mask or label map: bool (F, H, W), True where nonzero, and its grid.

    Takes every raster kind (palette indices count, not their colours) and NIfTI. An
    empty mask is a mask.

    Raises:
        InputError: the file cannot be read as a mask.
    """
    data = read_file(path, limits)
    if is_nifti(data):
        return read_nifti_mask(data, limits)
    if raster_kind(data):
        return read_raster_mask(data, limits)
    raise refuse(
        "unreadable",
        f"expected a mask as PNG, TIFF or NIfTI, got {path.name!r} that starts with "
        f"{data[:8].hex(' ')}",
    )
