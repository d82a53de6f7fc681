"""Where the frames of DICOM objects lie: distances in mm, planes in space, and their affine.

DICOM counts millimetres to the patient's left, back and head (LPS); affines here count
to the right, front and head (RAS), as in NIfTI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from medclipsam.engine.archive.grayscale import functional

CENTIMETRES = 3  # of PhysicalUnitsXDirection
UNEVEN = 0.01  # part of the mean distance by which frames may lie off their places
ASKEW = 0.01  # cosine between rows and columns, and error of their length
SAME = 1e-3  # cosines and parts of a mm by which planes of one volume may differ
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Planes:
    """How the frames of an object, or of a series, lie in the patient.

    Attributes:
        positions: float64 (F, 3), LPS mm of the centre of the first pixel.
        rows: unit vector along a row, the way the column index counts.
        columns: unit vector along a column, the way the row index counts.
        spacing: (row, column) distance of pixel centres in mm.
        thickness: of a frame in mm; stands for the distance of frames where there is one.
    """

    positions: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    spacing: tuple[float, float]
    thickness: float = 1.0


def read_planes(ds: Dataset, count: int) -> Planes | None:
    """The planes of the ``count`` frames of an object, or None where it does not tell."""
    orientations = [
        _numbers(functional(ds, frame, "PlaneOrientationSequence"), "ImageOrientationPatient")
        for frame in range(count)
    ]
    positions = [
        _numbers(functional(ds, frame, "PlanePositionSequence"), "ImagePositionPatient")
        for frame in range(count)
    ]
    measures = functional(ds, 0, "PixelMeasuresSequence")
    spacing = _numbers(measures, "PixelSpacing")
    if len(spacing) != 2 or not min(spacing) > 0:
        return None
    if any(len(o) != 6 for o in orientations) or any(len(p) != 3 for p in positions):
        return None
    if np.abs(np.subtract(orientations, orientations[0])).max() > SAME:
        return None
    rows, columns = np.reshape(orientations[0], (2, 3))
    if _askew(rows, columns) or (count > 1 and "PerFrameFunctionalGroupsSequence" not in ds):
        return None
    thickness = _numbers(measures, "SliceThickness")
    thick = thickness[0] if thickness and thickness[0] > 0 else 1.0
    return Planes(np.array(positions), rows, columns, (spacing[0], spacing[1]), thick)


def join_planes(parts: Sequence[Planes | None]) -> Planes | None:
    """The planes of a series of objects, or None where they do not make one volume."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    first = known[0]
    for part in known:
        turn = np.abs([part.rows - first.rows, part.columns - first.columns]).max()
        if turn > SAME or np.abs(np.subtract(part.spacing, first.spacing)).max() > SAME:
            return None
    positions = np.concatenate([part.positions for part in known])
    return Planes(positions, first.rows, first.columns, first.spacing, first.thickness)


def make_affine(planes: Planes) -> np.ndarray | None:
    """(4, 4) matrix from (column, row, frame) index to RAS mm.

    None where the frames are not evenly spaced, or not along their normal but in one plane.
    """
    normal = np.cross(planes.rows, planes.columns)
    step = normal * planes.thickness
    if len(planes.positions) > 1:
        steps = np.diff(planes.positions, axis=0)
        step = steps.mean(axis=0)
        length = np.linalg.norm(step)
        even = np.linalg.norm(steps - step, axis=1).max() <= UNEVEN * length
        if not even or abs(step @ normal) <= UNEVEN * length or not length:
            return None
    affine = np.eye(4)
    affine[:3, 0] = planes.rows * planes.spacing[1]
    affine[:3, 1] = planes.columns * planes.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = planes.positions[0]
    affine[:3] = LPS_TO_RAS @ affine[:3]
    return affine


def read_spacing(ds: Dataset) -> tuple[float, float] | None:
    """(row, column) distance in mm from whatever the object tells, or None."""
    value = functional(ds, 0, "PixelMeasuresSequence").get("PixelSpacing")
    value = value or ds.get("ImagerPixelSpacing")
    regions = ds.get("SequenceOfUltrasoundRegions") or []
    if not value and len(regions) == 1 and _in_centimetres(regions[0]):
        region = regions[0]
        value = [abs(10.0 * region.PhysicalDeltaY), abs(10.0 * region.PhysicalDeltaX)]
    try:
        row, column = (float(v) for v in value)
    except (TypeError, ValueError):
        return None
    return (row, column) if 0 < row < np.inf and 0 < column < np.inf else None


def _in_centimetres(region: Dataset) -> bool:
    axes = (region.get(f"PhysicalUnits{axis}Direction") for axis in "XY")
    deltas = (region.get(f"PhysicalDelta{axis}") for axis in "XY")
    return all(axis == CENTIMETRES for axis in axes) and None not in deltas


def _askew(rows: np.ndarray, columns: np.ndarray) -> bool:
    lengths = np.linalg.norm([rows, columns], axis=1)
    return bool(np.abs(lengths - 1).max() > ASKEW or abs(rows @ columns) > ASKEW)


def _numbers(ds: Dataset, keyword: str) -> list[float]:
    """The finite numbers of an element, or nothing where it is missing or damaged."""
    try:
        value = ds.get(keyword)
        numbers = [float(v) for v in (value if hasattr(value, "__iter__") else [value])]
    except (TypeError, ValueError):
        return []
    return numbers if np.isfinite(numbers).all() else []
