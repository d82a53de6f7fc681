"""NIfTI-1 and NIfTI-2 volumes, plain or gzipped, and the way they are cut into frames.

Images and masks pass the same two functions, ``voxels_to_frames`` and its inverse
``frames_to_voxels``, so that a mask cannot come back flipped.
"""

import gzip
import io
import math
import zlib
from typing import NoReturn

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.archive.readers.dicom.file import is_dicom
from medclipsam.engine.archive.readers.foreign import foreign_kind
from medclipsam.engine.archive.readers.raster import raster_kind
from medclipsam.engine.archive.readers.window import as_frames, check_values, robust_window
from medclipsam.engine.errors import InputError
from medclipsam.engine.types import Grid

GZIP_MAGIC = b"\x1f\x8b"
HEADER_BYTES = 540  # of NIfTI-2
SHORTEST = 348  # of NIfTI-1
SLACK = 1 << 16  # bytes that may follow the voxels
PIECE = 1 << 22  # bytes inflated at a time
UNPLACED = "its header gives no position: sform and qform codes are 0"
THICK = 1.5  # slices this much coarser than the plane were acquired as slices
# LPS axes (x to the left, y to the back, z up) as (frame, row, column) of each slicing,
# and which of them run against the display: rows of coronal and sagittal go downwards.
LPS = axcodes2ornt(("L", "P", "S"))
PLANES = {0: ((0, 2, 1), (1,)), 1: ((1, 2, 0), (1,)), 2: ((2, 1, 0), ())}


def is_nifti(data: bytes) -> bool:
    """Whether ``data`` is a NIfTI file, perhaps gzipped (any gzip file counts as one)."""
    return data.startswith(GZIP_MAGIC) or _header_kind(data) is not None


def read_nifti(data: bytes, limits: Limits) -> tuple[np.ndarray, Grid]:
    """Decode a NIfTI file as displayed: sliced, and through one robust window.

    Returns:
        frames uint8 (F, H, W, 3) and the grid.
    """
    voxels, affine, slope, doubt = read_voxels(data, limits)
    stored, axis = voxels_to_frames(voxels, affine)
    check_values(stored)
    # A positive scale changes nothing behind a robust window; a negative one inverts.
    shown = robust_window(stored if slope > 0 else -stored.astype(np.float32))
    return as_frames(shown), make_grid(voxels.shape, affine, axis, doubt)


def read_nifti_mask(data: bytes, limits: Limits) -> tuple[np.ndarray, Grid]:
    """Read a mask: bool (F, H, W), True where a stored value is nonzero."""
    voxels, affine, _, doubt = read_voxels(data, limits)
    frames, axis = voxels_to_frames(voxels != 0, affine)
    return frames, make_grid(voxels.shape, affine, axis, doubt)


def read_nifti_levels(data: bytes, limits: Limits) -> tuple[np.ndarray, Grid]:
    """Read voxels as they are stored, unscaled, in this machine's byte order: (F, H, W)."""
    voxels, affine, _, doubt = read_voxels(data, limits)
    frames, axis = voxels_to_frames(voxels, affine)
    native = frames.astype(frames.dtype.newbyteorder("="), copy=False)
    return native, make_grid(voxels.shape, affine, axis, doubt)


def make_grid(shape: tuple[int, ...], affine: np.ndarray, axis: int, doubt: str = "") -> Grid:
    """The grid of voxels of ``shape`` that are sliced along anatomical ``axis``."""
    order = io_orientation(affine)[:, 0].astype(int)  # stored axis → anatomical axis
    sizes = np.empty(3)
    sizes[order] = np.linalg.norm(affine[:3, :3], axis=0)
    _, row, column = PLANES[axis][0]
    spacing = (float(sizes[row]), float(sizes[column]))
    return Grid("nifti", spacing=spacing, affine=affine, shape=tuple(shape), axis=axis, doubt=doubt)


def voxels_to_frames(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, int]:
    """Cut stored voxels into frames as radiologists see them.

    Axial: rows front → back, columns patient's right → left. Coronal: rows top →
    bottom, columns right → left. Sagittal: rows top → bottom, columns front → back.
    The slices are those across an axis of length one, else across the coarsest axis
    if it is at least 1.5 times as coarse as the others' mean, else axial.

    Args:
        voxels: (X, Y) or (X, Y, Z) in stored order, any dtype.
        affine: (4, 4) voxel-to-world matrix, RAS+.

    Returns:
        frames (F, H, W), a view, and the anatomical axis: 0 sagittal, 1 coronal, 2 axial.
    """
    turn = _turn_to_lps(affine)
    volume = voxels if voxels.ndim == 3 else voxels[..., None]
    axis = _slice_axis(volume.shape, affine)
    order, flipped = PLANES[axis]
    frames = apply_orientation(volume, turn).transpose(order)
    return np.flip(frames, flipped), axis


def frames_to_voxels(frames: np.ndarray, grid: Grid) -> np.ndarray:
    """Undo ``voxels_to_frames``: (F, H, W) → ``grid.shape`` in stored voxel order."""
    if grid.affine is None:
        raise ValueError("expected the grid of a NIfTI source, got one without an affine")
    order, flipped = PLANES[grid.axis]
    volume = np.flip(frames, flipped).transpose(np.argsort(order))
    back = ornt_transform(LPS, io_orientation(grid.affine))
    return apply_orientation(volume, back).reshape(grid.shape)


