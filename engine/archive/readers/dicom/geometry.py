"""Where the frames of DICOM objects lie: planes in space, and their affine.

DICOM counts millimetres to the patient's left, back and head (LPS); affines here count
to the right, front and head (RAS), as in NIfTI. What is not known is said in words, for a
person to read; they hold distances at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from medclipsam.engine.archive.readers.dicom.grayscale import functional
from medclipsam.engine.archive.readers.dicom.spacing import SAME, read_numbers

COSINES = 1e-3  # by which direction cosines that count as equal may differ
OFF = 0.1  # mm by which a slice may lie off its place, and part of the slices' distance
ASKEW = 0.01  # cosine between rows and columns, and error of their length
TOUCHING = 1e-3  # mm along the normal between slices at one place
FLAT = 0.01  # part of the way from slice to slice that must lead out of their plane
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
# Pointed to by FrameIncrementPointer where frames are moments: FrameTime, FrameTimeVector.
MOMENTS = (0x00181063, 0x00181065)
PLACES = (
    ("PlanePositionSequence", "ImagePositionPatient"),
    ("PlanePositionVolumeSequence", "ImagePositionVolume"),  # of the ultrasound volume
)
AXES = (
    ("PlaneOrientationSequence", "ImageOrientationPatient"),
    ("PlaneOrientationVolumeSequence", "ImageOrientationVolume"),
)


@dataclass(frozen=True)
class Planes:
    """How the frames of an object, or of a series, lie in the patient.

    Attributes:
        positions: float64 (F, 3), LPS mm of the centre of the first pixel.
        rows: unit vector along a row, the way the column index counts.
        columns: unit vector along a column, the way the row index counts.
        spacing: (row, column) distance of pixel centres in mm.
        depth: of a single frame in mm: to its neighbour if the file tells, else its thickness;
            None where it tells neither.
    """

    positions: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    spacing: tuple[float, float]
    depth: float | None = None

    @property
    def normal(self) -> np.ndarray:
        """Vector at right angles to rows and columns."""
        return np.cross(self.rows, self.columns)


def read_planes(ds: Dataset, count: int) -> Planes | str:
    """The planes of the ``count`` frames of an object, or what is unknown of them.

    Positions are those of each frame's functional groups. An object without these has one
    position, of its own or of its detector (nuclear medicine), from which its frames follow
    by Grid Frame Offset Vector (DICOM PS3.3 C.8.8.3.2) or Spacing Between Slices (C.8.4.15).
    """
    frames = range(count) if "PerFrameFunctionalGroupsSequence" in ds else range(1)
    orientations = [read_turn(ds, frame) for frame in frames]
    places = [read_position(ds, frame) for frame in frames]
    spacings = [
        read_numbers(functional(ds, frame, "PixelMeasuresSequence"), "PixelSpacing")
        for frame in frames
    ]
    if not all(orientations) or not all(places):
        return "the file does not tell where its frames lie"
    if any(len(each) != 2 or not min(each) > 0 for each in spacings):
        return "the file tells no pixel spacing"
    if np.ptp(orientations, axis=0).max() > COSINES:
        return "its frames are turned against each other"
    if np.ptp(np.log(spacings), axis=0).max() > SAME:
        return "its frames differ in pixel spacing"
    rows, columns = np.reshape(orientations[0], (2, 3))
    lengths = np.linalg.norm([rows, columns], axis=1)
    if np.abs(lengths - 1).max() > ASKEW or abs(rows @ columns) > ASKEW:
        return "its rows and columns are not at right angles"
    rows, columns = rows / lengths[0], columns / lengths[1]
    positions = np.array(places)
    if len(frames) < count:
        stacked = _stack(ds, count, positions[0], np.cross(rows, columns))
        if isinstance(stacked, str):
            return stacked
        positions = stacked
    return Planes(positions, rows, columns, (spacings[0][0], spacings[0][1]), _depth(ds))


def read_turn(ds: Dataset, frame: int = 0) -> list[float]:
    """Direction cosines of a frame's rows and columns, 6 numbers, or nothing."""
    return _read(ds, frame, AXES, 6)


def read_position(ds: Dataset, frame: int = 0) -> list[float]:
    """LPS mm of a frame's first pixel, 3 numbers, or nothing."""
    return _read(ds, frame, PLACES, 3)


