"""Arrays as NIfTI files, in the voxel order and the world of their source."""

import gzip
import io

import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.nifti2 import Nifti2Image

from medclipsam.engine.archive.readers.nifti import frames_to_voxels
from medclipsam.engine.types import Grid

# sform and qform codes: none, the scanner's coordinates, or made up.
UNPLACED, SCANNER, ALIGNED = 0, 1, 2
LEVEL = 6  # of gzip


def encode_volume(frames: np.ndarray, grid: Grid, slope: float = 1.0) -> bytes:
    """A ``.nii.gz`` file; equal input gives equal bytes.

    - NIfTI sources: their stored voxel order and affine; form codes of 0 where theirs are.
    - DICOM sources with a known geometry: voxels (W, H, F) with the grid's affine.
    - All others: voxels (W, H, F); columns run to the patient's left, rows to the back
      and frames upwards from the origin, as ITK converts a PNG: the affine's diagonal is
      −column spacing, −row spacing, 1; 1 mm where the spacing is unknown, but for a known
      ratio of the two. The form codes
      say 2, "aligned", because no scanner measured that.

    Args:
        frames: uint8 or uint16 (F, H, W).
        grid: how these frames lie in the source file.
        slope: what a stored step is worth.
    """
    voxels = _to_voxels(frames, grid)
    kind = Nifti1Image if max(voxels.shape) < 1 << 15 else Nifti2Image
    affine = world(grid)
    code = ALIGNED if grid.affine is None else SCANNER
    if grid.kind == "nifti" and grid.doubt:
        code = UNPLACED  # as in the source: readers take voxel sizes only, of both alike
    image = kind(voxels, affine)
    image.set_sform(affine, code=code)
    image.set_qform(affine, code=code)
    if not np.allclose(image.get_qform(), affine, rtol=1e-3, atol=1e-3):
        image.header["qform_code"] = 0  # a quaternion cannot hold sheared axes
    image.header.set_xyzt_units("mm")
    return _compress(_scale(image, slope))


def world(grid: Grid) -> np.ndarray:
    """(4, 4) voxel-to-world matrix, RAS+ in mm, of the voxels that ``encode_volume`` stores."""
    if grid.affine is not None:
        return np.asarray(grid.affine, np.float64)
    row, column = grid.spacing or (grid.aspect, 1.0)
    return np.diag([-column, -row, 1.0, 1.0])


def _to_voxels(frames: np.ndarray, grid: Grid) -> np.ndarray:
    if grid.kind == "nifti":
        return frames_to_voxels(frames, grid)
    return frames.transpose(2, 1, 0)


def _scale(image: Nifti1Image | Nifti2Image, slope: float) -> bytes:
    """The file's bytes; nibabel would scale integers back instead of storing the slope."""
    data = image.to_bytes()
    header = type(image).header_class.from_fileobj(io.BytesIO(data))
    header.set_slope_inter(slope, 0)
    return header.binaryblock + data[len(header.binaryblock) :]


def _compress(data: bytes) -> bytes:
    stream = io.BytesIO()
    # No name and no time, so that the bytes depend on the content alone.
    with gzip.GzipFile("", "wb", compresslevel=LEVEL, fileobj=stream, mtime=0) as file:
        file.write(data)
    return stream.getvalue()
