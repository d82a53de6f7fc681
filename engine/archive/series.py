"""The files of one DICOM series in one folder, as one item.

Refuses to know what else a header says: ids and messages hold a hash of it at most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medclipsam.engine.archive.dicom import Picture, is_dicom, make_grid, read_picture, read_syntax
from medclipsam.engine.archive.entry import Entry
from medclipsam.engine.archive.files import open_file
from medclipsam.engine.archive.geometry import join_planes
from medclipsam.engine.archive.kinds import MAGIC_END
from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.archive.window import as_frames
from medclipsam.engine.errors import InputError
from medclipsam.engine.types import Grid, ItemRef

TAGS = [
    "SeriesInstanceUID",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "InstanceNumber",
    "ImageOrientationPatient",
    "ImagePositionPatient",
]
DIGITS = 3  # of direction cosines that count as the same orientation
HASH = 12  # hex digits of an id


@dataclass(frozen=True)
class Slice:
    """One file of a series: which series that is, and its place in it."""

    file: Path
    series: str
    place: tuple[float, float, str]


def group_series(files: Iterable[Path], prefix: str) -> dict[str, Entry | None]:
    """Put the DICOM files of one folder together that are slices of one volume.

    A series is files with the same SeriesInstanceUID, Rows, Columns and orientation. A
    file with several frames, or the only one of its series, stays an item of its own.

    Args:
        files: of one folder, by name.
        prefix: the folder's path below the archive's root, with ``/`` at its end.

    Returns:
        Name of each file of a series → the entry of the series for its first file by
        name, None for the others.
    """
    slices = sorted(
        (found for found in map(_read_slice, files) if found is not None),
        key=lambda found: (found.series, found.place),
    )
    grouped: dict[str, Entry | None] = {}
    for series, members in groupby(slices, lambda found: found.series):
        ordered = [found.file for found in members]
        if len(ordered) > 1:
            grouped |= dict.fromkeys(file.name for file in ordered)
            ref = ItemRef(f"{prefix}series-{series}")
            grouped[min(file.name for file in ordered)] = Entry(ref, files=tuple(ordered))
    return grouped


def read_series(sources: Iterable[bytes], limits: Limits) -> tuple[np.ndarray, Grid]:
    """Decode the files of a series, in the order of their frames, each through its window.

    Returns:
        frames uint8 (F, H, W, 3) and the grid.
    """
    pictures: list[Picture] = []
    for data in sources:
        if not is_dicom(data):
            raise refuse("unreadable", "expected a DICOM file in the series, got another kind")
        pictures.append(read_picture(data, limits))
        _check_sizes(pictures, limits)
    if all(picture.constant for picture in pictures):
        raise refuse("constant", "expected a picture, got the same value in every pixel")
    planes = join_planes([picture.planes for picture in pictures])
    frames = _stack([picture.pixels for picture in pictures])
    return frames, make_grid(frames, pictures[0].spacing, planes)


def _check_sizes(pictures: Sequence[Picture], limits: Limits) -> None:
    """Refuse the last picture if it does not fit to those before it."""
    expected, got = pictures[0].pixels.shape[1:3], pictures[-1].pixels.shape[1:3]
    if got != expected:
        raise refuse(
            "unsupported",
            f"expected files of {expected[0]} × {expected[1]} pixels throughout the series, got "
            f"one of {got[0]} × {got[1]}",
        )
    limits.check_pixels(sum(len(picture.pixels) for picture in pictures), *expected)


def _stack(parts: Sequence[np.ndarray]) -> np.ndarray:
    """(F, H, W) or (F, H, W, 3) pixels, one after the other, as frames (F, H, W, 3)."""
    if all(part.ndim == 3 for part in parts):
        return as_frames(np.concatenate(parts))
    return as_frames(np.concatenate([as_frames(part) for part in parts]))


def _read_slice(file: Path) -> Slice | None:
    """What the header says of a file's place; None unless it is one frame of a series."""
    try:
        with open_file(file) as stream:
            if not is_dicom(stream.read(MAGIC_END)):
                return None
            if read_syntax(stream) == DeflatedExplicitVRLittleEndian:  # inflates all of it
                return None
            stream.seek(0)
            ds = dcmread(stream, stop_before_pixels=True, specific_tags=list(TAGS))
            return _place(file, ds)
    except InputError:  # reading it says why
        return None
    except Exception:  # a damaged header may raise anything; reading it says why
        return None


def _place(file: Path, ds: Dataset) -> Slice | None:
    uid, rows, columns = ds.get("SeriesInstanceUID"), ds.get("Rows"), ds.get("Columns")
    if not uid or not rows or not columns or int(ds.get("NumberOfFrames") or 1) > 1:
        return None
    turn = _floats(ds.get("ImageOrientationPatient"), 6)
    rounded = [round(value, DIGITS) + 0.0 for value in turn]
    text = f"{uid}|{int(rows)}|{int(columns)}|{rounded}"
    series = hashlib.sha256(text.encode()).hexdigest()[:HASH]
    position = _floats(ds.get("ImagePositionPatient"), 3)
    height = float(np.dot(np.cross(turn[:3], turn[3:]), position)) if turn and position else 0.0
    number = _floats(ds.get("InstanceNumber"), 1) or [0.0]
    return Slice(file, series, (height, number[0], file.name))


def _floats(value: Any, count: int) -> list[float]:
    """``count`` finite numbers of a DICOM value, or nothing."""
    values = [float(v) for v in (value if hasattr(value, "__iter__") else [value] if value else [])]
    return values if len(values) == count and np.isfinite(values).all() else []