def join_planes(parts: Sequence[Planes | str]) -> Planes | str:
    """The planes of a series of objects, or why they do not make one volume."""
    known = []
    for part in parts:
        if isinstance(part, str):
            return part
        known.append(part)
    first = known[0]
    turns = [[*part.rows, *part.columns] for part in known]
    if np.ptp(turns, axis=0).max() > COSINES:
        return "its slices are turned against each other"
    if np.ptp(np.log([part.spacing for part in known]), axis=0).max() > SAME:
        return "its slices differ in pixel spacing"
    positions = np.concatenate([part.positions for part in known])
    return Planes(positions, first.rows, first.columns, first.spacing, first.depth)


def make_affine(planes: Planes) -> np.ndarray | str:
    """(4, 4) matrix from (column, row, frame) index to RAS mm, or why there is none.

    Frames that are evenly spaced, but not along their normal, shear it: a tilted gantry.
    """
    count, normal = len(planes.positions), planes.normal
    if count == 1:
        step = normal * (planes.depth or 1.0)
    else:
        step = (planes.positions[-1] - planes.positions[0]) / (count - 1)
        if words := _uneven(planes.positions, step, normal):
            return words
    affine = np.eye(4)
    affine[:3, 0] = planes.rows * planes.spacing[1]
    affine[:3, 1] = planes.columns * planes.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = planes.positions[0]
    affine[:3] = LPS_TO_RAS @ affine[:3]
    return affine


def _uneven(positions: np.ndarray, step: np.ndarray, normal: np.ndarray) -> str:
    """Why frames make no even grid, or nothing."""
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(heights[order])
    if gaps.min() <= TOUCHING:
        apart = np.linalg.norm(np.diff(positions[order], axis=0), axis=1).min()
        where = "at the same place" if apart <= TOUCHING else "beside each other in one plane"
        return f"several of its slices lie {where}"
    if np.diff(order).min() < 0 < np.diff(order).max():
        return "its slices are not in the order of their places"
    length = float(np.linalg.norm(step))
    off = positions - positions[0] - np.arange(len(positions))[:, None] * step
    if np.linalg.norm(off, axis=1).max() <= min(OFF, OFF * length):
        steep = abs(step @ normal) > FLAT * length
        return "" if steep else "its slices lie almost beside each other"
    if np.abs(off @ normal).max() <= min(OFF, OFF * length):
        return "its slices are shifted against each other"
    return f"its slices lie {gaps.min():.4g} to {gaps.max():.4g} mm apart"


def _stack(ds: Dataset, count: int, first: np.ndarray, normal: np.ndarray) -> np.ndarray | str:
    """Positions (F, 3) of frames of which only the first one's is told."""
    offsets = np.array(read_numbers(ds, "GridFrameOffsetVector"))
    if len(offsets) == count:
        if offsets[0] == 0:
            return first + offsets[:, None] * normal
        if abs(offsets[0] - first[2]) <= OFF and abs(normal[2]) >= 1 - COSINES:
            return first + (offsets - offsets[0])[:, None] * np.array([0.0, 0, 1])
        return "its frame offsets begin elsewhere than its position"
    pointers = np.atleast_1d(ds.get("FrameIncrementPointer") or 0).tolist()
    spacing = read_numbers(ds, "SpacingBetweenSlices")
    if set(pointers) & set(MOMENTS) or len(spacing) != 1 or not spacing[0]:
        return "the file tells where its first frame lies, but not how far the others are"
    numbers = np.array(read_numbers(ds, "SliceVector") or range(1, count + 1))
    if len(numbers) != count:
        return "its slices are not numbered one by one"
    turned = {*read_numbers(ds, "RotationVector")} | {*read_numbers(ds, "AngularViewVector")}
    if len(turned) > 1:
        return "its frames are views from several sides"
    return first + ((numbers - numbers[0]) * spacing[0])[:, None] * normal


def _read(ds: Dataset, frame: int, sources: Sequence[tuple[str, str]], size: int) -> list[float]:
    """``size`` numbers of the first functional group that holds them, or of the one detector."""
    holders = [(functional(ds, frame, group), keyword) for group, keyword in sources]
    detectors = ds.get("DetectorInformationSequence") or []
    found = [numbers for holder, keyword in holders
             if len(numbers := read_numbers(holder, keyword)) == size]  # fmt: skip
    if found:
        return found[0]
    heard = [read_numbers(detector, sources[0][1]) for detector in detectors]
    same = bool(heard) and all(len(each) == size for each in heard)
    return heard[0] if same and np.ptp(heard, axis=0).max() <= COSINES else []


def _depth(ds: Dataset) -> float | None:
    measures = functional(ds, 0, "PixelMeasuresSequence")
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        numbers = read_numbers(measures, keyword)
        if len(numbers) == 1 and numbers[0] > 0:
            return numbers[0]
    return None