def _turn_to_lps(affine: np.ndarray) -> np.ndarray:
    """(3, 2) nibabel orientation that takes stored axes to LPS."""
    columns = affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if not np.isfinite(affine).all() or not (lengths > 0).all():
        raise refuse("unsupported", "expected an affine with three axes, got a degenerate one")
    # The volume of the unit axes: 1 if they are at right angles, 0 if they share a plane.
    if abs(np.linalg.det(columns / lengths)) < 1e-4:
        raise refuse("unsupported", "expected an affine with three axes, got a degenerate one")
    return ornt_transform(io_orientation(affine), LPS)


def _slice_axis(shape: tuple[int, ...], affine: np.ndarray) -> int:
    order = io_orientation(affine)[:, 0].astype(int)
    single = [stored for stored in range(3) if shape[stored] == 1]
    if single:
        return int(order[single[-1]])
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    coarsest = int(np.argmax(sizes))
    if sizes[coarsest] >= THICK * np.delete(sizes, coarsest).mean():
        return int(order[coarsest])
    return 2


def read_voxels(data: bytes, limits: Limits) -> tuple[np.ndarray, np.ndarray, float, str]:
    """Stored voxels (2 or 3 axes, unscaled), affine (4, 4), slope and doubt of a NIfTI file."""
    stream = gzip.GzipFile(fileobj=io.BytesIO(data)) if data[:2] == GZIP_MAGIC else None
    try:
        start = data[:HEADER_BYTES] if stream is None else stream.read(HEADER_BYTES)
        kind = _header_kind(start)
        if kind is None:
            _refuse_other(start)
        header = kind.from_fileobj(io.BytesIO(start), check=True)
        shape, dtype = _check_header(header, limits)
        offset = int(header.get_data_offset())
        size = math.prod(shape) * dtype.itemsize
        body = data if stream is None else _inflate(stream, start, offset + size)
        if len(body) < offset + size:
            raise refuse("truncated", f"expected {offset + size} bytes, got {len(body)}")
        slope, _ = header.get_slope_inter()
        affine = np.asarray(header.get_best_affine(), np.float64)
        doubt = "" if header["sform_code"] > 0 or header["qform_code"] > 0 else UNPLACED
    except (InputError, MemoryError):
        raise
    except EOFError as exc:
        raise refuse("truncated", "expected a whole gzip file, got only a part") from exc
    except (gzip.BadGzipFile, zlib.error) as exc:
        raise refuse("unreadable", "expected an intact gzip file, got damaged content") from exc
    except (HeaderDataError, ValueError, OverflowError, TypeError, KeyError) as exc:
        raise refuse("unreadable", "expected a valid NIfTI header, got a damaged one") from exc
    voxels = np.frombuffer(body, dtype, count=math.prod(shape), offset=offset)
    voxels = voxels.reshape(shape, order="F")
    return voxels, affine, 1.0 if slope is None else float(slope), doubt


def _refuse_other(start: bytes) -> NoReturn:
    """Say what a gzip file holds that is no NIfTI, by its first bytes."""
    if len(start) < SHORTEST:
        raise refuse("unreadable", "expected a NIfTI file, got other content or a part of one")
    kind = raster_kind(start) or ("DICOM" if is_dicom(start) else foreign_kind(start))
    kind = {"FreeSurfer MGH": "FreeSurfer MGZ"}.get(
        kind, f"a gzip file of {kind or 'other content'}"
    )
    raise refuse(
        "unsupported", f"expected NIfTI inside a gzip file, got {kind}; unpack or convert it"
    )


def _inflate(stream: gzip.GzipFile, start: bytes, size: int) -> bytearray:
    """The first ``size`` bytes of ``stream``, of which ``start`` has been read, or fewer."""
    body = bytearray(start)
    while part := stream.read(min(PIECE, size - len(body))):
        body += part
    # Reading on to the end verifies the checksum.
    if len(stream.read(SLACK)) == SLACK:
        raise refuse("too-large", "the file inflates to far more than its header says")
    return body


def _header_kind(start: bytes) -> type[Nifti1Header] | None:
    if start[344:348] == b"n+1\0":
        return Nifti1Header
    if start[4:8] == b"n+2\0":
        return Nifti2Header
    return None


def _check_header(header: Nifti1Header, limits: Limits) -> tuple[tuple[int, ...], np.dtype]:
    """Shape of 2 or 3 axes and dtype, once the header alone shows that they can be read."""
    shape = tuple(int(length) for length in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if any(length < 1 for length in shape) or not shape:
        raise refuse("empty", f"expected voxels, got the shape {shape}")
    if len(shape) not in (2, 3):
        raise refuse(
            "unsupported",
            f"expected 2 or 3 axes, got the shape {shape}; store each volume as a file",
        )
    dtype = header.get_data_dtype()
    if dtype.kind not in "iufb" or dtype.itemsize > 8:
        raise refuse("unsupported", f"expected integer or float voxels, got {dtype}")
    limits.check_pixels(*(*shape, 1)[:3])
    offset = float(header["vox_offset"])
    if not 0 <= offset < limits.max_bytes:
        raise refuse("unreadable", f"expected voxels inside the file, got an offset of {offset}")
    limits.check_bytes(int(offset) + math.prod(shape) * dtype.itemsize)
    return shape, dtype
