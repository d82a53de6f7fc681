"""From an item to its picture, whatever the file turns out to be.

The reader is chosen by magic bytes, never by suffix. Whatever is wrong with a file
comes out as InputError with a stable reason; anything else is a bug.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medclipsam.engine.archive.files import read_file
from medclipsam.engine.archive.limits import DEFAULT_LIMITS, Limits, refuse
from medclipsam.engine.archive.readers.dicom.dicom import read_dicom
from medclipsam.engine.archive.readers.dicom.file import complete, is_dicom, resembles_dicom
from medclipsam.engine.archive.readers.dicom.series import read_series
from medclipsam.engine.archive.readers.foreign import foreign_kind
from medclipsam.engine.archive.readers.nifti import is_nifti, read_nifti
from medclipsam.engine.archive.readers.raster import raster_kind, read_raster
from medclipsam.engine.types import Grid

KINDS = "PNG, JPEG, TIFF, BMP, DICOM or NIfTI"


@dataclass(frozen=True)
class Decoded:
    """What one item's bytes show.

    Attributes:
        frames: uint8 (F, H, W, 3) as displayed; grey is a read-only view of one channel.
        grid: how the frames lie in their source.
        digest: sha256 of the encoded bytes, of all files one after the other.
        sources: the encoded DICOM files in the order of their frames, where wanted; each
            has a preamble.
    """

    frames: np.ndarray
    grid: Grid
    digest: str
    sources: tuple[bytes, ...] = ()


def decode(
    source: bytes | Sequence[Path], limits: Limits = DEFAULT_LIMITS, keep: bool = False
) -> Decoded:
    """Decode the bytes of one item, or its files: several are the slices of a series.

    Args:
        source: encoded bytes, or paths in the order of their frames.
        limits: caps on the whole item.
        keep: give the encoded files back where they are DICOM.

    Raises:
        InputError: with stage ``read_image``, whenever it cannot be used.
    """
    digest = hashlib.sha256()
    kept: list[bytes] = []

    def files() -> Iterator[bytes]:
        total = 0
        for data in (
            [source] if isinstance(source, bytes) else (read_file(path, limits) for path in source)
        ):
            total += len(data)
            limits.check_bytes(total)
            digest.update(data)
            if keep and is_dicom(data):
                kept.append(complete(data))
            yield data

    one = isinstance(source, bytes) or len(source) == 1
    frames, grid = _read_one(next(files()), limits) if one else read_series(files(), limits)
    return Decoded(frames, grid, digest.hexdigest(), tuple(kept))


def is_image(start: bytes) -> bool:
    """Whether a file that starts so is of a kind that can be decoded."""
    return is_dicom(start) or is_nifti(start) or bool(raster_kind(start))


def _read_one(data: bytes, limits: Limits) -> tuple[np.ndarray, Grid]:
    if not data:
        raise refuse("empty", "expected an image, got 0 bytes")
    if is_dicom(data):
        return read_dicom(data, limits)
    if is_nifti(data):
        return read_nifti(data, limits)
    if raster_kind(data):
        return read_raster(data, limits)
    if name := foreign_kind(data):
        raise refuse("unsupported", f"expected {KINDS}, got {name}; convert it to one of these")
    if resembles_dicom(data):
        raise refuse(
            "unsupported",
            "expected DICOM with a preamble and DICM, got what may be DICOM without them and "
            "cannot be recognised safely; save it again as a whole DICOM file",
        )
    raise refuse("unreadable", f"expected {KINDS}, got a file that starts with {data[:8].hex(' ')}")
