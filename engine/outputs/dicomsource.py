"""What a DICOM segmentation has to know of the files it was made of.

The pixels are never looked at. Unlike the reader of images, this one keeps what
identifies patient and study: a segmentation is filed with its source.
"""

import io
from collections.abc import Iterator, Sequence

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, DS, TM

from medclipsam.engine.archive.readers.dicom.geometry import COSINES, read_planes
from medclipsam.engine.archive.readers.dicom.spacing import SAME
from medclipsam.engine.errors import InputError

IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
EXPECTED = (  # may be empty, must be there
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
FORMS = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
MOMENTS = ("Content", "Acquisition", "Series", "Study")
LONG_AGO = ("19000101", "000000")
SHARED = ("PixelMeasuresSequence", "PlaneOrientationSequence")

Reference = tuple[str, str, int]


def read_heads(sources: Sequence[bytes]) -> list[Dataset]:
    """The header of each file, mended where an optional value is missing or malformed.

    Raises:
        InputError: an identifier is missing.
    """
    return [_mend(dcmread(io.BytesIO(data), stop_before_pixels=True)) for data in sources]


def _mend(head: Dataset) -> Dataset:
    meta = head.file_meta
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if not head.get(keyword) and f"MediaStorage{keyword}" in meta:
            setattr(head, keyword, meta[f"MediaStorage{keyword}"].value)
    missing = [keyword for keyword in IDENTITY if not head.get(keyword)]
    if missing:
        raise InputError(
            "encode_outputs",
            "unsupported",
            f"a DICOM segmentation needs the source's {' and '.join(missing)}, which it lacks; "
            "leave dicom-seg out",
        )
    for keyword in EXPECTED:
        if head.get(keyword) is None or not _is_valid(keyword, head[keyword].value):
            setattr(head, keyword, "")
    _share(head)
    _spread(head)
    return head


def _is_valid(keyword: str, value: object) -> bool:
    if keyword == "PatientSex":
        return value in ("M", "F", "O", "")
    try:
        FORMS.get(keyword, str)(value)
    except (ValueError, TypeError):
        return False
    return True


def _share(head: Dataset) -> None:
    """Say once for all frames what each of them says alike."""
    groups = head.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        return
    if not head.get("SharedFunctionalGroupsSequence"):
        head.SharedFunctionalGroupsSequence = [Dataset()]
    shared = head.SharedFunctionalGroupsSequence[0]
    for keyword in SHARED:
        first = groups[0].get(keyword)
        if keyword not in shared and first and all(g.get(keyword) == first for g in groups):
            setattr(shared, keyword, first)


def _spread(head: Dataset) -> None:
    """Say of each frame where it lies, where an object without functional groups tells it."""
    count = int(head.get("NumberOfFrames") or 1)
    if count < 2 or "PerFrameFunctionalGroupsSequence" in head:
        return
    planes = read_planes(head, count)
    if isinstance(planes, str):
        return
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [DS(value, auto_format=True) for value in planes.spacing]
    cosines = (*planes.rows, *planes.columns)
    orientation.ImageOrientationPatient = [DS(float(v), auto_format=True) for v in cosines]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    groups = []
    for place in planes.positions:
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = [DS(float(v), auto_format=True) for v in place]
        group.PlanePositionSequence = [position]
        groups.append(group)
    head.SharedFunctionalGroupsSequence, head.PerFrameFunctionalGroupsSequence = [shared], groups


def frame_references(heads: Sequence[Dataset], count: int) -> list[Reference]:
    """(SOP class, SOP instance, frame number) of ``count`` frames; 0 where files have but one."""
    if len(heads) == count and "NumberOfFrames" not in heads[0]:
        return [(head.SOPClassUID, head.SOPInstanceUID, 0) for head in heads]
    if len(heads) != 1:
        raise ValueError(f"expected 1 or {count} DICOM files, got {len(heads)}")
    return [(heads[0].SOPClassUID, heads[0].SOPInstanceUID, k + 1) for k in range(count)]


def is_located(heads: Sequence[Dataset], count: int) -> bool:
    """Whether all ``count`` frames lie in one frame of reference, parallel, at different places."""
    if any(not head.get("FrameOfReferenceUID") for head in heads):
        return False
    planes = [plane for head in heads for plane in _planes(head)]
    if len(planes) != count or any(not spot or not axes or not gap for spot, axes, gap in planes):
        return False
    spots, axes, gaps = (np.array(part, np.float64) for part in zip(*planes, strict=True))
    if np.ptp(axes, axis=0).max() > COSINES or np.ptp(np.log(gaps), axis=0).max() > SAME:
        return False
    distances = spots @ np.cross(axes[0, :3], axes[0, 3:])
    return len(np.unique(distances)) == count


def _planes(head: Dataset) -> Iterator[tuple]:
    """Position, orientation and pixel spacing of each frame, None where unknown."""
    groups = head.get("PerFrameFunctionalGroupsSequence")
    if groups is None:
        yield tuple(
            head.get(name)
            for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        )
        return
    shared = head.SharedFunctionalGroupsSequence[0]
    for group in groups:
        yield (
            _of("PlanePositionSequence", group, shared).get("ImagePositionPatient"),
            _of("PlaneOrientationSequence", shared).get("ImageOrientationPatient"),
            _of("PixelMeasuresSequence", shared).get("PixelSpacing"),
        )


def _of(keyword: str, *groups: Dataset) -> Dataset:
    return next((g[keyword].value[0] for g in groups if g.get(keyword)), Dataset())


def align(heads: Sequence[Dataset]) -> None:
    """Give the files of located frames what highdicom insists on.

    That is one orientation and pixel spacing to the last digit, and a slice thickness: where
    there is none, the distance of the first two frames, or 1 mm.
    """
    spots = [np.array(spot, np.float64) for head in heads for spot, _, _ in _planes(head)]
    gap = float(np.linalg.norm(spots[1] - spots[0])) if len(spots) > 1 else 1.0
    for head in heads:
        shared = head.get("SharedFunctionalGroupsSequence")
        holder = _of("PixelMeasuresSequence", shared[0]) if shared else head
        if not holder.get("SliceThickness"):
            holder.SliceThickness = round(gap, 6)
        if not shared:
            head.ImageOrientationPatient = heads[0].ImageOrientationPatient
            head.PixelSpacing = heads[0].PixelSpacing


def moment(head: Dataset) -> tuple[str, str]:
    """(date, time) of the source, in DICOM's form; the year 1900 where it has none."""
    for name in MOMENTS:
        date, time = head.get(f"{name}Date"), head.get(f"{name}Time") or LONG_AGO[1]
        if date and _is_valid("StudyDate", date) and _is_valid("StudyTime", time):
            return str(date), str(time)
    return LONG_AGO
